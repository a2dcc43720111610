"""Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1) for 2 to 5 axes."""

from dataclasses import dataclass

import numpy as np

from fastbn._checks import (
    check_float,
    check_number,
    check_per_channel,
    check_rank,
    check_running_stats,
    check_same_dtype,
    check_shape,
    check_writable,
)
from fastbn._threads import launch
from fastbn._views import as_mc, as_ncs, check_out, dense, empty_like, in_order_of, is_channels_last, native
from fastbn.errors import ArgumentError, ShapeError
from fastbn.kernels import moments, normalize

RANKS = (2, 3, 4, 5)
AXES = "(N, C, *spatial)"


@dataclass(frozen=True)
class BatchNormSaved:
    """What ``batch_norm_backward`` needs of the forward pass.

    x: the input. y: the output if a ReLU followed, else None. mean, var, inv_std: (C,) float64, of the batch or, when
    ``batch_stats`` is False, of the running statistics; var is biased. count: values per channel.
    """

    x: np.ndarray
    y: np.ndarray | None
    weight: np.ndarray | None
    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray
    count: int
    batch_stats: bool
    has_bias: bool
    has_residual: bool


def batch_norm(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise each channel of ``x``: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    x: (N, C, *spatial), 2 to 5 axes, float32 or float64, C-contiguous or channels-last without a copy.
    running_mean, running_var: (C,), used when not ``training``; updated in place when ``training``, the variance with
    the unbiased one, ``n / (n - 1)``. momentum: weight of the new batch, ``r = (1 - momentum) r + momentum batch``
    (ONNX stores 1 - momentum). weight, bias: (C,) or None for 1 and 0.
    residual: as ``x``, added to y; relu: then max(y, 0). out: written and returned if given; may be ``x``.
    Returns an array like ``x`` in its memory order. Raises ShapeError, DtypeError, ArgumentError.
    """
    if out is not None:
        _check_out("batch_norm", out, x, may_be={"x": x, "residual": residual})
    statistics = running_mean, running_var, momentum, eps
    return _forward("batch_norm", x, weight, bias, *statistics, residual, relu, out, training)[0]


def batch_norm_forward(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
    training: bool = True,
) -> tuple[np.ndarray, BatchNormSaved]:
    """``batch_norm`` and what its backward pass needs: (y, saved).

    training=False normalises with the running statistics as constants, as a frozen layer does. ``saved`` refers to
    ``x``, and to y after a ReLU: leave both unchanged until the backward pass, so ``out`` may not be ``x`` then.
    """
    if out is not None:
        _check_out("batch_norm_forward", out, x, may_be={"residual": residual}, apart_from={"x": x})
    statistics = running_mean, running_var, momentum, eps
    return _forward("batch_norm_forward", x, weight, bias, *statistics, residual, relu, out, training)


def _check_out(who: str, out: np.ndarray, x: np.ndarray, **overlaps: dict[str, np.ndarray | None]) -> None:
    check_float(who, "x", x)
    check_out(who, out, x.shape, dense(x), **overlaps)


def _forward(
    who: str,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    eps: float,
    residual: np.ndarray | None,
    relu: bool,
    out: np.ndarray | None,
    training: bool,
) -> tuple[np.ndarray, BatchNormSaved]:
    channels = _check_forward(who, x, weight, bias, running_mean, running_var, momentum, eps, residual)
    if not training and running_mean is None:
        raise ArgumentError(f"{who}: running_mean must be given when training is False, got None")
    source = dense(x)
    count = x.size // channels if channels else 0
    if training:
        if running_mean is not None and running_var is not None:
            check_writable(who, "running_mean", running_mean)
            check_writable(who, "running_var", running_var)
        if count == 1:
            raise ShapeError(
                f"{who}: x must have more than 1 value per channel when training, got input size {x.shape}"
            )
        mean, var = channel_moments(source)
        if running_mean is not None and running_var is not None and count:
            update_running_stats(running_mean, running_var, mean, var, count, momentum)
    else:
        mean, var = np.asarray(running_mean, np.float64), np.asarray(running_var, np.float64)
    inv_std = _inverse_std(var, eps)
    y = empty_like(source) if out is None else out
    _normalize(source, mean, inv_std, weight, bias, residual, relu, y)
    saved = BatchNormSaved(
        x=source,
        y=y if relu else None,
        weight=weight,
        mean=mean,
        var=var,
        inv_std=inv_std,
        count=count,
        batch_stats=training,
        has_bias=bias is not None,
        has_residual=residual is not None,
    )
    return y, saved


def batch_norm_backward(
    dy: np.ndarray, saved: BatchNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``batch_norm_forward``: (dx, dweight, dbias, dresidual), None for what was not given.

    With g = dy (0 where a ReLU cut), xhat = (x - mean) / std, m values per channel (1502.03167, section 3):
    dbias = sum g, dweight = sum g xhat, dx = weight / std (g - dbias / m - xhat dweight / m); the last two terms are
    absent when the statistics were constants. dx lies as the input did; out: dx, may be ``dy``. Without a ReLU
    dresidual is ``dy`` itself. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "batch_norm_backward"
    x = saved.x
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, x.shape)
    if out is not None:
        check_out(who, out, x.shape, x, may_be={"dy": dy}, apart_from={"x": x, "y": saved.y})
    grad = in_order_of(dy, x)
    dx = empty_like(x) if out is None else out
    masked = saved.y is not None
    dresidual = None
    overlap = out is not None and np.may_share_memory(out, dy)
    if saved.has_residual:
        dresidual = empty_like(x) if masked else dy.copy() if overlap else dy
    sum_g, sum_gx = _backward_sums(grad, x, saved.y, saved.mean)
    with np.errstate(over="ignore", invalid="ignore"):
        dweight = sum_gx * saved.inv_std
        scale = saved.inv_std if saved.weight is None else saved.weight * saved.inv_std
        if saved.batch_stats and saved.count:
            slope, constant = -scale * dweight / saved.count, -scale * sum_g / saved.count
        else:
            slope = constant = np.zeros_like(scale)
    coefficients = saved.inv_std, scale, slope, constant
    _gradient(grad, x, saved.y, saved.mean, coefficients, dx, dresidual if masked else None)
    dtype = x.dtype if saved.weight is None else native(saved.weight)
    return (
        dx,
        None if saved.weight is None else dweight.astype(dtype),
        sum_g.astype(dtype) if saved.has_bias else None,
        dresidual,
    )


def _inverse_std(var: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(var + eps), and 0 where that has no spread: a constant channel gives the bias with eps = 0 too."""
    spread = var + eps
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread == 0, 0.0, 1.0 / np.sqrt(spread))


def channel_moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance (C,), float64, of a dense ``x``; zeros for an empty one.

    Chunks are merged in order (Chan, Golub and LeVeque 1979): the bits do not depend on the number of threads.
    """
    channels = x.shape[1]
    if x.size == 0:
        return np.zeros(channels), np.zeros(channels)
    if _rows_of_channels(x):
        view = as_mc(x)
        block = moments.rows_mc(*view.shape)
        counts = _run_lengths(view.shape[0], block)
        means, squares = np.empty((2, counts.size, channels))
        launch(moments.moments_mc, view, block, means, squares, work=x.size)
    else:
        view = as_ncs(x)
        n_block, s_block = moments.chunks_ncs(view.shape[0], view.shape[2])
        counts = np.outer(_run_lengths(view.shape[0], n_block), _run_lengths(view.shape[2], s_block)).reshape(-1)
        means, squares = np.empty((2, counts.size, channels))
        launch(moments.moments_ncs, view, n_block, s_block, means, squares, work=x.size)
    return merge_moments(counts, means, squares)


def merge_moments(counts: np.ndarray, means: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance (C,) of runs of ``counts`` (K,) values with ``means`` and ``squares`` (K, C).

    squares: each run's sum of squares about its own mean.
    """
    weights = (counts / counts.sum())[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = means[0] + (weights * (means - means[0])).sum(axis=0)
        between = means - mean
        return mean, squares.sum(axis=0) / counts.sum() + (weights * between * between).sum(axis=0)


def update_running_stats(
    running_mean: np.ndarray, running_var: np.ndarray, mean: np.ndarray, var: np.ndarray, count: int, momentum: float
) -> None:
    """``r = (1 - momentum) r + momentum batch`` in place; ``var`` is biased, running_var is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        running_mean[...] = (1.0 - momentum) * running_mean.astype(np.float64) + momentum * mean
        running_var[...] = (1.0 - momentum) * running_var.astype(np.float64) + momentum * var * (count / (count - 1))


def _check_forward(
    who: str,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    eps: float,
    residual: np.ndarray | None,
) -> int:
    check_float(who, "x", x)
    check_rank(who, "x", x, RANKS, AXES)
    channels = x.shape[1]
    check_per_channel(who, "weight", weight, channels)
    check_per_channel(who, "bias", bias, channels)
    check_running_stats(who, running_mean, running_var, channels)
    check_number(who, "momentum", momentum, 0.0, 1.0)
    check_number(who, "eps", eps, 0.0)
    if residual is not None:
        check_same_dtype(who, "residual", residual, "x", x)
        check_shape(who, "residual", residual, x.shape)
    return channels


def _rows_of_channels(x: np.ndarray) -> bool:
    """Whether the dense ``x`` is read as (M, C): a channel's neighbour in memory is the next channel."""
    return x.ndim == 2 or is_channels_last(x) or x.size == x.shape[0] * x.shape[1]


def _run_lengths(total: int, block: int) -> np.ndarray:
    lengths = np.full(-(-total // block), block)
    lengths[-1] = total - block * (len(lengths) - 1)
    return lengths


def _normalize(
    x: np.ndarray,
    mean: np.ndarray,
    inv_std: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
) -> None:
    if x.size == 0:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        scale = inv_std if weight is None else weight * inv_std
        near, lost = _rounded_mean(mean, x.dtype)
        shift = (0.0 if bias is None else bias) - lost * scale
        operands = near, scale.astype(x.dtype), shift.astype(x.dtype)
    other = None if residual is None else in_order_of(residual, x)
    if _rows_of_channels(x):
        view = as_mc(x)
        added = np.empty((1, 0), x.dtype) if other is None else as_mc(other)
        launch(normalize.normalize_mc, view, *operands, added, bool(relu), as_mc(y), work=x.size)
    else:
        view = as_ncs(x)
        added = np.empty((1, 1, 0), x.dtype) if other is None else as_ncs(other)
        launch(normalize.normalize_ncs, view, *operands, added, bool(relu), as_ncs(y), work=x.size)


def _rounded_mean(mean: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The mean in ``dtype``, and what rounding took from it, to be given back in the constant term."""
    near = mean.astype(dtype)
    return near, np.where(np.isfinite(near), mean - near, 0.0)


def _backward_sums(
    dy: np.ndarray, x: np.ndarray, y: np.ndarray | None, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Channel sums (C,), float64, of g and of g (x - mean)."""
    channels = x.shape[1]
    if x.size == 0:
        return np.zeros(channels), np.zeros(channels)
    if _rows_of_channels(x):
        view = as_mc(x)
        block = moments.rows_mc(*view.shape)
        sums, products = np.empty((2, -(-view.shape[0] // block), channels))
        mask = np.empty((1, 0), x.dtype) if y is None else as_mc(y)
        launch(moments.backward_sums_mc, as_mc(dy), view, mask, mean, block, sums, products, work=x.size)
    else:
        view = as_ncs(x)
        n_block, s_block = moments.chunks_ncs(view.shape[0], view.shape[2])
        chunks = -(-view.shape[0] // n_block) * -(-view.shape[2] // s_block)
        sums, products = np.empty((2, chunks, channels))
        mask = np.empty((1, 1, 0), x.dtype) if y is None else as_ncs(y)
        launch(moments.backward_sums_ncs, as_ncs(dy), view, mask, mean, n_block, s_block, sums, products, work=x.size)
    return sums.sum(axis=0), products.sum(axis=0)


def _gradient(
    dy: np.ndarray,
    x: np.ndarray,
    y: np.ndarray | None,
    mean: np.ndarray,
    coefficients: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    dx: np.ndarray,
    dresidual: np.ndarray | None,
) -> None:
    """dx = scale g + slope xhat + constant; ``coefficients``: inv_std, scale, slope and constant, (C,)."""
    if x.size == 0:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        near, lost = _rounded_mean(mean, x.dtype)
        inv_std, scale, slope, constant = coefficients
        rounded = (inv_std, scale, slope, constant - lost * inv_std * slope)
        operands = (near, *(array.astype(x.dtype) for array in rounded))
    if _rows_of_channels(x):
        nothing = np.empty((1, 0), x.dtype)
        arrays = [nothing if array is None else as_mc(array) for array in (dy, x, y, dx, dresidual)]
        kernel = normalize.gradient_mc
    else:
        nothing = np.empty((1, 1, 0), x.dtype)
        arrays = [nothing if array is None else as_ncs(array) for array in (dy, x, y, dx, dresidual)]
        kernel = normalize.gradient_ncs
    launch(kernel, *arrays[:3], *operands, *arrays[3:], work=x.size)
