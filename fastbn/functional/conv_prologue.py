"""What happens to a convolution's operand before it is convolved: the batch norm of the layer before it, or behind."""

import math
from typing import Any, NamedTuple

import numpy as np

from fastbn._checks import FLOAT64
from fastbn._memory import empty
from fastbn._views import as_flat
from fastbn.functional.norm_sums import Pieces, Sums, relu_operand


class Prologue(NamedTuple):
    """What happens to a channels-last array before it is convolved; see ``kernels.conv_fill``.

    affine (3, C): it is normalised, and cut by a ReLU if ``relu``, at ``ceiling`` too. slopes (4, C): it is dy, and
    becomes the gradient to ``partner``, the channels-last input of the batch norm and ReLU that ``affine`` stands for.
    """

    affine: np.ndarray | None = None
    relu: bool = False
    ceiling: float = math.inf
    slopes: np.ndarray | None = None
    partner: np.ndarray | None = None

    def operands(self) -> tuple[Any, ...]:
        """Partner, relu, affine, slopes, floor, as kernels take them."""
        if self.slopes is None:
            ceiling = None if self.affine is None else self.ceiling if self.relu else math.inf
            return None, ceiling, self.affine, None, 0.0 if self.relu else -math.inf
        assert self.partner is not None
        return as_flat(self.partner), relu_operand(self.relu, self.ceiling), self.affine, self.slopes, -math.inf

    def sums_through(self, pieces: Pieces, x: np.ndarray) -> Sums:
        """Room for the sums of a gradient, for the batch norm and ReLU that ``x`` goes through here."""
        return Sums(empty(pieces.room, FLOAT64), pieces.counts, None, x, self.affine, self.relu, self.ceiling)


PLAIN = Prologue()
