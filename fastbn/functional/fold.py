"""Folding: a batch norm with constant statistics, absorbed by the layer before it.

    y = (W x + b - mean) s + beta,  s = gamma / sqrt(var + eps)   is   W' = s W,  b' = (b - mean) s + beta

(Jacob et al. 2018, arXiv 1712.05877, equation 14). This is the one place where the formula stands.
"""

from functools import cache

import numpy as np

from fastbn._checks import check_float, check_int, check_number, check_per_channel, check_running_stats
from fastbn.errors import ArgumentError, ShapeError


def fold_conv_bn_weights(
    conv_w: np.ndarray,
    conv_b: np.ndarray | None,
    bn_rm: np.ndarray,
    bn_rv: np.ndarray,
    bn_eps: float,
    bn_w: np.ndarray | None,
    bn_b: np.ndarray | None,
    transpose: bool = False,
    *,
    groups: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of one convolution equal to the convolution and the batch norm after it.

    conv_w: (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) if ``transpose``. conv_b, bn_w, bn_b:
    (C_out,) or None for 0, 1, 0. bn_rm, bn_rv: (C_out,), the running statistics.
    Computed in float64, rounded once to conv_w's dtype, subnormal results flushed to zero.
    Returns (w, b). Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "fold_conv_bn_weights"
    check_float(who, "conv_w", conv_w)
    check_int(who, "groups", groups, 1)
    if conv_w.ndim < 3:
        raise ShapeError(f"{who}: conv_w must have at least 3 axes (out, in, *kernel), got shape {conv_w.shape}")
    if conv_w.shape[0] % groups:
        raise ShapeError(f"{who}: conv_w must have a multiple of {groups} groups first, got shape {conv_w.shape}")
    channels = conv_w.shape[1] * groups if transpose else conv_w.shape[0]
    scale, shift = _scale_and_shift(who, "conv_b", channels, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b)
    spatial = (1,) * (conv_w.ndim - 2)
    if transpose:
        split = conv_w.reshape(groups, conv_w.shape[0] // groups, *conv_w.shape[1:])
        scaled = _times(split, scale.reshape(groups, 1, conv_w.shape[1], *spatial)).reshape(conv_w.shape)
    else:
        scaled = _times(conv_w, scale.reshape(channels, 1, *spatial))
    return round_to(who, scaled, conv_w.dtype), round_to(who, shift, conv_w.dtype)


def fold_linear_bn_weights(
    linear_w: np.ndarray,
    linear_b: np.ndarray | None,
    bn_rm: np.ndarray,
    bn_rv: np.ndarray,
    bn_eps: float,
    bn_w: np.ndarray | None,
    bn_b: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of one linear layer equal to the linear layer and the batch norm after it.

    linear_w: (out, in). Everything else as in ``fold_conv_bn_weights``.
    """
    who = "fold_linear_bn_weights"
    check_float(who, "linear_w", linear_w)
    if linear_w.ndim != 2:
        raise ShapeError(f"{who}: linear_w must have 2 axes (out, in), got shape {linear_w.shape}")
    scale, shift = _scale_and_shift(who, "linear_b", linear_w.shape[0], linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b)
    return round_to(who, _times(linear_w, scale[:, None]), linear_w.dtype), round_to(who, shift, linear_w.dtype)


def fold_scalar_weights(
    weight: np.ndarray, bias: np.ndarray | None, scale: np.ndarray | None, shift: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of one layer equal to ``scale x + shift`` and the layer behind it, which pads with no zeros.

    weight: (out, in, *kernel), bias: (out,) or None; scale, shift: (1,), or None for 1 and 0. Computed and rounded as
    in ``fold_conv_bn_weights``: W' = scale W, b' = b + shift sum W. Returns (w, b). Raises DtypeError, ArgumentError.
    """
    who = "fold_scalar_weights"
    check_float(who, "weight", weight)
    check_per_channel(who, "bias", bias, len(weight))
    for name, number in (("scale", scale), ("shift", shift)):
        check_per_channel(who, name, number, 1)
    wide = weight.astype(np.float64)
    total = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
    if shift is not None:
        total = total + shift * wide.reshape(len(weight), -1).sum(axis=1)
    scaled = wide if scale is None else _times(wide, scale)
    return round_to(who, scaled, weight.dtype), round_to(who, total, weight.dtype)


def round_to(who: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float64 ``values`` rounded once to ``dtype``, subnormals as zero. Raises ArgumentError where it overflows."""
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
    if not np.isfinite(rounded).all():
        raise ArgumentError(f"{who}: folded weights must be finite in {dtype}, got {rounded[~np.isfinite(rounded)][0]}")
    rounded[np.abs(rounded) < _smallest_normal(dtype)] = 0
    return rounded


@cache
def _smallest_normal(dtype: np.dtype) -> float:
    # NumPy knows bfloat16 from ml_dtypes but not its limits; it has the exponents of float32.
    return float(np.finfo(np.float32 if dtype.name == "bfloat16" else dtype).tiny)


def _times(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return weight * scale


def scale_and_shift(
    who: str,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The batch norm as x -> x scale + shift, float64: gamma / sqrt(var + eps) and beta - mean scale.

    mean, var, gamma, beta: (C,); gamma and beta None for 1 and 0. Not finite where they overflow.
    Raises ArgumentError where var + eps is not positive.
    """
    spread = var.astype(np.float64) + eps
    if not (spread > 0).all():
        channel = int(np.argmax(~(spread > 0)))
        raise ArgumentError(f"{who}: bn_rv + bn_eps must be positive, got {spread[channel]} in channel {channel}")
    with np.errstate(all="ignore"):
        scale = np.sqrt(1 / spread) if gamma is None else gamma.astype(np.float64) / np.sqrt(spread)
        return scale, (0.0 if beta is None else beta.astype(np.float64)) - mean.astype(np.float64) * scale


def _scale_and_shift(
    who: str,
    bias_name: str,
    channels: int,
    bias: np.ndarray | None,
    mean: np.ndarray,
    var: np.ndarray,
    eps: float,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """The batch norm as z -> z scale + shift on the layer without its bias, which is part of the shift; float64."""
    check_per_channel(who, bias_name, bias, channels)
    check_running_stats(who, mean, var, channels, ("bn_rm", "bn_rv"))
    if mean is None:
        raise ArgumentError(f"{who}: bn_rm and bn_rv must be running statistics, got None")
    check_per_channel(who, "bn_w", gamma, channels)
    check_per_channel(who, "bn_b", beta, channels)
    check_number(who, "bn_eps", eps, 0.0)
    centred = mean.astype(np.float64) - (0.0 if bias is None else bias.astype(np.float64))
    return scale_and_shift(who, centred, var, eps, gamma, beta)
