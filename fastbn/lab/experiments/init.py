"""What enters each layer, and its gradients, from zero, small, Xavier's and Kaiming's weights, by norm."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset, Split
from fastbn.lab.descent import accuracy, descend, first, flat
from fastbn.lab.drawing import colour_of, finish, label_of, legend
from fastbn.lab.experiment import Claim, Experiment, Figures, Options, numbers
from fastbn.lab.networks import INITIALISERS, pair, perceptron
from fastbn.lab.probe import inputs_of, loss_and_gradient
from fastbn.nn.activation import ReLU
from fastbn.nn.containers import Sequential
from fastbn.nn.init import manual_seed
from fastbn.nn.linear import Linear
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS, WIDTH = 8, 256
STEPS, BATCH, RATE, PROBED = 300, 64, 0.1, 1000
EDGES = np.arange(
    -14.0, 2.01, 0.25
)  # of the histograms, log10 of the magnitude; what is beyond is in the first or last
FILLS = ("zero", "small", "xavier", "kaiming")
NORMS = ("none", "batch")


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    steps = options.scaled(STEPS)
    progress.expect(len(FILLS) * len(NORMS) * steps)
    data = Dataset(dataset.name, flat(dataset.train), flat(dataset.test))
    runs = {fill: {norm: _run(fill, norm, data, steps, options.seed, progress) for norm in NORMS} for fill in FILLS}
    return {"edges": EDGES, "steps": steps, "runs": runs}


def _run(fill: str, norm: str, data: Dataset, steps: int, seed: int, progress: Bar) -> Figures:
    """Histograms before the first step, and the test accuracy after the last."""
    manual_seed(seed)
    widths = (data.train.images.shape[1], *(LAYERS * [WIDTH]), 10)
    model = perceptron(widths, norm=pair(norm), activation=ReLU, fill=INITIALISERS[fill])
    activations, gradients = _signals(model, first(data.train, PROBED))
    progress.say(behind=f"{fill}, {label_of(norm)}")
    optimizer = SGD(model.parameters(), lr=RATE)
    for _ in descend(model, data.train, optimizer, progress, batch_size=BATCH, steps=steps, seed=seed):
        pass
    return {"activations": activations, "gradients": gradients, "accuracy": accuracy(model, data.test)}


def _signals(model: Sequential, probe: Split) -> tuple[Figures, Figures]:
    """What enters the linear layers behind the first, and the gradients to the weights of all but the last."""
    linears = [layer for layer in model.children() if isinstance(layer, Linear)]
    activations = inputs_of(model, linears[1:], probe.images)
    _, gradient = loss_and_gradient(model, probe)
    gradients, start = [], 0
    for name, parameter in model.named_parameters():
        part = gradient[start : start + parameter.size]
        start += parameter.size
        if name.endswith("weight") and len(parameter.shape) == 2:
            gradients.append(part)
    return _histograms(activations), _histograms(gradients[:-1])


def _histograms(layers: list[np.ndarray]) -> Figures:
    """Of every layer: the share of values in each bin, the share that is 0, and the root mean square."""
    shares, zeros, rms = [], [], []
    for values in layers:
        nonzero = np.abs(values[values != 0]).astype(np.float64)
        logs = np.clip(np.log10(nonzero), EDGES[0], np.nextafter(EDGES[-1], -np.inf))
        shares.append(np.histogram(logs, EDGES)[0] / values.size)
        zeros.append(1 - nonzero.size / values.size)
        rms.append(np.sqrt(np.mean(values.astype(np.float64) ** 2)))
    return {"shares": shares, "zeros": zeros, "rms": rms}


def factor(rms: Any) -> float:
    """By how much a layer multiplies what passes it, geometric mean."""
    values = numbers(rms)
    return float((values[-1] / values[0]) ** (1 / (len(values) - 1))) if values[0] > 0 else float("nan")


def _judge(figures: Figures) -> list[Claim]:
    runs = figures["runs"]
    growth = {fill: {norm: factor(runs[fill][norm]["activations"]["rms"]) for norm in NORMS} for fill in runs}
    still = max(max(runs["zero"][norm]["gradients"]["rms"]) for norm in NORMS)
    reached = {norm: [runs[fill][norm]["accuracy"] for fill in runs if fill != "zero"] for norm in NORMS}
    apart = {norm: 100 * (max(reached[norm]) - min(reached[norm])) for norm in NORMS}
    small, xavier, kaiming = (growth[fill] for fill in ("small", "xavier", "kaiming"))
    return [
        Claim(
            "zero weights get no gradient, with batch norm or without",
            still == 0,
            f"largest {still:.3g}, accuracy {100 * runs['zero']['batch']['accuracy']:.1f} %",
        ),
        Claim(
            "small weights let the signal die, a factor below 0.2 a layer, and batch norm holds it, within 10 %",
            small["none"] < 0.2 and abs(small["batch"] - 1) < 0.1,
            f"{small['none']:.3f} and {small['batch']:.3f}",
        ),
        Claim(
            "Xavier's weights lose a factor sqrt(1/2) a layer before ReLU, within 10 %",
            abs(xavier["none"] / 0.5**0.5 - 1) < 0.1,
            f"{xavier['none']:.3f}",
        ),
        Claim(
            "Kaiming's weights keep the signal, within 10 %", abs(kaiming["none"] - 1) < 0.1, f"{kaiming['none']:.3f}"
        ),
        Claim(
            f"with batch norm it matters less where one starts: accuracies after {figures['steps']} steps are closer",
            apart["batch"] < apart["none"],
            f"{apart['batch']:.1f} points apart against {apart['none']:.1f}",
        ),
    ]


def _draw(figures: Figures, figure: "Figure") -> None:
    runs, centres = figures["runs"], numbers(figures["edges"])[:-1] + 0.125
    panels: Any = figure.subplots(2, len(runs), sharex="row", sharey=True)
    for column, (fill, both) in enumerate(runs.items()):
        for row, kind in enumerate(("activations", "gradients")):
            axes = panels[row, column]
            for norm in NORMS:
                _ridges(axes, centres, both[norm][kind], colour_of(norm), label_of(norm))
            if all(max(both[norm][kind]["rms"]) == 0 for norm in NORMS):
                axes.text(0.5, 0.5, "all exactly 0", transform=axes.transAxes, ha="center", color="#555555")
            ylabel = ("what the layer puts out", "gradients to its weights")[row] + "\nlayer" if column == 0 else ""
            axes.set_xticks(range(-12, 1, 4))
            finish(axes, "", "log10 of the magnitude" if row else "", ylabel)
        reached = ", ".join(f"{label_of(norm)} {100 * both[norm]['accuracy']:.0f} %" for norm in NORMS)
        title = f"weights: {fill}\ntest accuracy after {figures['steps']} steps:\n{reached}"
        panels[0, column].set_title(title, fontsize=10, loc="left")
    panels[0, 0].set_yticks(range(1, LAYERS + 1))
    panels[0, 0].invert_yaxis()
    handles, labels = panels[0, -1].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    legend(panels[0, 0], handles=unique.values(), labels=unique.keys(), loc="lower center")


def _ridges(axes: Any, centres: np.ndarray, part: Figures, colour: str, label: str) -> None:
    """A histogram above the line of each layer, those of one layer to the same scale."""
    for number, shares in enumerate(part["shares"], 1):
        heights = numbers(shares)
        if heights.max() > 0:
            heights = 0.85 * heights / heights.max()
            axes.fill_between(
                centres,
                number,
                number - heights,
                color=colour,
                alpha=0.55,
                linewidth=0.8,
                label=label,
                where=heights > 0,
            )
        axes.axhline(number, color="#cccccc", linewidth=0.5, zorder=0)


INIT = Experiment(
    name="init",
    title=f"Where {LAYERS} layers of {WIDTH} ReLUs start: signals and gradients before the first step",
    source="Glorot and Bengio 2010, He et al. 2015 (arXiv 1502.01852), Ioffe and Szegedy 2015 (arXiv 1502.03167)",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(14, 7.5),
)
