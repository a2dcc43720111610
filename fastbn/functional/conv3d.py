"""Three-dimensional convolution: the sum, over the depths of the kernel, of two-dimensional ones.

Volumes are read as (D, N, C, H, W), so that the images of neighbouring depths are one batch for ``conv2d``. Volumes lie
so already where D is 1, channels-last ones also where N is 1; others are copied once, which is little beside the
multiplications.
"""

from itertools import groupby
from typing import Any

import numpy as np

from fastbn._checks import check_same_dtype, check_shape
from fastbn._memory import empty
from fastbn._views import dense, dense_c, empty_like, in_order_of, is_channels_last
from fastbn.functional.conv import channel_sums, conv2d, conv2d_backward
from fastbn.functional.conv_arguments import check_convolution, check_operands

Triple = int | tuple[int, int, int]


def conv3d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Triple = 1,
    padding: Triple | str = 0,
    dilation: Triple = 1,
    groups: int = 1,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve ``x`` with ``weight``, add ``bias`` and ``residual``, then max(y, 0) if ``relu``.

    x: (N, C_in, D, H, W), float32 or float64, C-contiguous or channels-last. weight:
    (C_out, C_in / groups, kd, kh, kw). stride, padding, dilation: an integer or (d, h, w). Everything else as in
    ``conv2d``.
    Returns (N, C_out, OD, OH, OW) in the memory order of ``x``. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv3d"
    sizes, y_shape = check_convolution(who, 3, x, weight, stride, padding, dilation, groups)
    check_operands(who, x, weight, bias, residual, out, y_shape)
    source = dense(x)
    y = empty_like(source, y_shape) if out is None else out
    if y.size == 0:
        return y
    last = _images_are_channels_last(source)
    planes, total = _by_depth(source, last), _by_depth(y, last, copy=False)
    if residual is not None:
        total[...] = residual.transpose(2, 0, 1, 3, 4)
    kernels, options = np.ascontiguousarray(np.moveaxis(weight, 2, 0)), _of_images(sizes)
    for first, end, taps in _runs(x.shape[2], y_shape[2], sizes):
        target = _images(total, slice(first, end))
        added = None if residual is None else target
        for position, tap in enumerate(taps or [0]):
            seen = _images(planes, _depths(tap, first, end, sizes)) if taps else _no_images(planes, len(target))
            relu_now = relu and position >= len(taps) - 1
            shift = None if position else bias
            conv2d(seen, kernels[tap], shift, *options, groups, residual=added, relu=relu_now, out=target)
            added = target
    if not np.may_share_memory(total, y):
        y[...] = total.transpose(1, 2, 0, 3, 4)
    return y


def conv3d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Triple = 1,
    padding: Triple | str = 0,
    dilation: Triple = 1,
    groups: int = 1,
    *,
    need_dx: bool = True,
    need_dbias: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Gradients of ``conv3d`` without residual and ReLU: (dx, dweight, dbias), as ``conv2d_backward`` has them."""
    who = "conv3d_backward"
    sizes, y_shape = check_convolution(who, 3, x, weight, stride, padding, dilation, groups)
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, y_shape, "as the output")
    source = dense(x)
    grad = in_order_of(dy, source)
    dx = empty_like(source) if need_dx else None
    dweight = np.zeros((weight.shape[2], *weight.shape[:2], *weight.shape[3:]), source.dtype)
    kernels, options = np.ascontiguousarray(np.moveaxis(weight, 2, 0)), _of_images(sizes)
    last = _images_are_channels_last(source)
    planes, grads = _by_depth(source, last), _by_depth(grad, last)
    total = None if dx is None else _by_depth(dx, last, copy=False)
    if total is not None:
        total[...] = 0
    for tap in range(weight.shape[2]):
        first, end = _reach(tap, x.shape[2], y_shape[2], sizes)
        if end <= first or dy.size == 0:
            continue
        depths = _depths(tap, first, end, sizes)
        images = _images(grads, slice(first, end)), _images(planes, depths)
        dimages, dweight[tap], _ = conv2d_backward(
            *images, kernels[tap], *options, groups, need_dx=need_dx, need_dbias=False
        )
        if total is not None and dimages is not None:
            total[depths] += dimages.reshape(-1, *total.shape[1:])
    if dx is not None and total is not None and not np.may_share_memory(total, dx):
        dx[...] = total.transpose(1, 2, 0, 3, 4)
    return dx, dense_c(np.moveaxis(dweight, 0, 2)), _dbias(grad) if need_dbias else None


def _dbias(dy: np.ndarray) -> np.ndarray:
    n, c, d, h, w = dy.shape
    return channel_sums(dy.reshape(n, c, d * h, w)) if dy.size else np.zeros(c, dy.dtype)


def _of_images(sizes: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Stride, padding and dilation of the two-dimensional convolutions."""
    _, stride, padding, dilation = (size[1:] for size in sizes)
    return stride, padding, dilation


def _reach(tap: int, in_depth: int, out_depth: int, sizes: tuple[Any, ...]) -> tuple[int, int]:
    """The depths [first, end) of the output for which the kernel's depth ``tap`` lies inside x."""
    _, stride, padding, dilation = (size[0] for size in sizes)
    offset = tap * dilation - padding
    return max(0, -(offset // stride)), min(out_depth, (in_depth - 1 - offset) // stride + 1)


def _depths(tap: int, first: int, end: int, sizes: tuple[Any, ...]) -> slice:
    """The depths of x that ``tap`` meets for the output's depths [first, end), which it reaches."""
    _, stride, padding, dilation = (size[0] for size in sizes)
    start = first * stride + tap * dilation - padding
    return slice(start, start + (end - first - 1) * stride + 1, stride)


def _runs(in_depth: int, out_depth: int, sizes: tuple[Any, ...]) -> list[tuple[int, int, list[int]]]:
    """(first, end, taps): runs of depths of the output that the same taps reach; none where all is padding."""
    reaches = [_reach(tap, in_depth, out_depth, sizes) for tap in range(sizes[0][0])]
    taps = [[tap for tap, (first, end) in enumerate(reaches) if first <= depth < end] for depth in range(out_depth)]
    runs = [list(run) for _, run in groupby(range(out_depth), key=lambda depth: taps[depth])]
    return [(run[0], run[-1] + 1, taps[run[0]]) for run in runs]


def _images_are_channels_last(x: np.ndarray) -> bool:
    """Whether ``conv2d`` takes the images of ``x`` for channels-last; of single pixels it does not."""
    return is_channels_last(x) and x.shape[3] * x.shape[4] > 1


def _by_depth(array: np.ndarray, last: bool, *, copy: bool = True) -> np.ndarray:
    """(N, C, D, H, W) as (D, N, C, H, W), lying as (D, N, H, W, C) if ``last``; new memory where it lies otherwise.

    copy: False leaves new memory uninitialised.
    """
    stack = array.transpose(2, 0, 1, 3, 4)
    if (stack.transpose(0, 1, 3, 4, 2) if last else stack).flags.c_contiguous:
        return stack
    d, n, c, h, w = stack.shape
    new = empty((d, n, h, w, c), array.dtype).transpose(0, 1, 4, 2, 3) if last else empty(stack.shape, array.dtype)
    if copy:
        new[...] = stack
    return new


def _images(stack: np.ndarray, depths: slice) -> np.ndarray:
    """Some depths of (D, N, C, H, W) as one batch (., C, H, W) in the same memory order; a view unless they leap."""
    chosen = stack[depths]
    if chosen.shape[0] > 1 and depths.step not in (None, 1):
        chosen = chosen.copy(order="K")
    return chosen.reshape(-1, *stack.shape[2:])


def _no_images(stack: np.ndarray, count: int) -> np.ndarray:
    """Images of the padding, in the memory order of those in ``stack``."""
    zeros = empty_like(_images(stack, slice(0, 1)), (count, *stack.shape[2:]))
    zeros[...] = 0
    return zeros
