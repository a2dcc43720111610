"""Two-dimensional convolution (cross-correlation, as PyTorch and ONNX mean it)."""

from types import ModuleType
from typing import Any

import numpy as np

from fastbn._checks import as_pair, check_float, check_int, check_per_channel, check_rank, check_same_dtype, check_shape
from fastbn._threads import launch
from fastbn._views import (
    as_ncs,
    check_out,
    dense,
    dense_c,
    empty_like,
    in_order_of,
    is_channels_last,
    native,
)
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional import conv_blocks, conv_depthwise, conv_planes
from fastbn.functional.conv_geometry import Window
from fastbn.kernels.sums import chunk_count, chunk_grid, sums_ncs

IMAGE_AXES = "(N, C, H, W)"

Pair = int | tuple[int, int]


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve ``x`` with ``weight``, add ``bias`` and ``residual``, then max(y, 0) if ``relu``.

    x: (N, C_in, H, W), float32 or float64, C-contiguous or channels-last. weight: (C_out, C_in / groups, kh, kw),
    bias: (C_out,), of x's dtype. stride, padding (zeros on both sides, or "valid" or, at stride 1, "same"), dilation:
    an integer or (h, w). residual: as the output.
    Returns (N, C_out, OH, OW) in the memory order of ``x``, OH = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1;
    out: written and returned if given, apart from ``x``. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv2d"
    window, y_shape = geometry(who, x, weight, stride, padding, dilation, groups)
    groups = int(groups)
    check_bias(who, bias, x, weight)
    source = dense(x)
    if residual is not None:
        check_same_dtype(who, "residual", residual, "x", x)
        check_shape(who, "residual", residual, y_shape, "as the output")
    if out is None:
        y = empty_like(source, y_shape)
    else:
        apart = {"x": x, "weight": weight, "bias": bias}
        check_out(who, out, y_shape, source, may_be={"residual": residual}, apart_from=apart)
        y = out
    if y.size == 0:
        return y
    engine = engine_for(weight.shape, groups, y.itemsize)
    engine.forward(source, dense_c(weight), bias, window, groups, residual, bool(relu), y)
    return y


def conv2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    need_dx: bool = True,
    need_dbias: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Gradients of ``conv2d`` without residual and ReLU: (dx, dweight, dbias), dbias summed in float64.

    dy: as the output, x and weight: as in the forward pass. need_dx=False leaves dx out (None), as for a network's
    first layer, need_dbias=False dbias. A NaN or Inf in x may reach the gradient of weights that never meet it.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv2d_backward"
    window, y_shape = geometry(who, x, weight, stride, padding, dilation, groups)
    groups = int(groups)
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, y_shape, "as the output")
    if dy.size == 0:
        dtype = native(x)
        return (
            np.zeros(x.shape, dtype) if need_dx else None,
            np.zeros(weight.shape, dtype),
            np.zeros(len(weight), dtype) if need_dbias else None,
        )
    source = dense(x)
    grad = in_order_of(dy, source)
    weight = dense_c(weight)
    engine = engine_for(weight.shape, groups, x.itemsize)
    dx = engine.backward_data(grad, source, weight, window, groups)[0] if need_dx else None
    dbias = channel_sums(grad) if need_dbias else None
    return dx, engine.backward_weight(grad, source, weight, window, groups), dbias


def engine_for(weight_shape: tuple[int, ...], groups: int, itemsize: int) -> ModuleType:
    """The module whose ``forward``, ``backward_data`` and ``backward_weight`` suit such weights."""
    if conv_depthwise.suits(weight_shape, groups, itemsize):
        return conv_depthwise
    return conv_blocks if conv_blocks.suits(weight_shape, groups, itemsize) else conv_planes


def channel_sums(dy: np.ndarray) -> np.ndarray:
    """(C,) of a dense ``dy``, summed in float64 and rounded once."""
    if is_channels_last(dy):
        return dy.sum(axis=(0, 2, 3), dtype=np.float64).astype(dy.dtype)
    view = as_ncs(dy)
    n, c, s = view.shape
    sums = np.empty((chunk_count(n, s), c))
    launch(sums_ncs, view, *chunk_grid(n, s), sums, work=dy.size)
    return sums.sum(axis=0).astype(dy.dtype)


def window_extent(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Outputs along one axis, 0 or less if the kernel does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def check_bias(who: str, bias: np.ndarray | None, x: np.ndarray, weight: np.ndarray) -> None:
    """(C_out,), of x's dtype."""
    if bias is not None:
        check_same_dtype(who, "bias", bias, "x", x)
        check_per_channel(who, "bias", bias, weight.shape[0])


def geometry(
    who: str, x: np.ndarray, weight: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Window, tuple[int, int, int, int]]:
    """The window and the output's shape."""
    check_float(who, "x", x)
    check_rank(who, "x", x, (4,), IMAGE_AXES)
    check_same_dtype(who, "weight", weight, "x", x)
    check_rank(who, "weight", weight, (4,), "(C_out, C_in / groups, kh, kw)")
    check_int(who, "groups", groups, 1)
    if weight.size == 0:
        raise ShapeError(f"{who}: weight must not be empty, got shape {weight.shape}")
    channels_out, group_channels, kernel_h, kernel_w = weight.shape
    if x.shape[1] != group_channels * groups or channels_out % groups:
        raise ShapeError(
            f"{who}: weight must have shape (a multiple of {groups}, {x.shape[1]} / {groups}, kh, kw) "
            f"for x of shape {x.shape} and groups {groups}, got {weight.shape}"
        )
    strides = as_pair(who, "stride", stride, 1)
    dilations = as_pair(who, "dilation", dilation, 1)
    pads = resolve_padding(who, padding, (kernel_h, kernel_w), strides, dilations)
    extent = [window_extent(x.shape[2 + i], weight.shape[2 + i], strides[i], pads[i], dilations[i]) for i in range(2)]
    if min(extent) < 1:
        raise ShapeError(
            f"{who}: x must be at least as large as the dilated kernel less the padding, "
            f"got {x.shape[2:]} for a kernel of {(kernel_h, kernel_w)}"
        )
    return Window((kernel_h, kernel_w), strides, pads, dilations), (x.shape[0], channels_out, extent[0], extent[1])


def resolve_padding(
    who: str, padding: Any, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Padding as a pair: integers as they are, "valid" as 0, "same" as what keeps the size at stride 1."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if stride != (1, 1) or any(total % 2 for total in totals):
            raise ArgumentError(
                f"{who}: padding 'same' must come with stride 1 and odd kernels, got stride {stride}, kernel {kernel}"
            )
        return totals[0] // 2, totals[1] // 2
    if isinstance(padding, str):
        raise ArgumentError(f"{who}: padding must be an integer, a pair, 'valid' or 'same', got {padding!r}")
    return as_pair(who, "padding", padding, 0)
