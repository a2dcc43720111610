"""The networks of the experiments that are not in ``fastbn.models``, and how their weights start."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fastbn.functional.weight_norm import norm_except_dim
from fastbn.nn import init
from fastbn.nn.activation import ReLU, Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastbn.nn.containers import Flatten, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.pooling import MaxPool2d
from fastbn.nn.weight_norm import WeightNorm

Fill = Callable[[np.ndarray], Any]


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


def small(array: np.ndarray) -> None:
    """Normal with standard deviation 0.01, whatever the size of the layer, in place."""
    init.normal_(array, 0.0, 0.01)


def initialise(model: Module, fill: Fill) -> None:
    """Fill every weight of a linear layer or convolution below ``model``; biases and norms keep what they have.

    The lengths of weight norm become those of the new weights.
    """
    weight_norms = [module for module in model.modules() if isinstance(module, WeightNorm)]
    lengths = {id(module.original0) for module in weight_norms}
    for parameter in model.parameters():
        if len(parameter.shape) > 1 and id(parameter) not in lengths:
            fill(parameter.data)
    for module in weight_norms:
        module.original0.data[...] = norm_except_dim(module.original1.data, module.dim)


INITIALISERS: dict[str, Fill] = {
    "zero": init.zeros_,
    "small": small,
    "xavier": init.xavier_normal_,
    "kaiming": init.kaiming_normal_,
    "orthogonal": init.orthogonal_,
}
