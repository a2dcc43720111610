"""The loss along the gradient, from half to four times the step; a deep linear network; noisy batch norm."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset, Split
from fastbn.lab import deep_linear, noisy
from fastbn.lab.descent import batches, spaced, take_step
from fastbn.lab.drawing import colour_of, finish, label_of, legend
from fastbn.lab.experiment import Claim, Experiment, Figures, Options, median, numbers
from fastbn.lab.networks import small_vgg
from fastbn.lab.probe import loss_and_gradient, parameters, preserved, set_parameters
from fastbn.nn.init import manual_seed
from fastbn.nn.module import Module
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, RATE = 400, 128, 0.1  # batch and rate of the paper; it takes 15,000 steps
RECORDS = 40
MULTIPLES = np.geomspace(0.5, 4.0, 7)  # of the step along the gradient
NORMS = ("none", "batch")


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    steps = options.scaled(STEPS, 2)
    records = spaced(steps, RECORDS)
    looks = len(records) * len(MULTIPLES)
    progress.expect(len(NORMS) * (steps + looks) + deep_linear.steps_of(options) + noisy.steps_of(options))
    runs = {norm: _run(norm, dataset.train, steps, records, options.seed, progress) for norm in NORMS}
    return {
        "steps": records,
        "multiples": MULTIPLES,
        "runs": runs,
        "deep_linear": deep_linear.measure(options, progress),
        "noisy": noisy.measure(dataset, options, progress),
    }


def _run(norm: str, train: Split, steps: int, records: list[int], seed: int, progress: Bar) -> Figures:
    """Ranges along the gradient of the batch that the step is then taken with."""
    manual_seed(seed)
    model = small_vgg(norm)
    optimizer = SGD(model.parameters(), lr=RATE)
    run: Figures = {"loss": [], "low": [], "high": [], "least_change": [], "change": [], "beta": []}
    progress.say(behind=f"VGG in small, {label_of(norm)}")
    for step, batch in enumerate(batches(train, BATCH, steps, seed), 1):
        if step in records:
            for name, value in along_gradient(model, batch, RATE).items():
                run[name].append(value)
            progress.advance(len(MULTIPLES))
        loss = take_step(model, batch, optimizer)
        progress.advance()
        if not np.isfinite(loss):
            break
    return run


def along_gradient(model: Module, batch: Split, rate: float) -> dict[str, float]:
    """Figure 4 of arXiv 1805.11604 at one point; the model is left as it was, bit for bit.

    low, high: range of the loss at ``w - m rate g`` for the multiples m. least_change, change: range of ``|g - g'|``.
    beta: the largest ``|g - g'|`` over the distance gone, the effective beta-smoothness.
    """
    start = parameters(model)
    loss, gradient = loss_and_gradient(model, batch)
    losses, changes, slopes = [], [], []
    with preserved(model):
        for multiple in MULTIPLES:
            set_parameters(model, start - multiple * rate * gradient)
            there, other = loss_and_gradient(model, batch)
            losses.append(there)
            changes.append(float(np.linalg.norm(other - gradient)))
            slopes.append(changes[-1] / (multiple * rate * float(np.linalg.norm(gradient))))
    return {
        "loss": loss,
        "low": min(losses),
        "high": max(losses),
        "least_change": min(changes),
        "change": max(changes),
        "beta": max(slopes),
    }


def _judge(figures: Figures) -> list[Claim]:
    medians: dict[str, list[float]] = {}
    for norm in NORMS:
        run = {name: numbers(values) for name, values in figures["runs"][norm].items()}
        spread = {"loss": run["high"] - run["low"], "change": run["change"], "beta": run["beta"]}
        for name, values in spread.items():
            medians.setdefault(name, []).append(median(values))
    what = {
        "loss": "the loss varies less along the gradient",
        "change": "the gradient changes less along itself",
        "beta": "the effective beta-smoothness is better",
    }
    claims = [
        Claim(
            f"with batch norm {text}",
            medians[name][1] < medians[name][0],
            "median {1:.3g} against {0:.3g}".format(*medians[name]),
        )
        for name, text in what.items()
    ]
    return [*claims, *deep_linear.judge(figures["deep_linear"]), *noisy.judge(figures["noisy"])]


def _draw(figures: Figures, figure: "Figure") -> None:
    panels: Any = figure.subplots(2, 3)
    for norm in NORMS:
        run = {name: numbers(values) for name, values in figures["runs"][norm].items()}
        at = np.array(figures["steps"][: len(run["loss"])])
        colour, label = colour_of(norm), label_of(norm)
        panels[0, 0].fill_between(at, run["low"], run["high"], color=colour, alpha=0.45, label=label, linewidth=0.5)
        panels[0, 1].fill_between(
            at, run["least_change"], run["change"], color=colour, alpha=0.45, label=label, linewidth=0.5
        )
        panels[0, 2].plot(at, run["beta"], color=colour, label=label)
    finish(panels[0, 0], "Loss from 1/2 to 4 times the step", "training steps", "cross-entropy (nats)")
    finish(panels[0, 1], "Change of the gradient there", "training steps", "|g - g'|")
    finish(
        panels[0, 2], "Effective beta-smoothness (less is smoother)", "training steps", "largest |g - g'| / distance"
    )
    for axes in panels[0]:
        axes.set_yscale("log")
        legend(axes)
    deep_linear.draw(figures["deep_linear"], panels[1, 0])
    noisy.draw(figures["noisy"], panels[1, 1], panels[1, 2])


LANDSCAPE = Experiment(
    name="landscape",
    title="The loss along the gradient; 25 linear layers; noisy batch norm",
    source="Santurkar and others 2018, arXiv 1805.11604, figures 2 and 4, appendix A",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(13.5, 9),
)
