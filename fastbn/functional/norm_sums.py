"""Sums for a batch norm, made by whoever writes its input, or the gradient to its output."""

import math
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

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

    def about_shifts(self, dtype: np.dtype) -> Self:
        """As moments, with room for their shifts."""
        return self._replace(shifts=np.empty(self.partials.shape[1:], dtype))

    def operands(self) -> tuple[Any, ...]:
        """Shifts, source, relu, affine, partials, as kernels take them."""
        source = None if self.source is None else as_flat(self.source)
        return self.shifts, source, relu_operand(self.relu, self.ceiling), self.affine, self.partials


def sums_for(shape: tuple[int, ...], itemsize: int, images: int, rows: int) -> Sums:
    """Room for the sums of (N, C, H, W), ``rows`` rows of ``images`` images a piece; all rows, if several images."""
    counts, lanes = _counts(shape[0], shape[2], shape[3], images, rows), block_lanes(itemsize)
    return Sums(np.empty((2, counts.size, -(-shape[1] // lanes) * lanes)), counts)


@lru_cache(maxsize=512)
def _counts(count: int, height: int, width: int, images: int, rows: int) -> np.ndarray:
    """Values of a channel in each piece."""
    deep = np.minimum(images, count - np.arange(0, count, images))
    high = np.minimum(rows, height - np.arange(0, height, rows))
    return (deep[:, None] * high * width).reshape(-1).astype(np.float64)
