"""Batch norm of padded batches: statistics over what a mask keeps, each position with its weight."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastbn._checks import check_running_stats, check_same_dtype, check_shape
from fastbn._threads import launch
from fastbn._views import (
    as_flat,
    as_ncs,
    check_out,
    compute_dtype,
    dense,
    empty_like,
    in_order_of,
    is_channels_last,
    native,
    storage,
)
from fastbn.errors import ArgumentError, DtypeError
from fastbn.functional.norm import as_parameters, check_forward, check_out_of, check_statistics, keep_moved
from fastbn.functional.norm_kernels import CHUNK_ROWS, MATRIX_CHUNKS, PORTION
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.batch_norm_masked import masked_map_matrix, masked_map_rows, masked_sums_matrix, masked_sums_rows
from fastbn.kernels.batch_norm_partials import finish_moments, finish_products, finish_running
from fastbn.kernels.channels import MEAN, NEAR_MEAN, VAR
from fastbn.kernels.sums import chunk_count, chunk_grid


@dataclass(slots=True, eq=False)
class MaskedBatchNormSaved:
    """What ``masked_batch_norm_backward`` needs of the forward pass.

    x: the input. weights: of its positions, scaled so that their sum is ``count``, see ``masked_batch_norm``.
    stats, affine: as kernels left them.
    """

    x: np.ndarray
    weights: np.ndarray
    weight: np.ndarray | None
    stats: np.ndarray
    affine: np.ndarray
    count: float
    batch_stats: bool
    has_bias: bool

    @property
    def mean(self) -> np.ndarray:
        """(C,) float64."""
        return self.stats[MEAN]

    @property
    def var(self) -> np.ndarray:
        """(C,) float64, biased."""
        return self.stats[VAR]


def masked_batch_norm(
    x: np.ndarray,
    mask: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Batch norm of what ``mask`` keeps of ``x``; y is 0 elsewhere, and what x holds there does not matter, NaN too.

    x: (N, C, *spatial) as in ``batch_norm``. mask: (N, *spatial), bool, or numbers of at least 0 as weights w:
    mean = sum w x / sum w, var = sum w (x - mean)^2 / sum w; what is above 0 is normalised, by 1 and not by w.
    A factor common to all weights does not matter. A batch counts n = (sum w)^2 / sum w^2 values (Kish 1965), for a
    bool mask the number of positions kept: the running variance is moved by var n / (n - 1). Where nothing is kept,
    y is 0 and running statistics stay as they are. Everything else as in ``batch_norm``.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "masked_batch_norm"
    if out is not None:
        check_out_of(who, out, x, may_be={"x": x})
    return _forward(who, x, mask, weight, bias, running_mean, running_var, momentum, eps, out, training)[0]


def masked_batch_norm_forward(
    x: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    out: np.ndarray | None = None,
    training: bool = True,
) -> tuple[np.ndarray, MaskedBatchNormSaved]:
    """``masked_batch_norm`` and what its backward pass needs: (y, saved). ``out`` may not be ``x``."""
    who = "masked_batch_norm_forward"
    if out is not None:
        check_out_of(who, out, x, apart_from={"x": x})
    return _forward(who, x, mask, weight, bias, running_mean, running_var, momentum, eps, out, training)


def masked_batch_norm_backward(
    dy: np.ndarray, saved: MaskedBatchNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``masked_batch_norm_forward``: (dx, dweight, dbias), None for what was not given.

    With sums over what was kept, xhat = (x - mean) / std and W = sum w: dbias = sum dy, dweight = sum dy xhat,
    dx = weight / std (dy - w / W (dbias + xhat dweight)), 0 elsewhere; the last term is absent when the statistics were
    constants. The mask is a constant. out: dx, may be ``dy``. Raises ShapeError, DtypeError, ArgumentError.
    """
    who, x = "masked_batch_norm_backward", saved.x
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, x.shape)
    if out is not None:
        check_out(who, out, x.shape, x, may_be={"dy": dy}, apart_from={"x": x})
    dx = empty_like(x) if out is None else out
    dtype = compute_dtype(x.dtype) if saved.weight is None else native(saved.weight)
    gradients = np.zeros((2, x.shape[1]), dtype)
    if x.size:
        lying, slopes = _Lying(x), np.zeros((4, x.shape[1]), saved.affine.dtype)
        grad = in_order_of(dy, x)
        if saved.count:
            partials = lying.sums(grad, saved.weights, saved.affine)
            finish_products(
                x.shape[1], saved.count, partials, saved.batch_stats, saved.stats, saved.affine, slopes, gradients
            )
        lying.map(grad, saved.weights, saved.affine, slopes, dx)
    return dx, None if saved.weight is None else gradients[0], gradients[1] if saved.has_bias else None


def _forward(
    who: str,
    x: np.ndarray,
    mask: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    eps: float,
    out: np.ndarray | None,
    training: bool,
) -> tuple[np.ndarray, MaskedBatchNormSaved]:
    channels = check_forward(who, x, weight, bias, running_mean, running_var, momentum, eps)
    check_statistics(who, running_mean, running_var, training)
    check_running_stats(who, running_mean, running_var, channels)
    weights, count = _weights(who, mask, x, training)
    source = dense(x)
    y = empty_like(source) if out is None else out
    parameters = as_parameters(weight, bias, running_mean, running_var)
    stats, affine = np.zeros((3, channels)), np.zeros((3, channels), compute_dtype(x.dtype))
    if x.size:
        lying = _Lying(source)
        if not training:
            finish_running(*parameters, float(eps), stats, affine)
        elif count:
            affine[NEAR_MEAN] = _first_kept(source, weights)
            partials = lying.sums(None, weights, affine).sum(axis=1, keepdims=True)
            counts, shifts = np.array([count]), affine[NEAR_MEAN:][:1].copy()
            finish_moments(counts, shifts, partials, *parameters, float(momentum), float(eps), stats, affine)
            keep_moved(parameters, running_mean, running_var)
        lying.map(None, weights, affine, np.zeros((4, channels), affine.dtype), y)
    return y, MaskedBatchNormSaved(source, weights, weight, stats, affine, count, training, bias is not None)


def _weights(who: str, mask: Any, x: np.ndarray, training: bool) -> tuple[np.ndarray, float]:
    """``mask`` (N, *spatial) in the dtype that x is computed in, scaled so that its sum is what it counts for."""
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "biuf":
        kind = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise DtypeError(f"{who}: mask must be a NumPy array of bool or numbers, got {kind}")
    check_shape(who, "mask", mask, (x.shape[0], *x.shape[2:]), "that of x without its channels")
    weights = mask.astype(np.float64, order="C")
    if mask.dtype.kind != "b" and mask.size:
        if not (weights.min() >= 0 and np.isfinite(weights.max())):
            worst = weights[~(weights >= 0) | ~np.isfinite(weights)][0]
            raise ArgumentError(f"{who}: mask must be finite and at least 0, got {worst}")
        weights /= weights.max() or 1.0
        weights *= weights.sum() / (np.square(weights).sum() or 1.0)
    weights = weights.astype(compute_dtype(x.dtype))
    count = float(weights.sum(dtype=np.float64))
    if training and 0 < count <= 1:
        raise ArgumentError(f"{who}: mask must keep more than 1 position when training, got {count:g}")
    return weights, count


def _first_kept(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(C,): of each channel a value that is kept, to sum about; 0 where that is not finite."""
    n, *place = np.unravel_index(np.argmax(weights > 0), weights.shape)
    first = x[n][(slice(None), *place)].astype(weights.dtype)
    return np.where(np.isfinite(first), first, 0)


class _Lying(NamedTuple):
    """How the kernels read a dense, non-empty ``x`` and what is as large."""

    x: np.ndarray

    @property
    def matrix(self) -> bool:
        """Whether the channels of a position lie together."""
        return self.x.ndim == 2 or is_channels_last(self.x)

    def view(self, array: np.ndarray) -> np.ndarray:
        """(M, C) or (N, C, S)."""
        if self.matrix:
            return storage(as_flat(array)).reshape(-1, array.shape[1])
        return storage(as_ncs(array))

    def mask(self, weights: np.ndarray) -> np.ndarray:
        """(M,) or (N, S)."""
        return weights.reshape(-1) if self.matrix else weights.reshape(len(weights), -1)

    def sums(self, dy: np.ndarray | None, weights: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """(2, pieces, C to a whole vector) float64; see the kernels."""
        x, channels = self.view(self.x), self.x.shape[1]
        operands = None if dy is None else self.view(dy), x, self.mask(weights), affine
        if self.matrix:
            rows = max(CHUNK_ROWS, -(-len(x) // MATRIX_CHUNKS))
            lanes = VECTOR_BYTES // affine.itemsize
            partials = np.empty((2, -(-len(x) // rows), -(-channels // lanes) * lanes))
            launch(masked_sums_matrix, *operands, rows, partials, work=x.size)
        else:
            n, _, s = x.shape
            partials = np.empty((2, chunk_count(n, s), channels))
            launch(masked_sums_rows, *operands, *chunk_grid(n, s), partials, work=x.size)
        return partials

    def map(
        self, dy: np.ndarray | None, weights: np.ndarray, affine: np.ndarray, slopes: np.ndarray, out: np.ndarray
    ) -> None:
        """Write ``out``; see the kernels."""
        x = self.view(self.x)
        block = max(1, PORTION // (x.shape[-1] * x.itemsize))
        kernel = masked_map_matrix if self.matrix else masked_map_rows
        operands = None if dy is None else self.view(dy), x, self.mask(weights), affine, slopes
        launch(kernel, *operands, block, self.view(out), work=x.size)
