"""Group norm, with PyTorch's arguments and names."""

from typing import Any

import numpy as np

from fastbn._checks import check_float, check_int, check_number
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional.group_norm import group_norm_backward, group_norm_forward
from fastbn.nn.affine import AffineModule


class GroupNorm(AffineModule):
    """Group norm (Wu and He 2018, arXiv 1803.08494) of x (N, num_channels, *).

    num_groups: groups that the channels of an image are cut into. eps: added to the variance. affine: with weight and
    bias (num_channels,).
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        check_int("GroupNorm", "num_groups", num_groups, 1)
        check_int("GroupNorm", "num_channels", num_channels, 1)
        check_number("GroupNorm", "eps", eps, 0.0)
        if num_channels % num_groups:
            raise ArgumentError(f"GroupNorm: num_channels must be a multiple of {num_groups}, got {num_channels}")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        self._register_affine(num_channels, affine, affine)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "num_groups": self.num_groups,
            "num_channels": self.num_channels,
            "eps": self.eps,
            "affine": self.affine,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        """x with every group of channels of every image normalised."""
        check_float("GroupNorm", "x", x)
        if x.shape[1:2] != (self.num_channels,):
            raise ShapeError(f"GroupNorm: x must have {self.num_channels} channels on axis 1, got shape {x.shape}")
        y, saved = group_norm_forward(x, self.num_groups, *self.affine_arrays(), self.eps)
        self._keep(saved)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        dx, dweight, dbias = group_norm_backward(dy, self._take())
        self._accumulate(dweight, dbias)
        return dx
