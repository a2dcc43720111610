"""Two-dimensional convolution (cross-correlation, as PyTorch and ONNX mean it)."""

from typing import Any

import numpy as np

from fastbn._checks import as_pair, check_float, check_int, check_per_channel, check_rank, check_same_dtype, check_shape
from fastbn._threads import launch, max_threads
from fastbn._views import (
    as_flat,
    as_ncs,
    check_out,
    dense,
    dense_c,
    element_strides,
    empty_like,
    in_order_of,
    is_channels_last,
    native,
)
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional import conv_blocks
from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.kernels import conv as kernels
from fastbn.kernels._simd import TILE_ROWS
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
    window, y_shape = _geometry(who, x, weight, stride, padding, dilation, groups)
    groups = int(groups)
    if bias is not None:
        check_same_dtype(who, "bias", bias, "x", x)
        check_per_channel(who, "bias", bias, weight.shape[0])
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
    window, y_shape = _geometry(who, x, weight, stride, padding, dilation, groups)
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
    engine = _backward_data, _backward_weight
    if conv_blocks.suits(weight.shape, groups, x.itemsize):
        engine = conv_blocks.backward_data, conv_blocks.backward_weight
    data, weights = engine
    dx = data(grad, source, weight, window, groups) if need_dx else None
    dbias = _channel_sums(grad) if need_dbias else None
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


def _channel_sums(dy: np.ndarray) -> np.ndarray:
    """(C,), summed in float64 and rounded once."""
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


def window_extent(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Outputs along one axis, 0 or less if the kernel does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _geometry(
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
