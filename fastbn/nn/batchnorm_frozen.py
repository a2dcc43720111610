"""Batch norm whose parameters and statistics are constants, as torchvision has it."""

from typing import Any, Self

import numpy as np

from fastbn.errors import StateError
from fastbn.functional.norm import batch_norm_backward
from fastbn.nn.batchnorm import BatchNorm2d


class FrozenBatchNorm2d(BatchNorm2d):
    """Batch norm of x (N, C, H, W) with constants: weight, bias, running_mean and running_var (C,) are buffers.

    Both modes are eval mode; backward gives dx alone, which reads nothing but dy. It takes the ``state_dict`` of a
    BatchNorm2d, whose num_batches_tracked is passed over, and is folded, fused and exported as one. To train weight and
    bias with constant statistics, use ``BatchNorm2d(...).freeze()``.
    """

    ignored_state = ("num_batches_tracked",)

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps, frozen=True)
        mean, var = self.running_mean, self.running_var
        self._parameters.clear()
        self._buffers.clear()
        self.register_buffer("weight", np.ones_like(mean))
        self.register_buffer("bias", np.zeros_like(mean))
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {"num_features": self.num_features, "eps": self.eps}

    def affine_arrays(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weight and bias."""
        return self._buffers["weight"], self._buffers["bias"]

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1."""
        self.running_mean[...] = 0
        self.running_var[...] = 1

    def unfreeze(self) -> Self:
        """Raises StateError: there is nothing to train."""
        raise StateError(
            "FrozenBatchNorm2d.unfreeze: the layer must be a BatchNorm2d, got one whose weights are buffers; load its "
            "state_dict into a BatchNorm2d with strict=False"
        )

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        return batch_norm_backward(dy, self._take(), dx_only=True)[0]
