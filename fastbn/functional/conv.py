"""Two-dimensional convolution (cross-correlation, as PyTorch and ONNX mean it)."""

import math
from functools import lru_cache
from types import ModuleType

import numpy as np

from fastbn._checks import check_same_dtype, check_shape
from fastbn._memory import empty
from fastbn._threads import launch
from fastbn._views import (
    as_ncs,
    channels_second,
    dense,
    dense_c,
    empty_like,
    in_order_of,
    is_channels_last,
    native,
)
from fastbn.functional import (
    conv_blocks,
    conv_depthwise,
    conv_lanes,
    conv_patches,
    conv_planes,
    conv_point,
    conv_winograd,
)
from fastbn.functional.conv_arguments import check_convolution, check_operands
from fastbn.functional.conv_geometry import Window
from fastbn.functional.packed_weights import kept_with
from fastbn.functional.winograd_portions import pays
from fastbn.kernels.sums import chunk_count, chunk_grid, sums_ncs

Pair = int | tuple[int, ...]


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
    return convolve(x, weight, bias, stride, padding, dilation, groups, residual=residual, relu=bool(relu), out=out)


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    ceiling: float = math.inf,
    out: np.ndarray | None = None,
    follows: bool = True,
) -> np.ndarray:
    """``conv2d``; ceiling: what the ReLU cuts above.

    follows: the output lies in the memory order of ``x``, else it is channels-last, which is the fast one.
    """
    who = "conv2d"
    sizes, y_shape = check_convolution(who, 2, x, weight, stride, padding, dilation, groups)
    window, groups = Window(*sizes), int(groups)
    check_operands(who, x, weight, bias, residual, out, y_shape)
    source = dense(x)
    if out is not None:
        y = out
    elif follows:
        y = empty_like(source, y_shape)
    else:
        y = channels_second(empty((y_shape[0], *y_shape[2:], y_shape[1]), source.dtype))
    if y.size:
        kept = kept_with(weight) is not None
        engine = engine_for(source, weight.shape, window, groups, y_shape, follows, kept)
        if engine is conv_point and y.nbytes < conv_point.STREAMED:
            engine = conv_blocks  # it reads weights ahead, and goes about few pixels panel by panel
        engine.forward(source, dense_c(weight), bias, window, groups, residual, relu, y, ceiling=ceiling)
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
    sizes, y_shape = check_convolution(who, 2, x, weight, stride, padding, dilation, groups)
    window, groups = Window(*sizes), int(groups)
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
    engine = engine_for(source, weight.shape, window, groups, y_shape, follows=True)
    dweight, dx, _ = engine.backward(grad, source, weight, window, groups, need_dx=need_dx)
    return dx, dweight, channel_sums(grad) if need_dbias else None


def engine_for(
    x: np.ndarray,
    weight_shape: tuple[int, ...],
    window: Window,
    groups: int,
    y_shape: tuple[int, ...],
    follows: bool = False,
    kept: bool = False,
) -> ModuleType:
    """The module whose ``forward`` and ``backward`` suit a dense ``x``; follows: whether y lies in memory as x.

    The bits follow from shapes and memory orders alone, and kept: whether the weights cannot change, so that what is
    made of them is kept.
    """
    return _engine(x.shape, x.itemsize, is_channels_last(x), weight_shape, window, groups, y_shape, follows, kept)


@lru_cache(maxsize=512)
def _engine(
    x_shape: tuple[int, ...],
    itemsize: int,
    by_pixel: bool,
    weight_shape: tuple[int, ...],
    window: Window,
    groups: int,
    y_shape: tuple[int, ...],
    follows: bool,
    kept: bool,
) -> ModuleType:
    """by_pixel: whether x is channels-last."""
    if conv_depthwise.suits(weight_shape, groups, itemsize):
        return conv_depthwise
    if pays(weight_shape, window, groups, y_shape, kept) and (by_pixel or not follows):
        return conv_winograd
    if by_pixel and conv_point.suits(y_shape, weight_shape, window, groups, itemsize):
        return conv_point
    if conv_blocks.suits(weight_shape, groups, itemsize):
        return conv_blocks
    if conv_patches.suits(weight_shape, groups, itemsize) and (by_pixel or not follows):
        return conv_patches
    in_lanes = follows and not by_pixel and conv_lanes.suits(x_shape, weight_shape, y_shape, itemsize)
    return conv_lanes if in_lanes else conv_planes


def channel_sums(dy: np.ndarray) -> np.ndarray:
    """(C,) of a dense (N, C, H, W), summed in float64 and rounded once."""
    if is_channels_last(dy):
        return dy.sum(axis=(0, 2, 3), dtype=np.float64).astype(dy.dtype)
    view = as_ncs(dy)
    n, c, s = view.shape
    sums = np.empty((chunk_count(n, s), c))
    launch(sums_ncs, view, *chunk_grid(n, s), sums, work=dy.size)
    return sums.sum(axis=0).astype(dy.dtype)
