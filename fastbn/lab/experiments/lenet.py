"""LeNet-5 with and without batch norm: loss, the loss that a book prints, and accuracy, epoch by epoch."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset
from fastbn.lab.descent import accuracy, descend
from fastbn.lab.drawing import accuracy_axis, colour_of, finish, label_of, legend, wrong
from fastbn.lab.experiment import Claim, Experiment, Figures, Options, numbers
from fastbn.models import lenet
from fastbn.nn.init import manual_seed
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, BATCH, RATE, MOMENTUM = 10, 64, 0.05, 0.9
NORMS = ("batch", "none")
# What is reported of LeNet with batch norm on MNIST after so many epochs of SGD.
REPORTED = {1: 0.9578, 3: 0.979, 5: 0.9803, 7: 0.9859, 9: 0.9883}


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    epochs = options.scaled(EPOCHS)
    per_epoch = max(1, len(dataset.train.labels) // BATCH)
    progress.expect(len(NORMS) * epochs * per_epoch)
    return {
        "epochs": list(range(1, epochs + 1)),
        "steps_per_epoch": per_epoch,
        "runs": {norm: _run(norm, dataset, epochs, per_epoch, options.seed, progress) for norm in NORMS},
    }


def _run(norm: str, dataset: Dataset, epochs: int, per_epoch: int, seed: int, progress: Bar) -> Figures:
    """Mean loss of the steps, log10 of their sum, and test accuracy, of every epoch."""
    manual_seed(seed)
    model = lenet(norm=norm)
    optimizer = SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    run = {name: np.full(epochs, np.nan) for name in ("loss", "log10_sum", "accuracy")}
    losses: list[float] = []
    progress.say(behind=label_of(norm))
    descent = descend(model, dataset.train, optimizer, progress, batch_size=BATCH, steps=epochs * per_epoch, seed=seed)
    for step, loss in enumerate(descent, 1):
        losses.append(loss)
        if step % per_epoch == 0:
            epoch = step // per_epoch - 1
            run["loss"][epoch] = np.mean(losses)
            run["log10_sum"][epoch] = math.log10(sum(losses))
            run["accuracy"][epoch] = accuracy(model, dataset.test)
            losses.clear()
    return run


def _judge(figures: Figures) -> list[Claim]:
    batch, none = (numbers(figures["runs"][norm]["accuracy"]) for norm in NORMS)
    sums = [numbers(figures["runs"][norm]["log10_sum"]) for norm in NORMS]
    claims = []
    for epoch in (1, 9):
        got = batch[epoch - 1] if epoch <= len(batch) else math.nan
        claims.append(
            Claim(
                f"after {epoch} epoch{'s' * (epoch > 1)} LeNet with batch norm reads at least "
                f"{REPORTED[epoch]} of the test digits",
                bool(got >= REPORTED[epoch]),
                f"{got:.4f}",
            )
        )
    ahead = batch - none
    claims.append(
        Claim(
            "with batch norm the test accuracy is higher after every epoch",
            bool((ahead > 0).all()),
            f"ahead by {100 * ahead.min():.2f} to {100 * ahead.max():.2f} points",
        )
    )
    below = sums[1] - sums[0]
    claims.append(
        Claim(
            "with batch norm the log10 of the sum of an epoch's losses is lower in every epoch",
            bool((below > 0).all()),
            f"lower by {below.min():.2f} to {below.max():.2f}",
        )
    )
    return claims


def _draw(figures: Figures, figure: "Figure") -> None:
    panels: Any = figure.subplots(1, 3)
    for norm, run in figures["runs"].items():
        style = {"color": colour_of(norm), "marker": "o" if norm == "batch" else "s", "markersize": 4}
        epochs = figures["epochs"]
        panels[0].semilogy(epochs, numbers(run["loss"]), label=label_of(norm), **style)
        panels[1].plot(epochs, numbers(run["log10_sum"]), label=label_of(norm), **style)
        panels[2].plot(epochs, wrong(run["accuracy"]), label=label_of(norm), **style)
    reported = [epoch for epoch in REPORTED if epoch <= len(figures["epochs"])]
    panels[2].plot(
        reported,
        wrong([REPORTED[epoch] for epoch in reported]),
        "kx",
        markersize=7,
        label="reported for MNIST",
        zorder=5,
    )
    finish(panels[0], "Training loss", "epoch", "mean cross-entropy (nats)")
    finish(panels[1], "... summed over the epoch, as some print it", "epoch", "log10 of the sum of batch losses")
    finish(panels[2], "Test accuracy", "epoch", "correct (%)")
    for axes in panels:
        axes.xaxis.get_major_locator().set_params(integer=True)
    accuracy_axis(panels[2])
    legend(panels[0])
    legend(panels[2], loc="lower right", bbox_to_anchor=(1, 0.12))


LENET = Experiment(
    name="lenet",
    title="LeNet-5 with and without batch norm",
    source="LeCun et al. 1998, with the batch norm of arXiv 1502.03167 after every hidden layer",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(13, 4.8),
)
