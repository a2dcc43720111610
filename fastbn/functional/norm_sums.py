"""Sums for a batch norm, made by whoever writes its input, or the gradient to its output."""

import math
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from fastbn._checks import FLOAT64
from fastbn._memory import empty
from fastbn._views import as_flat
from fastbn.kernels.conv_panels import block_lanes

NOTHING = None, None, None, None, None  # the operands of no sums


def relu_operand(relu: bool, ceiling: float = math.inf) -> float | None:
    """A ReLU as convolutions take it: the number above which it cuts, or None for no ReLU."""
    return float(ceiling) if relu else None


def limits_of(relu: bool, ceiling: float = math.inf) -> tuple[float, float]:
    """The least and the greatest number that a convolution writes; others become these."""
    return (0.0, float(ceiling)) if relu else (-math.inf, math.inf)


class Sums(NamedTuple):
    """Sums of a convolution's channels-last output, for the batch norm that comes next.

    ``partials`` (2, pieces, C to a whole vector) float64, see ``kernels.conv_blocks``: of the output about ``shifts``,
    ``counts`` values a piece; or with ``source``, whose batch norm and ReLU are ``affine``, ``relu`` and
    ``ceiling``, of the output as a gradient.
    """

    partials: np.ndarray
    counts: np.ndarray
    shifts: np.ndarray | None = None
    source: np.ndarray | None = None
    affine: np.ndarray | None = None
    relu: bool = False
    ceiling: float = math.inf

    def operands(self) -> tuple[Any, ...]:
        """Shifts, source, relu, affine, partials, as kernels take them."""
        source = None if self.source is None else as_flat(self.source)
        return self.shifts, source, relu_operand(self.relu, self.ceiling), self.affine, self.partials


class Pieces(NamedTuple):
    """What of an array is summed together: ``counts`` values of a channel in each piece. room: of ``partials``."""

    counts: np.ndarray
    room: tuple[int, int, int]

    @classmethod
    def of(cls, counts: np.ndarray, channels: int, itemsize: int) -> Self:
        """Pieces of so many channels."""
        lanes = block_lanes(itemsize)
        return cls(counts.astype(np.float64), (2, counts.size, -(-channels // lanes) * lanes))

    def moments(self, dtype: np.dtype) -> Sums:
        """Room for the sums of an array of ``dtype``, about shifts."""
        return Sums(empty(self.room, FLOAT64), self.counts, empty(self.room[1:], dtype))


@lru_cache(maxsize=512)
def pieces_of(shape: tuple[int, ...], itemsize: int, images: int, rows: int) -> Pieces:
    """Of (N, C, H, W), ``rows`` rows of ``images`` images a piece; all rows, if several images."""
    count, channels, height, width = shape
    deep = np.minimum(images, count - np.arange(0, count, images))
    high = np.minimum(rows, height - np.arange(0, height, rows))
    return Pieces.of((deep[:, None] * high * width).reshape(-1), channels, itemsize)
