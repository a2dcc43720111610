"""Convolution by ``kernels.conv_depthwise``: one channel a group; arguments as in ``conv_blocks``."""

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, element_strides, empty_like, in_order_of
from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.functional.conv_portions import blocks_of, planes_of, rows_at_once
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import NOTHING, Sums, sums_for
from fastbn.kernels._simd import TILE_ROWS
from fastbn.kernels.conv_depthwise import correlate_depthwise, correlate_weights_depthwise
from fastbn.kernels.conv_panels import block_lanes

SPLITS = 16  # partial gradients of the weights


def suits(weight_shape: tuple[int, ...], groups: int, itemsize: int) -> bool:
    """Whether every channel is a group, and they fill a vector."""
    return weight_shape[:2] == (groups, 1) and groups >= block_lanes(itemsize)


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    window: Window,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    prologue: Prologue = PLAIN,
    moments: bool = False,
) -> Sums | None:
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it; its moments, if wanted."""
    whole = forward_planes(1, y.shape[2:], window)
    vectors = blocks_of(groups, x.itemsize) * max(planes_of(whole) * whole.width, y.shape[3])
    rows = rows_at_once(x.shape[0], y.shape[2], vectors)
    geometry = forward_planes(1, (rows, y.shape[3]), window)
    sums = None
    if moments:
        sums = sums_for(y.shape, y.itemsize, 1, rows)
        sums = sums._replace(shifts=np.empty(sums.partials.shape[1:], x.dtype))
    taps = np.arange(weight[0].size)
    place = 0, y.shape, element_strides(y)
    _correlate(x, prologue, geometry, rows, geometry.offsets[0], weight, taps, bias, residual, relu, y, *place, sums)
    return sums


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    normed: Prologue | None = None,
    residual: np.ndarray | None = None,
    need_dx: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, Sums | None]:
    """(dweight, dx, sums of dx); dx None unless needed, see ``backward_data`` and ``backward_weight``."""
    dx, sums = None, None
    dweight = backward_weight(dy, x, weight, window, groups, prologue, normed or PLAIN)
    if need_dx:
        dx, sums = backward_data(dy, x, weight, window, groups, prologue, residual, normed)
    return dweight, dx, sums


def backward_data(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    residual: np.ndarray | None = None,
    normed: Prologue | None = None,
) -> tuple[np.ndarray, Sums | None]:
    """dx like ``x``, ``residual`` added, and sums of it."""
    whole = backward_planes(1, dy.shape[2:], x.shape[2:], window)
    if whole.sparse:
        dx = np.zeros_like(x) if residual is None else residual.copy(order="K")
        residual = None if residual is None else dx
    else:
        dx = empty_like(x)
    strides = element_strides(dx)
    sums = None
    for phase, offsets in zip(whole.phases, whole.offsets, strict=True):
        rows = rows_at_once(x.shape[0], phase.height, blocks_of(groups, x.itemsize) * whole.width)
        if normed is not None and len(whole.phases) == 1 and not whole.sparse:
            sums = sums_for(dx.shape, dx.itemsize, 1, rows)._replace(
                source=x, affine=normed.affine, relu=normed.relu, ceiling=normed.ceiling
            )
        taps = (phase.rows[:, None] * weight.shape[3] + phase.columns).reshape(-1)
        plane_rows = rows + int(offsets.max()) // whole.width
        local = Planes(whole.starts_h, whole.starts_w, (1, 1), plane_rows, whole.width, plane_rows * whole.width)
        place = (
            phase.first_row * strides[2] + phase.first_column * strides[3],
            (x.shape[0], x.shape[1], phase.height, phase.width),
            (strides[0], strides[1], window.stride[0] * strides[2], window.stride[1] * strides[3]),
        )
        _correlate(dy, prologue, local, rows, offsets, weight, taps, None, residual, False, dx, *place, sums)
    return dx, sums


def backward_weight(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    normed: Prologue = PLAIN,
) -> np.ndarray:
    """dweight (C, 1, kh, kw), summed in float64 over runs of the image. What a run is follows from the shape alone."""
    lanes, depth = block_lanes(x.itemsize), blocks_of(groups, x.itemsize)
    whole = forward_planes(1, dy.shape[2:], window)
    rows = rows_at_once(x.shape[0], dy.shape[2], depth * (planes_of(whole) + 1) * whole.width)
    geometry = forward_planes(1, (rows, dy.shape[3]), window)
    block = geometry.channel_size * lanes
    runs = x.shape[0] * -(-dy.shape[2] // rows)
    runs_at_once = -(-runs // SPLITS)
    partials = np.empty((-(-runs // runs_at_once), weight[0].size, depth * lanes))
    launch(
        correlate_weights_depthwise,
        as_flat(x),
        x.shape,
        element_strides(x),
        normed.affine,
        normed.operands()[1],
        normed.operands()[-1],
        as_flat(dy),
        dy.shape,
        element_strides(dy),
        *prologue.operands()[:-1],
        geometry.starts_h,
        geometry.starts_w,
        *geometry.stride,
        rows,
        geometry.height,
        geometry.width,
        block,
        geometry.offsets[0] * lanes,
        runs_at_once,
        partials,
        empty(
            (max_threads(), (depth * (geometry.channel_size + rows * geometry.width) + geometry.width) * lanes), x.dtype
        ),
        work=dy.size,
    )
    return partials.sum(axis=0)[:, :groups].T.astype(x.dtype, order="C").reshape(weight.shape)


def _correlate(
    x: np.ndarray,
    prologue: Prologue,
    geometry: Planes,
    rows: int,
    offsets: np.ndarray,
    weight: np.ndarray,
    taps: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    out: np.ndarray,
    first: int,
    out_shape: tuple[int, ...],
    out_strides: tuple[int, ...],
    sums: Sums | None,
) -> None:
    """Launch ``correlate_depthwise``; geometry: planes of ``rows`` rows of the output, offsets: of taps, in pixels."""
    lanes, channels = block_lanes(x.itemsize), x.shape[1]
    depth, block = blocks_of(channels, x.itemsize), geometry.channel_size * lanes
    room = depth * block + (TILE_ROWS + geometry.width + TILE_ROWS) * lanes  # a tile, and what tiles may read past
    weights = np.zeros((taps.size, depth * lanes), x.dtype)
    weights[:, :channels] = weight.reshape(channels, -1)[:, taps].T
    launch(
        correlate_depthwise,
        as_flat(x),
        x.shape,
        element_strides(x),
        *prologue.operands(),
        geometry.starts_h,
        geometry.starts_w,
        *geometry.stride,
        rows,
        geometry.height,
        geometry.width,
        block,
        offsets * lanes,
        weights,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, out)),
        0.0 if relu else -np.inf,
        as_flat(out),
        first,
        out_shape,
        out_strides,
        *(NOTHING if sums is None else sums.operands()),
        empty((max_threads(), room), x.dtype),
        work=out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3],
    )
