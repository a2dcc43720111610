"""Section 4.1 of the paper that introduced batch norm: three layers of 100 sigmoids on MNIST, 60 digits a step."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset, Split
from fastbn.lab.descent import accuracy, descend, first, flat, spaced
from fastbn.lab.drawing import accuracy_axis, colour_of, finish, label_of, legend, wrong
from fastbn.lab.experiment import Claim, Experiment, Figures, Options, median, numbers
from fastbn.lab.networks import pair, perceptron
from fastbn.lab.probe import inputs_of
from fastbn.nn.activation import Sigmoid
from fastbn.nn.init import manual_seed, normal_
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, RATE = 10_000, 60, 0.1  # the paper takes 50,000 steps and does not tell the rate
WEIGHT_STD = 0.1  # "small random Gaussian values"
PERCENTILES = (15, 50, 85)
RECORDS, PROBED = 60, 1000
NORMS = ("none", "batch")


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    steps = options.scaled(STEPS, 2)
    progress.expect(len(NORMS) * steps)
    data = Dataset(dataset.name, flat(dataset.train), flat(dataset.test))
    runs = {norm: _run(norm, data, steps, options.seed, progress) for norm in NORMS}
    return {"steps": spaced(steps, RECORDS), "percentiles": PERCENTILES, "runs": runs}


def _run(norm: str, data: Dataset, steps: int, seed: int, progress: Bar) -> Figures:
    """Test accuracy, and percentiles of what enters the last sigmoids, at some steps on the way."""
    manual_seed(seed)
    widths = (data.train.images.shape[1], 100, 100, 100, 10)
    model = perceptron(widths, norm=pair(norm), fill=lambda array: normal_(array, 0.0, WEIGHT_STD))
    optimizer = SGD(model.parameters(), lr=RATE)
    probe = first(data.test, PROBED)
    records = spaced(steps, RECORDS)
    accuracies = np.full(len(records), np.nan)
    units = np.full((len(records), len(PERCENTILES), widths[-2]), np.nan)
    progress.say(behind=label_of(norm))
    losses = descend(model, data.train, optimizer, progress, batch_size=BATCH, steps=steps, seed=seed)
    for step, _ in enumerate(losses, 1):
        if step in records:
            accuracies[records.index(step)] = accuracy(model, data.test)
            units[records.index(step)] = _percentiles(model, probe)
    drifts = drift(units)
    typical = int(np.argsort(drifts)[len(drifts) // 2])
    return {"accuracy": accuracies, "drift": drifts, "unit": typical, "inputs": units[:, :, typical]}


def _percentiles(model: Any, probe: Split) -> np.ndarray:
    """(percentiles, units) of the inputs of the last sigmoids, with the statistics of the batch."""
    last = [layer for layer in model.children() if isinstance(layer, Sigmoid)][-1:]
    return np.percentile(inputs_of(model, last, probe.images)[0], PERCENTILES, axis=0)


def drift(units: np.ndarray) -> np.ndarray:
    """How far each unit's median moves, standard deviation over time, in widths of its distribution (15 to 85 %)."""
    widths = (units[:, -1] - units[:, 0]).mean(axis=0)
    return units[:, 1].std(axis=0) / np.maximum(widths, np.finfo(np.float64).tiny)


def _judge(figures: Figures) -> list[Claim]:
    steps = figures["steps"]
    none, batch = (numbers(figures["runs"][norm]["accuracy"]) for norm in NORMS)
    moved = [median(figures["runs"][norm]["drift"]) for norm in NORMS]
    sooner = [step for step, value in zip(steps, batch, strict=True) if value >= none.max()]
    reached = f"step {sooner[0]} of {steps[-1]}" if sooner else f"not within {steps[-1]} steps"
    return [
        Claim(
            "with batch norm the final test accuracy is higher",
            bool(batch[-1] > none[-1]),
            f"{100 * batch[-1]:.2f} % against {100 * none[-1]:.2f} %",
        ),
        Claim(
            "with batch norm the best accuracy of the other network is reached in less than half of the steps",
            bool(sooner and sooner[0] < steps[-1] / 2),
            reached,
        ),
        Claim(
            "with batch norm the distribution of a sigmoid's inputs is steadier while the network trains",
            moved[1] < moved[0],
            f"the median moves by {moved[1]:.2f} of the distribution's width against {moved[0]:.2f}",
        ),
    ]


def _draw(figures: Figures, figure: "Figure") -> None:
    panels: Any = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    steps = np.array(figures["steps"])
    for norm in NORMS:
        values = numbers(figures["runs"][norm]["accuracy"])
        label = f"{label_of(norm)}, {100 * values[-1]:.1f} % at the end"
        dashes = "-" if norm == "batch" else "--"
        panels[0].plot(steps, wrong(values), color=colour_of(norm), linestyle=dashes, label=label)
    accuracy_axis(panels[0])
    legend(panels[0], loc="lower right", bbox_to_anchor=(1, 0.12))
    finish(panels[0], "Test accuracy", "training steps", "correct (%)")
    for axes, norm in zip(panels[1:], NORMS, strict=True):
        inputs = numbers(figures["runs"][norm]["inputs"])
        at, colour = steps, colour_of(norm)
        axes.fill_between(at, inputs[:, 0], inputs[:, 2], color=colour, alpha=0.18, linewidth=0)
        for column, percentile in enumerate(figures["percentiles"]):
            axes.plot(at, inputs[:, column], color=colour, linewidth=2 if percentile == 50 else 1)
            axes.annotate(
                f"{percentile} %", (at[-1], inputs[-1, column]), xytext=(3, 0), textcoords="offset points",
                va="center", fontsize=8, color=colour,
            )  # fmt: skip
        finish(axes, f"Inputs of a typical last sigmoid, {label_of(norm)}", "training steps", "input of the sigmoid")
    low, high = (pick([axes.get_ylim()[side] for axes in panels[1:]]) for side, pick in enumerate((min, max)))
    for axes in panels[1:]:
        axes.set_ylim(low, high)


ORIGINAL = Experiment(
    name="original",
    title="Three layers of 100 sigmoids, with and without batch norm",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167, section 4.1 and figure 1",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(13, 4.8),
)
