"""The deep linear network of arXiv 1805.11604, appendix A: 25 matrices learn one, on Gaussian samples."""

from typing import Any

import numpy as np

from fastbn._progress import Bar
from fastbn.lab.descent import spaced
from fastbn.lab.drawing import colour_of, finish, label_of, legend
from fastbn.lab.experiment import Claim, Figures, Options, numbers
from fastbn.nn.batchnorm import BatchNorm1d
from fastbn.nn.containers import Sequential
from fastbn.nn.init import manual_seed, normal_
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.optim import SGD

LAYERS, WIDTH, SAMPLES = 25, 10, 1000
STEPS, RATE = 10_000, 1e-6
RECORDS = 100
NORMS = ("none", "batch")


def steps_of(options: Options) -> int:
    """What ``measure`` adds to the bar."""
    return len(NORMS) * options.scaled(STEPS, 2)


def measure(options: Options, progress: Bar) -> Figures:
    """The loss, the sum of squares over all samples, at some steps, with batch norm between the matrices or not.

    Full-batch gradient descent on ``|W25 ... W1 x - A x|^2``; x and A are standard normal, the matrices start normal
    with variance 1 / width, which the paper leaves open.
    """
    steps = options.scaled(STEPS, 2)
    rng = np.random.default_rng(options.seed)
    x = rng.standard_normal((SAMPLES, WIDTH)).astype(np.float32)
    target = x @ rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
    runs = {norm: _run(norm, x, target, steps, options.seed, progress) for norm in NORMS}
    return {"steps": [0, *spaced(steps, RECORDS)], "loss": runs}


def _run(norm: str, x: np.ndarray, target: np.ndarray, steps: int, seed: int, progress: Bar) -> list[float]:
    manual_seed(seed)
    model = _network(norm)
    optimizer = SGD(model.parameters(), lr=RATE)
    records, losses = {0, *spaced(steps, RECORDS)}, []
    progress.say(behind=f"{LAYERS} linear layers, {norm} norm")
    for step in range(steps + 1):
        optimizer.zero_grad()
        error = model(x) - target
        if step in records:
            losses.append(float(np.sum(error.astype(np.float64) ** 2)))
        if step < steps:
            model.backward(2 * error, need_dx=False)
            optimizer.step()
            progress.advance()
    return losses


def _network(norm: str) -> Sequential:
    layers: list[Module] = []
    for index in range(LAYERS):
        linear = Linear(WIDTH, WIDTH, bias=False)
        normal_(linear.weight.data, 0.0, WIDTH**-0.5)
        layers.append(linear)
        if norm == "batch" and index < LAYERS - 1:
            layers.append(BatchNorm1d(WIDTH))
    return Sequential(*layers)


def judge(figures: Figures) -> list[Claim]:
    """Whether batch norm helps where nothing but linear maps are trained."""
    none, batch = (figures["loss"][norm][-1] for norm in NORMS)
    return [
        Claim(
            f"of {LAYERS} linear layers the loss is lower with batch norm after {figures['steps'][-1]:,} steps",
            bool(batch is not None and (none is None or batch < none)),
            "{:.4g} against {:.4g}".format(*numbers([batch, none])),
        )
    ]


def draw(figures: Figures, axes: Any) -> None:
    """The loss by steps."""
    for norm in NORMS:
        losses = numbers(figures["loss"][norm])
        axes.semilogy(figures["steps"][: len(losses)], losses, color=colour_of(norm), label=label_of(norm))
    finish(axes, f"{LAYERS} linear layers of {WIDTH}", "training steps", "sum of squared errors")
    legend(axes)
