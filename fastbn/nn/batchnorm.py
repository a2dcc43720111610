"""Batch norm layers, with PyTorch's arguments, buffers and names."""

from typing import Any, Self

import numpy as np

from fastbn._checks import check_float, check_int, check_number, check_rank
from fastbn.errors import ShapeError
from fastbn.functional.norm import BatchNormSaved, batch_norm_backward, batch_norm_forward
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter


class BatchNorm(Module):
    """Batch norm over axis 1 (Ioffe and Szegedy 2015, arXiv 1502.03167).

    eps: added to the variance. momentum: weight of the new batch, or None for the mean of all batches so far.
    affine: with weight and bias (num_features,). track_running_stats: with running_mean, running_var (unbiased) and
    num_batches_tracked; without them batch statistics serve in eval mode too.
    frozen: normalise with the running statistics, unchanged, in training mode also; see ``freeze``.
    """

    ranks: tuple[int, ...]
    axes: str

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        frozen: bool = False,
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
        self.frozen = frozen
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        if affine:
            self.weight = Parameter(np.ones(num_features, np.float32))
            self.bias = Parameter(np.zeros(num_features, np.float32))
        self.register_buffer("running_mean", np.zeros(num_features, np.float32) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(num_features, np.float32) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if track_running_stats else None)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        options = {
            "num_features": self.num_features,
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
            "track_running_stats": self.track_running_stats,
        }
        return {**options, "frozen": True} if self.frozen else options

    def freeze(self) -> Self:
        """Use the running statistics as constants from now on, in training mode too, until ``unfreeze``."""
        self.frozen = True
        return self

    def unfreeze(self) -> Self:
        """Undo ``freeze``."""
        self.frozen = False
        return self

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batches seen."""
        if self.track_running_stats:
            self.running_mean[...] = 0
            self.running_var[...] = 1
            self.num_batches_tracked[...] = 0

    def set_running_stats(self, mean: np.ndarray, var: np.ndarray, batches: int) -> None:
        """Statistics estimated elsewhere: mean and unbiased variance (C,), and the number of batches seen by now."""
        self.running_mean[...] = mean
        self.running_var[...] = var
        self.num_batches_tracked[...] = batches

    @property
    def saved(self) -> BatchNormSaved | None:
        """What the last training-mode forward kept: batch mean, variance and count among it."""
        return self._saved

    def forward(self, x: np.ndarray, *, relu: bool = False) -> np.ndarray:
        """x with every channel normalised, then max(y, 0) if ``relu``.

        Running statistics move in training mode unless frozen.
        """
        self._check_input(x)
        mean, var, momentum, training = self.statistics()
        y, saved = batch_norm_forward(
            x,
            *self.affine_arrays(),
            running_mean=mean,
            running_var=var,
            momentum=momentum,
            eps=self.eps,
            relu=relu,
            training=training,
        )
        if training and mean is not None and x.size:
            self.count_batch()
        self._keep(saved)
        return y

    def _check_input(self, x: np.ndarray) -> None:
        who = type(self).__name__
        check_float(who, "x", x)
        check_rank(who, "x", x, self.ranks, self.axes)
        if x.shape[1] != self.num_features:
            raise ShapeError(f"{who}: x must have {self.num_features} channels on axis 1, got shape {x.shape}")

    def affine_arrays(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weight and bias as arrays, None where there is none."""
        weight, bias = self.parameter("weight"), self.parameter("bias")
        return None if weight is None else weight.data, None if bias is None else bias.data

    def statistics(self) -> tuple[np.ndarray | None, np.ndarray | None, float, bool]:
        """What the next forward pass is given: running mean and variance or None, momentum, and whether it trains."""
        updates = self.training and not self.frozen
        if not self.track_running_stats:
            return None, None, 0.0, True
        buffers = self._buffers
        return buffers["running_mean"], buffers["running_var"], self._momentum() if updates else 0.0, updates

    def count_batch(self) -> None:
        """The running statistics have moved once more."""
        seen = self._buffers["num_batches_tracked"]
        if seen is not None:
            seen[...] = seen.item() + 1

    def _momentum(self) -> float:
        return 1.0 / (int(self.num_batches_tracked) + 1) if self.momentum is None else self.momentum

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        dx, dweight, dbias, _ = batch_norm_backward(dy, self._take())
        self._accumulate(dweight, dbias)
        return dx

    def _accumulate(self, dweight: np.ndarray | None, dbias: np.ndarray | None) -> None:
        if dweight is not None and dbias is not None:
            self.weight.accumulate(dweight)
            self.bias.accumulate(dbias)


class BatchNorm1d(BatchNorm):
    """``BatchNorm`` of x (N, C) or (N, C, L)."""

    ranks = (2, 3)
    axes = "(N, C) or (N, C, L)"


class BatchNorm2d(BatchNorm):
    """``BatchNorm`` of x (N, C, H, W)."""

    ranks = (4,)
    axes = "(N, C, H, W)"


class BatchNorm3d(BatchNorm):
    """``BatchNorm`` of x (N, C, D, H, W)."""

    ranks = (5,)
    axes = "(N, C, D, H, W)"
