"""The fully connected networks of the experiments."""

from collections.abc import Callable, Sequence

import numpy as np

from fastbn.nn.activation import Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d
from fastbn.nn.containers import Sequential
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module

Fill = Callable[[np.ndarray], None]


def perceptron(
    widths: Sequence[int],
    *,
    norm: Callable[[int], Module] | None = None,
    activation: Callable[[], Module] = Sigmoid,
    fill: Fill | None = None,
) -> Sequential:
    """Linear layers from width to width of rows (N, widths[0]), an activation after each but the last.

    norm: of so many features, before every activation; None for none. fill: sets every weight; biases are 0 then.
    """
    layers: list[Module] = []
    for inputs, outputs in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [Linear(inputs, outputs), *([norm(outputs)] if norm else []), activation()]
    layers.append(Linear(widths[-2], widths[-1]))
    for layer in layers:
        if fill is not None and isinstance(layer, Linear):
            fill(layer.weight.data)
            layer.bias.data[...] = 0
    return Sequential(*layers)


def pair(norm: str) -> Callable[[int], Module] | None:
    """Batch norm for "batch", nothing for "none"."""
    return BatchNorm1d if norm == "batch" else None
