"""Training for experiments: so many steps, each batch full, the loss of every step."""

from collections.abc import Iterator

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Split
from fastbn.functional.samples import samples
from fastbn.nn.loss import CrossEntropyLoss
from fastbn.nn.module import Module
from fastbn.optim import Optimizer
from fastbn.training import evaluate


def flat(split: Split) -> Split:
    """The images as rows, (N, pixels)."""
    return Split(split.images.reshape(len(split.images), -1), split.labels)


def batches(split: Split, size: int, steps: int, seed: int) -> Iterator[Split]:
    """``steps`` batches of exactly ``size`` samples, or all there are; every pass in a new order drawn from ``seed``.

    A ragged end of a pass is left out: batch statistics of fewer samples are another experiment.
    """
    size = min(size, len(split.labels))
    per_pass = len(split.labels) // size
    for step in range(steps):
        number, position = divmod(step, per_pass)
        if position == 0:
            order = np.random.default_rng([seed, number]).permutation(len(split.labels))
        chosen = order[position * size : (position + 1) * size]
        yield Split(samples(split.images, chosen), split.labels[chosen])


def descend(
    model: Module, split: Split, optimizer: Optimizer, progress: Bar, *, batch_size: int, steps: int, seed: int
) -> Iterator[float]:
    """Train ``model`` in place, one step for every loss that is asked for.

    It ends early after a loss that is not finite. Between two steps the model may be probed and left in any mode.
    """
    for step, batch in enumerate(batches(split, batch_size, steps, seed)):
        loss = take_step(model, batch, optimizer)
        progress.advance()
        yield loss
        if not np.isfinite(loss):
            progress.advance(steps - step - 1)
            return


def take_step(model: Module, batch: Split, optimizer: Optimizer) -> float:
    """The loss of a batch, and the step that it asks for, unless it is not finite."""
    criterion = CrossEntropyLoss()
    model.train()
    optimizer.zero_grad()
    loss = float(criterion(model(batch.images), batch.labels))
    if np.isfinite(loss):
        model.backward(criterion.backward(), need_dx=False)
        optimizer.step()
    return loss


def accuracy(model: Module, split: Split) -> float:
    """Share of correct answers in eval mode."""
    return evaluate(model, (split.images, split.labels))[1]


def first(split: Split, count: int) -> Split:
    """The first ``count`` samples."""
    return Split(split.images[:count], split.labels[:count])


def spaced(steps: int, count: int) -> list[int]:
    """At most ``count`` different numbers of steps from 1 to ``steps``, evenly apart, the last among them."""
    return sorted({int(step) for step in np.linspace(0, steps, count + 1).round()[1:] if step >= 1})
