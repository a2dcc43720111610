"""Batch normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1) for 2 to 5 axes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._checks import (
    FLOAT32,
    STORED,
    check_float,
    check_number,
    check_per_channel,
    check_rank,
    check_running_pair,
    check_running_stats,
    check_same_dtype,
    check_shape,
    check_writable,
)
from fastbn._tape import unrepeatable
from fastbn._views import check_out, compute_dtype, dense, empty_like, in_order_of, lies_as, native
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional import norm_kernels, norm_parts
from fastbn.functional.norm_sums import Sums
from fastbn.kernels.channels import INV_STD, MEAN, VAR, D, R

Statistics = tuple[np.ndarray | None, np.ndarray | None, float, float]  # running mean and variance, momentum, eps

EMPTY: np.ndarray = np.empty(0, FLOAT32)
RANKS = (2, 3, 4, 5)
AXES = "(N, C, *spatial)"


@dataclass(slots=True, eq=False)
class BatchNormSaved:
    """What ``batch_norm_backward`` needs of the forward pass.

    x: the input. mean, var, inv_std: (C,) float64, of the batch or, when ``batch_stats`` is False, of the running
    statistics; var is biased. count: values per channel. Of a ReLU's operand the sign is computed again, or lies in
    ``signs``, one bit an element, if there was a residual; else that is None. stats, affine: as kernels left them.
    plan: how kernels read x; None where that is empty.
    """

    x: np.ndarray
    weight: np.ndarray | None
    stats: np.ndarray
    affine: np.ndarray
    signs: np.ndarray | None
    count: int
    batch_stats: bool
    has_bias: bool
    has_residual: bool
    relu: bool
    plan: norm_kernels.Plan | None

    @property
    def mean(self) -> np.ndarray:
        """(C,) float64."""
        return self.stats[MEAN]

    @property
    def var(self) -> np.ndarray:
        """(C,) float64, biased."""
        return self.stats[VAR]

    @property
    def inv_std(self) -> np.ndarray:
        """(C,) float64."""
        return self.stats[INV_STD]

    @property
    def r(self) -> np.ndarray:
        """(C,) float64, of batch renorm in training; else 1."""
        return self.stats[R] if len(self.stats) > R else np.ones(self.stats.shape[1])

    @property
    def d(self) -> np.ndarray:
        """(C,) float64, of batch renorm in training; else 0."""
        return self.stats[D] if len(self.stats) > R else np.zeros(self.stats.shape[1])


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

    x: (N, C, *spatial), 2 to 5 axes, C-contiguous or channels-last without a copy. float32 or float64; float16 and
    bfloat16 (``ml_dtypes``) are computed in float32, y rounded once.
    running_mean, running_var: (C,), used when not ``training``; updated in place when ``training``, the variance with
    the unbiased one, ``n / (n - 1)``. momentum: weight of the new batch, ``r = (1 - momentum) r + momentum batch``
    (ONNX stores 1 - momentum). weight, bias: (C,) or None for 1 and 0.
    residual: as ``x``, added to y; relu: then max(y, 0). out: written and returned if given; may be ``x``.
    Returns an array like ``x`` in its memory order. Raises ShapeError, DtypeError, ArgumentError.
    """
    who, relu, keep = "batch_norm", bool(relu), False
    return forward(who, x, weight, bias, running_mean, running_var, momentum, eps, residual, relu, out, training, keep)[
        0
    ]


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
    ``x``: leave it unchanged until the backward pass, so ``out`` may not be ``x`` then.
    """
    who, relu, keep = "batch_norm_forward", bool(relu), True
    y, saved = forward(
        who, x, weight, bias, running_mean, running_var, momentum, eps, residual, relu, out, training, keep
    )
    assert saved is not None
    return y, saved


def batch_norm_summed(
    who: str,
    x: np.ndarray,
    sums: Sums | None,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    statistics: Statistics,
    residual: np.ndarray | None,
    relu: bool,
    training: bool,
    defer: bool,
) -> tuple[np.ndarray, BatchNormSaved]:
    """``batch_norm_forward`` of a dense ``x`` whose sums, if not None, are known; defer: y is not written."""
    y, saved = forward(who, x, weight, bias, *statistics, residual, relu, None, training, True, sums, defer)
    assert saved is not None
    return y, saved


def check_out_of(who: str, out: np.ndarray, x: np.ndarray, **overlaps: dict[str, np.ndarray | None]) -> None:
    """``out`` must be what a batch norm of ``x`` can write into; see ``check_out``."""
    check_float(who, "x", x, STORED)
    check_out(who, out, x.shape, dense(x), **overlaps)


def forward(
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
    keep: bool,
    sums: Sums | None = None,
    defer: bool = False,
    limits: norm_kernels.Limits | None = None,
    parts: int = 1,
) -> tuple[np.ndarray, BatchNormSaved | None]:
    """Every batch norm over all values of a channel: y, and if ``keep`` what the backward pass needs.

    sums, defer: see ``batch_norm_summed``. limits: of batch renorm. parts: how many such calls write one array.
    """
    parameters: norm_kernels.Parameters
    plan = _plain_plan(x, weight, bias, running_mean, running_var, momentum, eps, residual)
    if plan is not None:
        source, added, features = x, residual, plan.channels
        parameters = weight, bias, running_mean, running_var  # type: ignore[assignment]
    else:
        features = check_forward(who, x, weight, bias, running_mean, running_var, momentum, eps)
        source, added = dense(x), None
        if residual is not None:
            check_same_dtype(who, "residual", residual, "x", x)
            check_shape(who, "residual", residual, x.shape)
            added = in_order_of(residual, source)
        parameters = as_parameters(weight, bias, running_mean, running_var)
        momentum, eps = float(momentum), float(eps)
        check_statistics(who, running_mean, running_var, training)
        plan = norm_kernels.plan_for(source) if x.size else None
    if out is not None and not (plan is not None and lies_as(out, source) and _are_apart(out, x, residual)):
        spared = {"residual": residual} if keep else {"x": x, "residual": residual}
        check_out_of(who, out, x, may_be=spared, apart_from={"x": x} if keep else {})
    count = x.size // features if features else 0
    if training and count == 1:
        raise ShapeError(f"{who}: x must have more than 1 value per channel when training, got input size {x.shape}")
    if plan is not None and parts > 1:
        plan = plan._replace(nbytes=parts * plan.nbytes)
    keep_signs = keep and relu and added is not None
    if plan is not None and (defer or sums is not None):
        negative, y, stats, affine, signs = norm_parts.forward(
            plan, source, added, relu, parameters, momentum, eps, training, keep_signs, sums, defer
        )
    elif plan is not None:
        negative, y, stats, affine, signs = norm_kernels.forward(
            plan, source, added, relu, parameters, momentum, eps, training, keep_signs, out, limits
        )
    else:
        negative, y, signs = -1, empty_like(source) if out is None else out, None
        stats, affine = np.zeros((3, features)), np.zeros((3, features), compute_dtype(x.dtype))
    if negative >= 0:
        check_running_stats(who, running_mean, running_var, features)
    if training:
        keep_moved(parameters, running_mean, running_var)
    if not keep:
        return y, None
    has_bias, has_residual = bias is not None, residual is not None
    return y, BatchNormSaved(source, weight, stats, affine, signs, count, training, has_bias, has_residual, relu, plan)


def _plain_plan(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: Any, eps: Any, residual: Any
) -> norm_kernels.Plan | None:
    """The plan for ``x`` if nothing is wrong or need be copied, as for most calls; None calls for a closer look."""
    if not (type(x) is np.ndarray and x.dtype is FLOAT32 and 2 <= x.ndim <= 5 and x.flags.behaved):
        return None
    if not (type(momentum) is float and 0.0 <= momentum <= 1.0 and type(eps) is float and eps >= 0.0):
        return None
    shape = x.shape[1:2]
    for vector in (weight, bias, running_mean, running_var):
        if type(vector) is not np.ndarray or vector.dtype is not FLOAT32 or vector.shape != shape:
            return None
        if not vector.flags.carray:
            return None
    if residual is not None and not lies_as(residual, x):
        return None
    return norm_kernels.plan_if_dense(x)


def _are_apart(out: np.ndarray, x: np.ndarray, residual: np.ndarray | None) -> bool:
    """Whether ``out`` has no memory in common with what a batch norm reads."""
    return not (np.may_share_memory(out, x) or (residual is not None and np.may_share_memory(out, residual)))


def as_parameters(*arrays: np.ndarray | None) -> norm_kernels.Parameters:
    """The arrays as kernels take them: themselves if all are float32 and dense, else copies in float64; None empty."""
    for array in arrays:
        if array is not None and not (array.dtype is FLOAT32 and array.flags.carray):
            unrepeatable()
            weight, bias, mean, var = (np.empty(0) if a is None else a.astype(np.float64) for a in arrays)
            break
    else:
        weight, bias, mean, var = (EMPTY if array is None else array for array in arrays)
    return weight, bias, mean, var


def keep_moved(
    parameters: norm_kernels.Parameters, running_mean: np.ndarray | None, running_var: np.ndarray | None
) -> None:
    """Let running statistics have what a kernel made of their copies in ``parameters``."""
    if running_mean is not None and running_var is not None and parameters[2] is not running_mean:
        with np.errstate(over="ignore"):
            running_mean[...], running_var[...] = parameters[2:]


def batch_norm_backward(
    dy: np.ndarray, saved: BatchNormSaved, *, out: np.ndarray | None = None, dx_only: bool = False
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``batch_norm_forward``: (dx, dweight, dbias, dresidual), None for what was not given.

    With g = dy (0 where a ReLU cut), xhat = (x - mean) / std, m values per channel (1502.03167, section 3):
    dbias = sum g, dweight = sum g xhat, dx = weight / std (g - dbias / m - xhat dweight / m); the last two terms are
    absent when the statistics were constants. dx lies as the input did; out: dx, may be ``dy``. Without a ReLU
    dresidual is ``dy`` itself. dx_only: dweight and dbias are None; with constant statistics dy alone is read for dx.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "batch_norm_backward"
    x = saved.x
    plain = lies_as(dy, x)
    if not plain:
        check_same_dtype(who, "dy", dy, "x", x)
        check_shape(who, "dy", dy, x.shape)
    if out is not None:
        check_out(who, out, x.shape, x, may_be={"dy": dy}, apart_from={"x": x})
    grad = dy if plain else in_order_of(dy, x)
    dtype = compute_dtype(x.dtype) if saved.weight is None else native(saved.weight)
    dresidual = None
    if saved.has_residual:
        dresidual = dy.copy() if not saved.relu and out is not None and np.may_share_memory(out, dy) else dy
    if saved.count and dx_only and not saved.batch_stats and not saved.relu:
        return norm_parts.scaled(grad, saved.affine, out), None, None, dresidual
    if saved.plan is not None:
        masked = saved.has_residual and saved.relu
        dx, cut, gradients = norm_kernels.backward(
            saved.plan,
            grad,
            x,
            saved.relu,
            saved.signs,
            saved.stats,
            saved.affine,
            saved.batch_stats,
            out,
            masked,
            dtype,
        )
        dresidual = cut if masked else dresidual
    else:
        dx, gradients = empty_like(x) if out is None else out, np.zeros((2, x.shape[1]), dtype)
    dweight = None if saved.weight is None or dx_only else gradients[0]
    if dweight is not None and len(saved.stats) > R:
        dweight = (saved.r * dweight + saved.d * gradients[1]).astype(dtype)
    return dx, dweight, gradients[1] if saved.has_bias and not dx_only else None, dresidual


def merge_moments(counts: np.ndarray, means: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance (C,) of runs of ``counts`` (K,) values with ``means`` and ``squares`` (K, C).

    squares: each run's sum of squares about its own mean.
    """
    weights = (counts / counts.sum())[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        mean = means[0] + (weights * (means - means[0])).sum(axis=0)
        between = means - mean
        return mean, squares.sum(axis=0) / counts.sum() + (weights * between * between).sum(axis=0)


def check_forward(
    who: str,
    x: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    eps: float,
) -> int:
    """What a batch norm is given; the number of channels."""
    check_float(who, "x", x, STORED)
    check_rank(who, "x", x, RANKS, AXES)
    channels = x.shape[1]
    check_parameters(who, channels, weight, bias, running_mean, running_var, momentum, eps)
    return channels


def check_statistics(who: str, running_mean: np.ndarray | None, running_var: np.ndarray | None, training: bool) -> None:
    """Running statistics must be there unless ``training``, and writable if so."""
    if not training and running_mean is None:
        raise ArgumentError(f"{who}: running_mean must be given when training is False, got None")
    if training and running_mean is not None and running_var is not None:
        check_writable(who, "running_mean", running_mean)
        check_writable(who, "running_var", running_var)


def check_parameters(
    who: str,
    channels: int,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    eps: float,
) -> None:
    """What a batch norm over ``channels`` is given besides x."""
    check_per_channel(who, "weight", weight, channels)
    check_per_channel(who, "bias", bias, channels)
    check_running_pair(who, running_mean, running_var, channels)
    check_number(who, "momentum", momentum, 0.0, 1.0)
    check_number(who, "eps", eps, 0.0)


def move_running_stats(
    who: str,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: float,
    mean: np.ndarray,
    var: np.ndarray,
    count: int,
) -> None:
    """Move both, in place, towards a batch's mean and biased variance over ``count`` values a channel."""
    if running_mean is None or running_var is None:
        return
    check_running_stats(who, running_mean, running_var, len(mean))
    check_writable(who, "running_mean", running_mean)
    check_writable(who, "running_var", running_var)
    running_mean[...] = (1.0 - momentum) * running_mean + momentum * mean
    running_var[...] = (1.0 - momentum) * running_var + momentum * var * (count / (count - 1))
