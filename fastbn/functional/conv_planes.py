"""Convolution by ``kernels.conv``, over planes: the engine for few channels."""

import math

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, element_strides, empty_like, in_order_of, native
from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.functional.norm_sums import limits_of
from fastbn.functional.packed_weights import packed
from fastbn.kernels import conv as kernels
from fastbn.kernels._simd import TILE_ROWS
from fastbn.kernels._simd_lanes import DOT_COLUMNS, DOT_ROWS


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    window: Window,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    ceiling: float = math.inf,
) -> None:
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it."""
    geometry = forward_planes(weight.shape[1], (y.shape[2], y.shape[3]), window)
    none = np.empty(0, y.dtype)
    launch(
        kernels.correlate,
        _split(x, geometry),
        geometry.channel_size,
        weight.shape[1],
        geometry.width,
        geometry.offsets[0],
        packed(weight, lambda: _panels(weight.reshape(groups, -1, weight[0].size)), "planes"),
        none if bias is None else as_flat(dense_c(bias)),
        none if residual is None else as_flat(in_order_of(residual, y)),
        limits_of(relu, ceiling),
        as_flat(y),
        0,
        y.shape,
        element_strides(y),
        groups,
        np.empty((max_threads(), kernels.tile_elements(y.itemsize)), y.dtype),
        work=y.size * weight[0].size // 16,
    )


def backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int, need_dx: bool = True
) -> tuple[np.ndarray, np.ndarray | None, None]:
    """(dweight, dx, None): both gradients, dx None unless needed; it makes no sums of dx."""
    dx = backward_data(dy, x, weight, window, groups)[0] if need_dx else None
    return backward_weight(dy, x, weight, window, groups), dx, None


def backward_data(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int
) -> tuple[np.ndarray, None]:
    """dx like ``x``; it makes no sums of it."""
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
            limits_of(False),
            as_flat(dx),
            phase.first_row * strides[2] + phase.first_column * strides[3],
            (x.shape[0], x.shape[1], phase.height, phase.width),
            (strides[0], strides[1], window.stride[0] * strides[2], window.stride[1] * strides[3]),
            groups,
            np.empty((max_threads(), kernels.tile_elements(x.itemsize)), x.dtype),
            work=x.size * offsets.size // 16,
        )
    return dx, None


def backward_weight(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int) -> np.ndarray:
    """dweight (C_out, C_in / groups, kh, kw). What is summed together follows from the shape alone."""
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
        kernels.whole_tiles(np.arange(rows) * dy_size, DOT_ROWS),
        rows,
        _split(x, geometry),
        geometry.channel_size,
        weight.shape[1],
        kernels.whole_tiles(geometry.offsets[0], DOT_COLUMNS),
        geometry.offsets[0].size,
        groups,
        as_flat(partials),
        np.empty((max_threads(), kernels.dot_elements(x.itemsize)), x.dtype),
        work=dy.size * weight[0].size // 16,
    )
    return partials.sum(axis=0)


def _split(x: np.ndarray, geometry: Planes) -> np.ndarray:
    """The planes of a dense ``x``, and zeros that tiles may read past them."""
    elements = x.shape[0] * x.shape[1] * geometry.channel_size
    planes = empty((elements + geometry.width + kernels.slack(x.itemsize),), x.dtype)
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
