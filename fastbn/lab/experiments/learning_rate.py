"""The largest learning rate that trains LeNet-5, for every norm and initialiser."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset
from fastbn.lab.descent import accuracy, descend
from fastbn.lab.drawing import accuracy_axis, finish, label_of, style_of, wrong
from fastbn.lab.experiment import Claim, Experiment, Figures, Options
from fastbn.lab.networks import INITIALISERS
from fastbn.models.lenet import lenet
from fastbn.models.norms import NORMS
from fastbn.nn.init import manual_seed
from fastbn.nn.model_init import init_weights_
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STEPS, BATCH = 200, 64
TRAINS = 0.5  # of the test digits are read after the last step
OWN = "own"  # the initial values that the model comes with
FILLS = (OWN, *(name for name in INITIALISERS if name != "zero"))
OWN_ONLY = ("fixup",)  # norms that are a way to start


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    steps = options.scaled(STEPS)
    cases = [(norm, fill) for norm in NORMS for fill in FILLS if fill == OWN or norm not in OWN_ONLY]
    progress.expect(len(cases) * len(RATES) * steps)
    runs: Figures = {norm: {} for norm in NORMS}
    for norm, fill in cases:
        progress.say(behind=f"{label_of(norm)}, {fill}")
        runs[norm][fill] = [_accuracy(norm, fill, rate, dataset, steps, options.seed, progress) for rate in RATES]
    return {"rates": RATES, "steps": steps, "runs": runs}


def _accuracy(norm: str, fill: str, rate: float, data: Dataset, steps: int, seed: int, progress: Bar) -> float | None:
    """Of the test digits after the last step; None for a run that diverged."""
    manual_seed(seed)
    model = lenet(norm=norm)
    if fill != OWN:
        init_weights_(model, INITIALISERS[fill])
    optimizer = SGD(model.parameters(), lr=rate)
    losses = list(descend(model, data.train, optimizer, progress, batch_size=BATCH, steps=steps, seed=seed))
    return accuracy(model, data.test) if np.isfinite(losses[-1]) else None


def largest(rates: list[float], accuracies: list[float | None]) -> float | None:
    """The largest rate that trains, None if none does."""
    trained = [rate for rate, value in zip(rates, accuracies, strict=True) if value is not None and value >= TRAINS]
    return max(trained, default=None)


def _table(figures: Figures) -> dict[str, dict[str, float | None]]:
    """The largest rate by norm and initialiser."""
    runs = figures["runs"]
    return {norm: {fill: largest(figures["rates"], values) for fill, values in runs[norm].items()} for norm in runs}


def _shown(rate: float | None) -> str:
    return "none" if rate is None else f"{rate:g}"


def _judge(figures: Figures) -> list[Claim]:
    table = _table(figures)
    batch, none = table["batch"], table["none"]
    pairs = {fill: (batch[fill] or 0.0, none[fill] or 0.0) for fill in batch}
    found = ", ".join(f"{fill} {_shown(batch[fill])} against {_shown(none[fill])}" for fill in batch)
    best = max(value for value, _ in pairs.values()), max(value for _, value in pairs.values())
    starts = {norm: sum(rate is not None for rate in table[norm].values()) for norm in ("batch", "none")}
    return [
        Claim(
            "from every initialiser a larger rate trains with batch norm than without",
            all(one > other for one, other in pairs.values()),
            found,
        ),
        Claim(
            "with batch norm at least three times the best rate of the network without trains",
            best[0] >= 3 * best[1] > 0 or best[0] > best[1] == 0,
            f"{best[0]:g} against {best[1]:g}",
        ),
        Claim(
            "with batch norm every initialiser trains at some rate, without not every one does",
            starts["batch"] == len(batch) > starts["none"],
            f"{starts['batch']} of {len(batch)} against {starts['none']}",
        ),
    ]


def _draw(figures: Figures, figure: "Figure") -> None:
    norms = list(figures["runs"])
    panels: Any = figure.subplots(1, len(FILLS) + 1, width_ratios=(*[1] * len(FILLS), 1.2))
    for axes, fill in zip(panels, FILLS, strict=False):
        for norm in norms:
            if fill in figures["runs"][norm]:
                values = [0.0 if value is None else value for value in figures["runs"][norm][fill]]
                axes.plot(figures["rates"], wrong(values), label=label_of(norm), markersize=4, **style_of(norm, norms))
        axes.set_xscale("log")
        axes.set_ylim(100, 2)
        accuracy_axis(axes)
        finish(axes, f"weights: {fill}", "learning rate", "")
        if axes is not panels[0]:
            axes.set_yticklabels([])
    panels[0].set_ylabel(f"test accuracy after {figures['steps']} steps (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small", frameon=False)
    _draw_table(panels[-1], _table(figures), figures["rates"])


def _draw_table(axes: Any, table: dict[str, dict[str, float | None]], rates: list[float]) -> None:
    """Norms by initialisers, each cell with the largest rate, darker where it is larger."""
    shades = np.full((len(table), len(FILLS)), np.nan)
    for row, norm in enumerate(table):
        for column, fill in enumerate(FILLS):
            rate = table[norm].get(fill)
            shades[row, column] = np.nan if rate is None else np.log10(rate)
            text = "" if fill not in table[norm] else _shown(rate)
            dark = rate is not None and np.log10(rate) > np.log10(rates).mean()
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=10)
    low, high = np.log10(rates[0]), np.log10(rates[-1])
    axes.set_facecolor("#eeeeee")
    axes.imshow(shades, cmap="cividis_r", vmin=low, vmax=high, aspect="auto")
    axes.set_xticks(range(len(FILLS)), FILLS, rotation=30, ha="right")
    axes.set_yticks(range(len(table)), [label_of(norm) for norm in table])
    axes.set_title("Largest rate that trains", fontsize=11, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


LEARNING_RATE = Experiment(
    name="learning-rate",
    title="The largest learning rate that trains LeNet-5, to half of the test digits",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 3.3",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(18, 5),
)
