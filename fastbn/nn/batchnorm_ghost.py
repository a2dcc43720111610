"""Ghost batch norm layers."""

from typing import Any

import numpy as np

from fastbn._checks import check_int
from fastbn.functional.norm_ghost import (
    GhostBatchNormSaved,
    ghost_batch_norm_backward,
    ghost_batch_norm_forward,
    virtual_batches,
)
from fastbn.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d


class GhostBatchNorm(BatchNorm):
    """Batch norm of virtual batches (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741), for batches that are large.

    In training every ``virtual_batch_size`` samples are normalised by themselves; see ``functional.ghost_batch_norm``,
    also for what is left over. Each virtual batch moves the running statistics and counts in ``num_batches_tracked``.
    In eval mode, folded and exported it is batch norm. Everything else as in ``BatchNorm``.
    """

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int = 128,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        frozen: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, frozen=frozen)
        check_int(type(self).__name__, "virtual_batch_size", virtual_batch_size, 1)
        self.virtual_batch_size = virtual_batch_size

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {**super().config(), "virtual_batch_size": self.virtual_batch_size}

    def forward(self, x: np.ndarray, *, relu: bool = False) -> np.ndarray:
        """As ``BatchNorm``'s, with virtual batches in training mode unless frozen."""
        mean, var, momentum, _ = self.statistics()
        if not self.training or self.frozen:
            return super().forward(x, relu=relu)
        self._check_input(x)
        count = len(virtual_batches(x.shape, self.virtual_batch_size)) - 1
        momenta = [momentum] * count
        if self.momentum is None and mean is not None:
            momenta = [1.0 / (int(self.num_batches_tracked) + number) for number in range(1, count + 1)]
        y, saved = ghost_batch_norm_forward(
            x,
            self.virtual_batch_size,
            *self.affine_arrays(),
            running_mean=mean,
            running_var=var,
            momentum=momenta,
            eps=self.eps,
            relu=relu,
        )
        if mean is not None and x.size:
            self.num_batches_tracked += count
        self._keep(saved)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        if not isinstance(self._saved, GhostBatchNormSaved):
            return super().backward(dy)
        dx, dweight, dbias = ghost_batch_norm_backward(dy, self._take())
        self._accumulate(dweight, dbias)
        return dx


class GhostBatchNorm1d(GhostBatchNorm, BatchNorm1d):
    """``GhostBatchNorm`` of x (N, C) or (N, C, L)."""


class GhostBatchNorm2d(GhostBatchNorm, BatchNorm2d):
    """``GhostBatchNorm`` of x (N, C, H, W)."""


class GhostBatchNorm3d(GhostBatchNorm, BatchNorm3d):
    """``GhostBatchNorm`` of x (N, C, D, H, W)."""
