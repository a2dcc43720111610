"""Sums for a batch norm, made by whoever writes its input, or the gradient to its output."""

from typing import Any, NamedTuple

import numpy as np

from fastbn._views import as_flat
from fastbn.kernels.conv_panels import block_lanes

NOTHING = None, None, None, None, None  # the operands of no sums


class Sums(NamedTuple):
    """Sums of a convolution's channels-last output, for the batch norm that comes next.

    ``partials`` (2, pieces, C to a whole vector) float64, see ``kernels.conv_blocks``: of the output about ``shifts``,
    ``counts`` values a piece; or with ``source``, whose batch norm and ReLU are ``affine`` and ``relu``, of the
    output as a gradient.
    """

    partials: np.ndarray
    counts: np.ndarray
    shifts: np.ndarray | None = None
    source: np.ndarray | None = None
    affine: np.ndarray | None = None
    relu: bool = False

    def operands(self) -> tuple[Any, ...]:
        """Shifts, source, relu, affine, partials, as kernels take them."""
        source = None if self.source is None else as_flat(self.source)
        return self.shifts, source, True if self.relu else None, self.affine, self.partials


def sums_for(out: np.ndarray, rows: int) -> Sums:
    """Room for the sums of ``out``, ``rows`` of its rows a piece."""
    images, channels, height, width = out.shape
    lanes = block_lanes(out.itemsize)
    pieces = -(-height // rows)
    lengths = np.minimum(rows, height - np.arange(pieces) * rows) * width
    partials = np.empty((2, images * pieces, -(-channels // lanes) * lanes))
    return Sums(partials, np.tile(lengths.astype(np.float64), images))
