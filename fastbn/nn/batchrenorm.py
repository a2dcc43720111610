"""Batch renormalisation layers."""

from typing import Any

import numpy as np

from fastbn._checks import check_int, check_number
from fastbn.errors import ArgumentError
from fastbn.functional.norm_renorm import batch_renorm_forward
from fastbn.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d


class BatchRenorm(BatchNorm):
    """Batch renorm over axis 1 (Ioffe 2017, arXiv 1702.03275), for batches that are small or not drawn at random.

    In training x is normalised by the batch, then corrected towards the running statistics within limits that widen
    with ``num_batches_tracked``, see ``limits``; ``functional.batch_renorm`` has the formulas. In eval mode, folded and
    exported it is batch norm, whose parameters, buffers and names it has.

    eps, momentum, affine, frozen: as in ``BatchNorm``; the first two have the paper's values, momentum being the weight
    of the new batch. r_max, d_max: the limits in the end.
    warmup: batches of plain batch norm. r_steps, d_steps: batches after which r_max and d_max are reached.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.01,
        affine: bool = True,
        *,
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup: int = 5_000,
        r_steps: int = 40_000,
        d_steps: int = 25_000,
        frozen: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, frozen=frozen)
        who = type(self).__name__
        check_number(who, "r_max", r_max, 1.0)
        check_number(who, "d_max", d_max, 0.0)
        check_int(who, "warmup", warmup, 0)
        for name, steps in (("r_steps", r_steps), ("d_steps", d_steps)):
            check_int(who, name, steps, 0)
            if steps < warmup:
                raise ArgumentError(f"{who}: {name} must be at least warmup, {warmup}, got {steps}")
        self.r_max = r_max
        self.d_max = d_max
        self.warmup = warmup
        self.r_steps = r_steps
        self.d_steps = d_steps

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        names = "r_max", "d_max", "warmup", "r_steps", "d_steps"
        options = {**super().config(), **{name: getattr(self, name) for name in names}}
        del options["track_running_stats"]
        return options

    @property
    def limits(self) -> tuple[float, float]:
        """The limits of r and d for the next batch: 1 and 0 during ``warmup``, then on a line to r_max and d_max."""
        return 1.0 + (self.r_max - 1.0) * self._way(self.r_steps), self.d_max * self._way(self.d_steps)

    def _way(self, steps: int) -> float:
        """From 0 to 1."""
        seen = int(self.num_batches_tracked)
        if seen >= steps:
            return 1.0
        return max(0.0, (seen - self.warmup) / (steps - self.warmup))

    def set_running_stats(self, mean: np.ndarray, var: np.ndarray, batches: int) -> None:
        """As ``BatchNorm`` does, but the schedule goes on where it was."""
        super().set_running_stats(mean, var, int(self.num_batches_tracked))

    def forward(self, x: np.ndarray, *, relu: bool = False) -> np.ndarray:
        """As ``BatchNorm``'s, with the corrections in training mode unless frozen."""
        mean, var, momentum, training = self.statistics()
        if not training or mean is None or var is None:
            return super().forward(x, relu=relu)
        self._check_input(x)
        r_max, d_max = self.limits
        y, saved = batch_renorm_forward(
            x,
            *self.affine_arrays(),
            running_mean=mean,
            running_var=var,
            momentum=momentum,
            eps=self.eps,
            r_max=r_max,
            d_max=d_max,
            relu=relu,
        )
        self.num_batches_tracked += int(x.size > 0)
        self._keep(saved)
        return y


class BatchRenorm1d(BatchRenorm, BatchNorm1d):
    """``BatchRenorm`` of x (N, C) or (N, C, L)."""


class BatchRenorm2d(BatchRenorm, BatchNorm2d):
    """``BatchRenorm`` of x (N, C, H, W)."""


class BatchRenorm3d(BatchRenorm, BatchNorm3d):
    """``BatchRenorm`` of x (N, C, D, H, W)."""
