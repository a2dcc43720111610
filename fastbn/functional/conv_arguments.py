"""The arguments of convolutions over 1, 2 or 3 axes: checked, and the shape of the output."""

from functools import lru_cache
from typing import Any

import numpy as np

from fastbn._checks import (
    as_tuple,
    check_float,
    check_int,
    check_per_channel,
    check_rank,
    check_same_dtype,
    check_shape,
)
from fastbn._views import check_out, dense
from fastbn.errors import ArgumentError, ShapeError

SERIES_AXES, IMAGE_AXES, VOLUME_AXES = "(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)"
AXES = {1: SERIES_AXES, 2: IMAGE_AXES, 3: VOLUME_AXES}
KERNEL = {1: "k", 2: "kh, kw", 3: "kd, kh, kw"}
SEVERAL = {1: "a tuple of one", 2: "a pair", 3: "a triple"}


def check_convolution(
    who: str, axes: int, x: np.ndarray, weight: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Kernel size, stride, padding and dilation, a tuple of ``axes`` integers each, and the output's shape.

    Raises ShapeError, DtypeError, ArgumentError.
    """
    check_float(who, "x", x)
    check_rank(who, "x", x, (axes + 2,), AXES[axes])
    check_same_dtype(who, "weight", weight, "x", x)
    check_rank(who, "weight", weight, (axes + 2,), f"(C_out, C_in / groups, {KERNEL[axes]})")
    options = stride, padding, dilation, groups
    # A cache takes True for 1.
    sizes = _sizes if _are_exact(options) else _sizes.__wrapped__
    return sizes(who, axes, x.shape, weight.shape, *options)


def _are_exact(options: tuple[Any, ...]) -> bool:
    for option in options:
        if type(option) is tuple:
            for entry in option:
                if type(entry) is not int:
                    return False
        elif type(option) is not int and type(option) is not str:
            return False
    return True


@lru_cache(maxsize=512)
def _sizes(
    who: str,
    axes: int,
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """``check_convolution`` of arrays of these shapes."""
    check_int(who, "groups", groups, 1)
    if 0 in weight_shape:
        raise ShapeError(f"{who}: weight must not be empty, got shape {weight_shape}")
    channels_out, group_channels, *_ = weight_shape
    if x_shape[1] != group_channels * groups or channels_out % groups:
        raise ShapeError(
            f"{who}: weight must have shape (a multiple of {groups}, {x_shape[1]} / {groups}, {KERNEL[axes]}) "
            f"for x of shape {x_shape} and groups {groups}, got {weight_shape}"
        )
    kernel = weight_shape[2:]
    strides = as_tuple(who, "stride", stride, 1, axes)
    dilations = as_tuple(who, "dilation", dilation, 1, axes)
    pads = resolve_padding(who, padding, kernel, strides, dilations)
    sizes = zip(x_shape[2:], kernel, strides, pads, dilations, strict=True)
    extent = tuple(window_extent(*size) for size in sizes)
    if min(extent) < 1:
        raise ShapeError(
            f"{who}: x must be at least as large as the dilated kernel less the padding, "
            f"got {x_shape[2:]} for a kernel of {kernel}"
        )
    return (kernel, strides, pads, dilations), (x_shape[0], channels_out, *extent)


def check_operands(
    who: str,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    out: np.ndarray | None,
    y_shape: tuple[int, ...],
) -> None:
    """``bias``, ``residual`` and ``out``, where given, must fit; ``out`` may be ``residual`` itself."""
    if bias is not None:
        check_same_dtype(who, "bias", bias, "x", x)
        check_per_channel(who, "bias", bias, weight.shape[0])
    if residual is not None:
        check_same_dtype(who, "residual", residual, "x", x)
        check_shape(who, "residual", residual, y_shape, "as the output")
    if out is not None:
        apart = {"x": x, "weight": weight, "bias": bias}
        check_out(who, out, y_shape, dense(x), may_be={"residual": residual}, apart_from=apart)


def window_extent(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Outputs along one axis, 0 or less if the kernel does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def resolve_padding(
    who: str, padding: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Padding, one integer an axis: integers as they are, "valid" as 0, "same" as what keeps the size at stride 1."""
    axes = len(kernel)
    if padding == "valid":
        return (0,) * axes
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if set(stride) != {1} or any(total % 2 for total in totals):
            raise ArgumentError(
                f"{who}: padding 'same' must come with stride 1 and odd kernels, got stride {stride}, kernel {kernel}"
            )
        return tuple(total // 2 for total in totals)
    if isinstance(padding, str):
        raise ArgumentError(f"{who}: padding must be an integer, {SEVERAL[axes]}, 'valid' or 'same', got {padding!r}")
    return as_tuple(who, "padding", padding, 0, axes)
