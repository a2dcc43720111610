"""Softmax cross-entropy."""

import numpy as np

from fastbn._checks import check_float, check_rank, check_shape, check_targets
from fastbn._threads import launch
from fastbn._views import as_flat, dense_c
from fastbn.errors import ArgumentError, ShapeError
from fastbn.kernels import loss as kernels


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over the rows of ``-log softmax(logits)[target]``, summed in float64.

    logits: (N, classes), float32 or float64. targets: (N,), integers in [0, classes).
    Raises ShapeError, DtypeError, ArgumentError.
    """
    return cross_entropy_forward(logits, targets)[0]


def cross_entropy_forward(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """``cross_entropy``, and for the backward pass (2, N) float64: each row's maximum m, and log sum exp(x - m)."""
    rows, labels = _operands("cross_entropy", logits, targets)
    losses, saved = np.empty(rows.shape[0]), np.empty((2, rows.shape[0]))
    outside = launch(kernels.cross_entropy, rows, labels, losses, saved[0], saved[1], work=8 * rows.size)
    _check_classes("cross_entropy", targets, outside, rows)
    return float(losses.sum()) / losses.size, saved


def cross_entropy_backward(logits: np.ndarray, targets: np.ndarray, saved: np.ndarray) -> np.ndarray:
    """dlogits (N, classes) of the mean loss: (softmax(logits) - one-hot(targets)) / N; saved: of the forward pass."""
    rows, labels = _operands("cross_entropy_backward", logits, targets)
    check_shape("cross_entropy_backward", "saved", saved, (2, rows.shape[0]), "as the forward pass gave it")
    dlogits = np.empty(rows.shape, rows.dtype)
    scale = 1.0 / rows.shape[0]
    tops, log_totals = np.ascontiguousarray(saved, np.float64)
    outside = launch(kernels.cross_entropy_backward, scale, rows, labels, tops, log_totals, dlogits, work=8 * rows.size)
    _check_classes("cross_entropy_backward", targets, outside, rows)
    return dlogits


def _check_classes(who: str, targets: np.ndarray, outside: int, logits: np.ndarray) -> None:
    """Raise for the row that a kernel says has no class for a target, if it is one."""
    if outside >= 0:
        raise ArgumentError(
            f"{who}: targets must lie in [0, {logits.shape[1]}), got values from {targets.min()} to {targets.max()}"
        )


def _operands(who: str, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    check_float(who, "logits", logits)
    check_rank(who, "logits", logits, (2,), "(N, classes)")
    if logits.size == 0:
        raise ShapeError(f"{who}: logits must hold at least one row and class, got shape {logits.shape}")
    check_targets(who, targets, logits.shape[0])
    labels = np.ascontiguousarray(targets, dtype=np.int64)
    return as_flat(dense_c(logits)).reshape(logits.shape), as_flat(labels)
