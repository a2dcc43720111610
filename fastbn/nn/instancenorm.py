"""Instance norm layers, with PyTorch's arguments, buffers and names."""

from typing import Any

import numpy as np

from fastbn._checks import check_float, check_int, check_number, check_rank
from fastbn.errors import ShapeError
from fastbn.functional.instance_norm import instance_norm_backward, instance_norm_forward
from fastbn.nn.affine import AffineModule


class InstanceNorm(AffineModule):
    """Instance norm (Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022): every channel of every image by itself.

    eps: added to the variance. momentum: weight of the new batch, or None for 0. affine: with weight and bias
    (num_features,). track_running_stats: with running_mean and running_var (unbiased), which move in training mode and
    are the statistics in eval mode: a batch norm. num_batches_tracked is there for PyTorch's checkpoints and not
    counted. x may lack its batch axis.
    """

    ranks: tuple[int, ...]
    axes: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        check_int(who, "num_features", num_features, 1)
        check_number(who, "eps", eps, 0.0)
        if momentum is not None:
            check_number(who, "momentum", momentum, 0.0, 1.0)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self._register_affine(num_features, affine, affine)
        self.register_buffer("running_mean", np.zeros(num_features, np.float32) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(num_features, np.float32) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if track_running_stats else None)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "num_features": self.num_features,
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "track_running_stats": self.track_running_stats,
        }

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1."""
        if self.track_running_stats:
            self.running_mean[...] = 0
            self.running_var[...] = 1

    def forward(self, x: np.ndarray) -> np.ndarray:
        """x with every channel of every image normalised; running statistics move in training mode."""
        who = type(self).__name__
        check_float(who, "x", x)
        check_rank(who, "x", x, self.ranks, self.axes)
        images = x if x.ndim == self.ranks[1] else x[None]
        if images.shape[1] != self.num_features:
            axis = images.ndim - x.ndim
            raise ShapeError(f"{who}: x must have {self.num_features} channels on axis {1 - axis}, got shape {x.shape}")
        use_input_stats = self.training or not self.track_running_stats
        momentum = 0.0 if self.momentum is None else self.momentum
        y, saved = instance_norm_forward(
            images, self.running_mean, self.running_var, *self.affine_arrays(), use_input_stats, momentum, self.eps
        )
        self._keep(saved)
        return y.reshape(x.shape) if y.ndim != x.ndim else y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        saved = self._take()
        dx, dweight, dbias = instance_norm_backward(dy if dy.ndim == saved.x.ndim else dy[None], saved)
        self._accumulate(dweight, dbias)
        return dx.reshape(dy.shape) if dx.ndim != dy.ndim else dx


class InstanceNorm1d(InstanceNorm):
    """``InstanceNorm`` of x (N, C, L) or (C, L)."""

    ranks = (2, 3)
    axes = "(C, L) or (N, C, L)"


class InstanceNorm2d(InstanceNorm):
    """``InstanceNorm`` of x (N, C, H, W) or (C, H, W)."""

    ranks = (3, 4)
    axes = "(C, H, W) or (N, C, H, W)"


class InstanceNorm3d(InstanceNorm):
    """``InstanceNorm`` of x (N, C, D, H, W) or (C, D, H, W)."""

    ranks = (4, 5)
    axes = "(C, D, H, W) or (N, C, D, H, W)"
