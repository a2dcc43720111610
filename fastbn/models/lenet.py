"""LeNet-5 (LeCun et al. 1998) with batch norm after every hidden layer: 44,878 parameters."""

from fastbn.errors import ArgumentError
from fastbn.nn.activation import Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastbn.nn.containers import Flatten, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.pooling import AvgPool2d

NORMS = ("batch", "none")


def lenet(num_classes: int = 10, in_channels: int = 1, norm: str = "batch") -> Sequential:
    """LeNet for (N, in_channels, 28, 28): sigmoids and average pooling, as in the original.

    norm: "batch", or "none" for the same network without. Raises ArgumentError.
    """
    if norm not in NORMS:
        raise ArgumentError(f"lenet: norm must be one of {', '.join(NORMS)}, got {norm!r}")

    def norm2d(channels: int) -> list[Module]:
        return [BatchNorm2d(channels)] if norm == "batch" else []

    def norm1d(features: int) -> list[Module]:
        return [BatchNorm1d(features)] if norm == "batch" else []

    return Sequential(
        Conv2d(in_channels, 6, 5),
        *norm2d(6),
        Sigmoid(),
        AvgPool2d(2),
        Conv2d(6, 16, 5),
        *norm2d(16),
        Sigmoid(),
        AvgPool2d(2),
        Flatten(),
        Linear(256, 120),
        *norm1d(120),
        Sigmoid(),
        Linear(120, 84),
        *norm1d(84),
        Sigmoid(),
        Linear(84, num_classes),
    )
