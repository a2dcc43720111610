"""The networks of the experiments that are not in ``fastbn.models``, and how their weights start."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from fastbn.nn import init
from fastbn.nn.activation import ReLU, Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastbn.nn.containers import Flatten, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.pooling import MaxPool2d

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
    for inputs, outputs in pairwise(widths[:-1]):
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


def small_vgg(norm: str) -> Sequential:
    """Five 3 x 3 convolutions with ReLUs in three stages, and a linear layer, of (N, 1, 28, 28); Kaiming's weights."""
    layers: list[Module] = []
    inputs = 1
    for stage in ((8, 8), (16, 16), (32,)):
        for outputs in stage:
            convolution = Conv2d(inputs, outputs, 3, padding=1)
            init.kaiming_normal_(convolution.weight.data)
            layers += [convolution, *([BatchNorm2d(outputs)] if norm == "batch" else []), ReLU()]
            inputs = outputs
        layers.append(MaxPool2d(2))
    return Sequential(*layers, Flatten(), Linear(inputs * 9, 10))


def xavier(array: np.ndarray) -> None:
    """Normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 12), in place."""
    fans = (array.shape[0] + array.shape[1]) * array[0, 0].size
    init.normal_(array, 0.0, math.sqrt(2.0 / fans))


def small(array: np.ndarray) -> None:
    """Normal with standard deviation 0.01, whatever the size of the layer, in place."""
    init.normal_(array, 0.0, 0.01)


def zero(array: np.ndarray) -> None:
    """0, in place."""
    array[...] = 0


def initialise(model: Module, fill: Fill) -> None:
    """Fill every weight of a linear layer or convolution below ``model``; biases and norms keep what they have."""
    for parameter in model.parameters():
        if len(parameter.shape) > 1:
            fill(parameter.data)


INITIALISERS: dict[str, Fill] = {"zero": zero, "small": small, "xavier": xavier, "kaiming": init.kaiming_normal_}
