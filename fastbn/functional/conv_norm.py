"""What a convolution does for the batch norms before and after it, on its way through memory."""

from typing import Any, NamedTuple

import numpy as np

from fastbn._views import as_flat
from fastbn.kernels.conv_panels import block_lanes


class Prologue(NamedTuple):
    """What happens to a channels-last array before it is convolved; see ``kernels.conv_fill``.

    affine (3, C): it is normalised, and cut by a ReLU if ``relu``. slopes (4, C): it is dy, and becomes the gradient
    to ``partner``, the channels-last input of the batch norm and ReLU that ``affine`` stands for.
    """

    affine: np.ndarray | None = None
    relu: bool = False
    slopes: np.ndarray | None = None
    partner: np.ndarray | None = None

    def operands(self) -> tuple[Any, ...]:
        """Partner, relu, affine, slopes, floor, as kernels take them."""
        if self.slopes is None:
            return None, None, self.affine, None, 0.0 if self.relu else -np.inf
        assert self.partner is not None
        return as_flat(self.partner), True if self.relu else None, self.affine, self.slopes, -np.inf


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


PLAIN = Prologue()
NOTHING = None, None, None, None, None  # the operands of no sums


def sums_for(out: np.ndarray, rows: int) -> Sums:
    """Room for the sums of ``out``, ``rows`` of its rows a piece."""
    images, channels, height, width = out.shape
    lanes = block_lanes(out.itemsize)
    pieces = -(-height // rows)
    lengths = np.minimum(rows, height - np.arange(pieces) * rows) * width
    partials = np.empty((2, images * pieces, -(-channels // lanes) * lanes))
    return Sums(partials, np.tile(lengths.astype(np.float64), images))
