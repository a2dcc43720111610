"""The networks of the experiments that are not in ``fastbn.models``, and how their weights start."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from fastbn.nn import init
from fastbn.nn.activation import ReLU, Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastbn.nn.containers import Flatten, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.model_init import init_weights_
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.pooling import MaxPool2d

Fill = Callable[[Parameter], object]


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
    model = Sequential(*layers, Linear(widths[-2], widths[-1]))
    if fill is not None:
        init_weights_(model, fill)
    return model


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


def small(weight: Parameter) -> None:
    """Normal with standard deviation 0.01, whatever the size of the layer, in place."""
    init.normal_(weight, 0.0, 0.01)


INITIALISERS: dict[str, Fill] = {
    "zero": init.zeros_,
    "small": small,
    "xavier": init.xavier_normal_,
    "kaiming": init.kaiming_normal_,
    "orthogonal": init.orthogonal_,
}
