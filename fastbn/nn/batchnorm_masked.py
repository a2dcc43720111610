"""Batch norm layers for padded batches."""

import numpy as np

from fastbn.functional.norm_masked import (
    MaskedBatchNormSaved,
    masked_batch_norm_backward,
    masked_batch_norm_forward,
)
from fastbn.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d


class MaskedBatchNorm(BatchNorm):
    """Batch norm over what a mask keeps, for sequences and images that are padded to one size.

    ``forward(x, mask)`` is ``functional.masked_batch_norm``; without a mask it is ``BatchNorm``, as it is folded and
    exported. Arguments, parameters, buffers and names are those of ``BatchNorm``.
    """

    def forward(self, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:  # type: ignore[override]
        """x normalised where ``mask`` (N, *spatial) is True or above 0, and 0 elsewhere.

        mask: bool, or weights of at least 0. Running statistics move in training mode unless frozen or all is masked.
        """
        if mask is None:
            return super().forward(x)
        self._check_input(x)
        mean, var, momentum, training = self.statistics()
        y, saved = masked_batch_norm_forward(
            x,
            mask,
            *self.affine_arrays(),
            running_mean=mean,
            running_var=var,
            momentum=momentum,
            eps=self.eps,
            training=training,
        )
        if training and mean is not None and saved.count:
            self.count_batch()
        self._keep(saved)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x, 0 where it was masked."""
        if not isinstance(self._saved, MaskedBatchNormSaved):
            return super().backward(dy)
        dx, dweight, dbias = masked_batch_norm_backward(dy, self._take())
        self._accumulate(dweight, dbias)
        return dx


class MaskedBatchNorm1d(MaskedBatchNorm, BatchNorm1d):
    """``MaskedBatchNorm`` of x (N, C, L) with mask (N, L), or of x (N, C) with mask (N,)."""


class MaskedBatchNorm2d(MaskedBatchNorm, BatchNorm2d):
    """``MaskedBatchNorm`` of x (N, C, H, W) with mask (N, H, W)."""
