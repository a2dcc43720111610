"""Max and average pooling over the last two axes of (N, C, H, W)."""

from typing import Any

import numpy as np

from fastbn._checks import as_pair, check_float, check_rank, check_same_dtype, check_shape
from fastbn._threads import launch
from fastbn._views import as_flat, dense, element_strides, empty_like, in_order_of, native
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.functional.conv import Pair
from fastbn.functional.conv_arguments import IMAGE_AXES
from fastbn.kernels.avg_pool import avg_pool, avg_pool_backward
from fastbn.kernels.max_pool import max_pool, max_pool_backward


def max_pool2d(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> np.ndarray:
    """The largest value of each window; a NaN in it wins.

    x: (N, C, H, W), float32 or float64, in either memory order. stride: kernel_size unless given. padding: at most half
    the kernel, counted as -inf. ceil_mode: round the output's size up. Returns (N, C, OH, OW) in x's memory order.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    return max_pool2d_forward(x, kernel_size, stride, padding, dilation, ceil_mode)[0]


def max_pool2d_forward(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """``max_pool2d`` and the place h * W + w (int32) of each maximum, the first one of equals: (y, indices)."""
    window, y_shape = _geometry("max_pool2d", x, kernel_size, stride, padding, dilation, ceil_mode)
    source = dense(x)
    y = empty_like(source, y_shape)
    indices = empty_like(source, y_shape, np.int32)
    if y.size:
        launch(
            max_pool,
            as_flat(source),
            source.shape,
            element_strides(source),
            as_flat(y),
            as_flat(indices),
            y_shape,
            element_strides(y),
            window,
            work=y.size * window[0] * window[1],
        )
    return y, indices


def max_pool2d_backward(dy: np.ndarray, indices: np.ndarray, x_shape: tuple[int, ...]) -> np.ndarray:
    """dx of ``max_pool2d_forward``: dy at the places of the maxima, 0 elsewhere. Raises ShapeError, DtypeError."""
    check_float("max_pool2d_backward", "dy", dy)
    _check_indices("max_pool2d_backward", indices, x_shape)
    check_shape("max_pool2d_backward", "dy", dy, indices.shape, "as the output")
    indices = dense(indices)
    grad = in_order_of(dy, indices)
    dx = empty_like(indices, tuple(x_shape), grad.dtype)
    if dx.size:
        launch(
            max_pool_backward,
            as_flat(grad),
            as_flat(indices),
            dy.shape,
            element_strides(indices),
            as_flat(dx),
            x_shape,
            element_strides(dx),
            work=dx.size,
        )
    return dx


def _check_indices(who: str, indices: np.ndarray, x_shape: tuple[int, ...]) -> None:
    """They become addresses: anything but places in a plane of ``x_shape`` must be stopped here."""
    if not isinstance(indices, np.ndarray) or native(indices) != np.int32:
        kind = indices.dtype if isinstance(indices, np.ndarray) else type(indices).__name__
        raise DtypeError(f"{who}: indices must be the int32 array of max_pool2d_forward, got {kind}")
    if len(x_shape) != 4 or indices.ndim != 4 or indices.shape[:2] != tuple(x_shape[:2]):
        raise ShapeError(
            f"{who}: indices must have shape (N, C, OH, OW) for x_shape {tuple(x_shape)}, got {indices.shape}"
        )
    if indices.size and not -1 <= indices.min() <= indices.max() < x_shape[2] * x_shape[3]:
        raise ArgumentError(
            f"{who}: indices must be places h * W + w in a plane of {tuple(x_shape[2:])}, "
            f"got values from {indices.min()} to {indices.max()}"
        )


def avg_pool2d(
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> np.ndarray:
    """The mean of each window, padding counted as zeros if ``count_include_pad``, else not at all.

    Shapes, dtypes and errors as in ``max_pool2d``.
    """
    window, y_shape = _geometry("avg_pool2d", x, kernel_size, stride, padding, 1, ceil_mode)
    source = dense(x)
    y = empty_like(source, y_shape)
    if y.size:
        launch(
            avg_pool,
            as_flat(source),
            source.shape,
            element_strides(source),
            as_flat(y),
            y_shape,
            element_strides(y),
            window,
            bool(count_include_pad),
            work=y.size * window[0] * window[1],
        )
    return y


def avg_pool2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> np.ndarray:
    """dx of ``avg_pool2d``: each dy shared out evenly over its window; x gives shape and memory order only.

    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "avg_pool2d_backward"
    window, y_shape = _geometry(who, x, kernel_size, stride, padding, 1, ceil_mode)
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, y_shape, "as the output")
    source = dense(x)
    grad = in_order_of(dy, source)
    dx = empty_like(source)
    if dx.size:
        launch(
            avg_pool_backward,
            as_flat(grad),
            y_shape,
            element_strides(grad),
            as_flat(dx),
            dx.shape,
            element_strides(dx),
            window,
            bool(count_include_pad),
            work=dx.size,
        )
    return dx


def _geometry(
    who: str, x: np.ndarray, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[tuple[int, ...], tuple[int, int, int, int]]:
    """The kernels' ``window`` and the output's shape."""
    check_float(who, "x", x)
    check_rank(who, "x", x, (4,), IMAGE_AXES)
    kernel = as_pair(who, "kernel_size", kernel_size, 1)
    strides = kernel if stride is None else as_pair(who, "stride", stride, 1)
    pads = as_pair(who, "padding", padding, 0)
    dilations = as_pair(who, "dilation", dilation, 1)
    if any(2 * pad > k for pad, k in zip(pads, kernel, strict=True)):
        raise ArgumentError(f"{who}: padding must be at most half of kernel_size {kernel}, got {pads}")
    extent = [_extent(x.shape[2 + i], kernel[i], strides[i], pads[i], dilations[i], ceil_mode) for i in range(2)]
    if min(extent) < 1:
        raise ShapeError(f"{who}: x must be at least as large as the window {kernel}, got {x.shape[2:]}")
    return (*kernel, *strides, *pads, *dilations), (x.shape[0], x.shape[1], extent[0], extent[1])


def _extent(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    # A last window must start inside the input or its left padding, as in PyTorch.
    return count - 1 if (count - 1) * stride >= size + padding else count
