"""Two-dimensional convolution (cross-correlation, as PyTorch and ONNX mean it)."""

import numpy as np

from fastbn._checks import check_same_dtype, check_shape
from fastbn._threads import launch, max_threads
from fastbn._views import (
    as_flat,
    as_ncs,
    dense,
    dense_c,
    element_strides,
    empty_like,
    in_order_of,
    is_channels_last,
    native,
)
from fastbn.functional import conv_blocks
from fastbn.functional.conv_arguments import check_convolution, check_operands
from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.kernels import conv as kernels
from fastbn.kernels._simd import TILE_ROWS
from fastbn.kernels.sums import chunk_count, chunk_grid, sums_ncs

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
    sizes, y_shape = check_convolution(who, 2, x, weight, stride, padding, dilation, groups)
    window, groups = Window(*sizes), int(groups)
    source = dense(x)
    check_operands(who, x, weight, bias, residual, out, y_shape)
    y = empty_like(source, y_shape) if out is None else out
    if y.size == 0:
        return y
    if conv_blocks.suits(weight.shape, groups, y.itemsize):
        conv_blocks.forward(source, dense_c(weight), bias, window, groups, residual, bool(relu), y)
        return y
    geometry = forward_planes(weight.shape[1], (y_shape[2], y_shape[3]), window)
    none = np.empty(0, y.dtype)
    launch(
        kernels.correlate,
        _split(source, geometry),
        geometry.channel_size,
        weight.shape[1],
        geometry.width,
        geometry.offsets[0],
        _panels(weight.reshape(groups, -1, weight[0].size)),
        none if bias is None else as_flat(dense_c(bias)),
        none if residual is None else as_flat(in_order_of(residual, y)),
        bool(relu),
        as_flat(y),
        0,
        y_shape,
        element_strides(y),
        groups,
        np.empty((max_threads(), kernels.tile_elements(y.itemsize)), y.dtype),
        work=y.size * weight[0].size // 16,
    )
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
    engine = _backward_data, _backward_weight
    if conv_blocks.suits(weight.shape, groups, x.itemsize):
        engine = conv_blocks.backward_data, conv_blocks.backward_weight
    data, weights = engine
    dx = data(grad, source, weight, window, groups) if need_dx else None
    dbias = channel_sums(grad) if need_dbias else None
    return dx, weights(grad, source, weight, window, groups), dbias


def _backward_data(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int) -> np.ndarray:
    channels_out, channels = weight.shape[0] // groups, weight.shape[1]
    geometry = backward_planes(channels_out, dy.shape[2:], x.shape[2:], window)
    planes = _split(dy, geometry)
    dx = np.zeros_like(x) if geometry.sparse else empty_like(x)
    strides = element_strides(dx)
    none = np.empty(0, x.dtype)
    by_group = weight.reshape(groups, channels_out, channels, *weight.shape[2:])
    for phase, offsets in zip(geometry.phases, geometry.offsets, strict=True):
        taps = by_group[:, :, :, phase.rows][..., phase.columns]
        launch(
            kernels.correlate,
            planes,
            geometry.channel_size,
            channels_out,
            geometry.width,
            offsets,
            _panels(taps.transpose(0, 2, 1, 3, 4).reshape(groups, channels, -1)),
            none,
            none,
            False,
            as_flat(dx),
            phase.first_row * strides[2] + phase.first_column * strides[3],
            (x.shape[0], x.shape[1], phase.height, phase.width),
            (strides[0], strides[1], window.stride[0] * strides[2], window.stride[1] * strides[3]),
            groups,
            np.empty((max_threads(), kernels.tile_elements(x.itemsize)), x.dtype),
            work=x.size * offsets.size // 16,
        )
    return dx


def _backward_weight(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int) -> np.ndarray:
    geometry = forward_planes(weight.shape[1], dy.shape[2:], window)
    lanes = kernels.lanes(x.itemsize)
    dy_size = -(-dy.shape[2] * geometry.width // lanes) * lanes
    rows = weight.shape[0] // groups
    # Split over images where the weights alone are too few tasks: from the shape, never from the machine.
    splits = max(1, min(x.shape[0], 2 * kernels.TASKS * 1024 // weight.size))
    images_at_once = -(-x.shape[0] // splits)
    partials = np.empty((-(-x.shape[0] // images_at_once), *weight.shape), x.dtype)
    launch(
        kernels.correlate_weights,
        x.shape[0],
        images_at_once,
        _split(dy, Planes.plain(dy.shape[2], geometry.width, dy_size)),
        dy_size,
        rows,
        _split(x, geometry),
        geometry.channel_size,
        weight.shape[1],
        geometry.offsets[0],
        groups,
        as_flat(partials),
        np.empty((max_threads(), kernels.dot_elements(x.itemsize)), x.dtype),
        work=dy.size * weight[0].size // 16,
    )
    return partials.sum(axis=0)


def channel_sums(dy: np.ndarray) -> np.ndarray:
    """(C,) of a dense (N, C, H, W), summed in float64 and rounded once."""
    if is_channels_last(dy):
        return dy.sum(axis=(0, 2, 3), dtype=np.float64).astype(dy.dtype)
    view = as_ncs(dy)
    n, c, s = view.shape
    sums = np.empty((chunk_count(n, s), c))
    launch(sums_ncs, view, *chunk_grid(n, s), sums, work=dy.size)
    return sums.sum(axis=0).astype(dy.dtype)


def _split(x: np.ndarray, geometry: Planes) -> np.ndarray:
    """The planes of a dense ``x``, and zeros that tiles may read past them."""
    elements = x.shape[0] * x.shape[1] * geometry.channel_size
    planes = np.empty(elements + geometry.width + kernels.slack(x.itemsize), x.dtype)
    planes[elements:] = 0
    launch(
        kernels.split_planes,
        as_flat(x),
        x.shape,
        element_strides(x),
        geometry.starts_h,
        geometry.starts_w,
        *geometry.stride,
        geometry.height,
        geometry.width,
        planes,
        geometry.channel_size,
        work=elements,
    )
    return planes


def _panels(weights: np.ndarray) -> np.ndarray:
    """(groups, rows, K) as flat panels (groups, row panels, K, TILE_ROWS), zero past the last row."""
    groups, rows, depth = weights.shape
    count = -(-rows // TILE_ROWS)
    padded = np.zeros((groups, count * TILE_ROWS, depth), native(weights))
    padded[:, :rows] = weights
    return np.ascontiguousarray(padded.reshape(groups, count, TILE_ROWS, depth).swapaxes(2, 3)).reshape(-1)
