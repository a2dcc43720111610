"""Convolution by ``kernels.conv_blocks``: in what portions, with weights as panels.

Channels-last operands may pass through a batch norm on their way in, see ``conv_prologue``, and be summed for one on
their way out, see ``norm_sums``.
"""

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, element_strides, empty_like, in_order_of
from fastbn.functional.conv_geometry import (
    Planes,
    Window,
    backward_patches,
    backward_planes,
    forward_patches,
    forward_planes,
)
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import NOTHING, Sums, sums_for
from fastbn.functional.packed_weights import packed
from fastbn.kernels import conv_panels
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES
from fastbn.kernels.conv_blocks import correlate_blocks
from fastbn.kernels.conv_blocks_weights import correlate_weights_blocks

BLOCKS = 1 << 19  # bytes, about, of the blocks of a task: with a panel they stay in the second cache
TASKS = 16  # wanted at least
# Planes hold only what a tap meets, a plane for each, where padding would take tiles so many times as large, and each
# pixel serves so many outputs that copying it for every tap does not show.
WASTE, GATHERED = 1.3, 64


def suits(weight_shape: tuple[int, ...], groups: int, itemsize: int) -> bool:
    """Whether a group has enough channels on both sides to fill blocks."""
    lanes = conv_panels.block_lanes(itemsize)
    return min(weight_shape[0] // groups, weight_shape[1]) >= lanes


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
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it; its moments, if wanted.

    prologue: of a channels-last ``x``. moments: of a channels-last y of one group.
    """
    channels_out, channels = weight.shape[0] // groups, weight.shape[1]
    taps = weight.shape[2] * weight.shape[3]
    by_channel = channels_out * weight[0].size, weight[0].size, taps
    depth = blocks_of(channels, x.itemsize)
    whole = forward_planes(1, y.shape[2:], window)
    gathered = channels_out >= GATHERED and _wastes(y.shape[2], y.shape[3], whole.width)
    if gathered:
        whole = forward_patches(y.shape[2:], window)
    vectors = depth * planes_of(whole) * whole.width
    if moments:  # the output stays in cache until it is summed
        vectors = max(vectors, blocks_of(channels_out, x.itemsize) * y.shape[3])
    rows = rows_at_once(x.shape[0] * groups, y.shape[2], vectors)
    images = _images_at_once(x.shape[0], rows < y.shape[2], depth * whole.channel_size, groups, weight)
    sums = None
    if moments:
        sums = sums_for(y, images, rows)
        sums = sums._replace(shifts=np.empty(sums.partials.shape[1:], x.dtype))
    size = rows, y.shape[3]
    geometry = forward_patches(size, window) if gathered else forward_planes(1, size, window)
    _correlate(
        x,
        prologue,
        geometry,
        images,
        rows,
        packed(weight, lambda: _panels(weight, by_channel, np.arange(taps), groups, channels_out, channels)),
        bias,
        residual,
        relu,
        y,
        0,
        y.shape,
        element_strides(y),
        groups,
        sums,
    )
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
    """dx like ``x``, ``residual`` added, and sums of it.

    prologue: of a channels-last ``dy``. normed: the prologue by which x became the convolution's input; then sums of
    dx for it are made where that costs no pass of its own, else None.
    """
    channels_out, channels = weight.shape[0] // groups, weight.shape[1]
    whole = backward_planes(1, dy.shape[2:], x.shape[2:], window)
    if whole.sparse:
        dx = np.zeros_like(x) if residual is None else residual.copy(order="K")
    else:
        dx = empty_like(x)
    strides = element_strides(dx)
    sums = None
    by_channel = channels_out * weight[0].size, weight[0, 0].size, weight[0].size
    depth = blocks_of(channels_out, x.itemsize)
    for phase, offsets in zip(whole.phases, whole.offsets, strict=True):
        gathered = channels >= GATHERED and _wastes(phase.height, phase.width, whole.width)
        planes = whole
        if gathered:
            planes = backward_patches(whole, offsets, phase, (phase.height, phase.width))
        vectors = depth * planes_of(planes) * planes.width
        summed = normed is not None and groups == 1 and len(whole.phases) == 1 and not whole.sparse
        if summed:
            vectors = max(vectors, blocks_of(channels, x.itemsize) * phase.width)
        rows = rows_at_once(x.shape[0] * groups, phase.height, vectors)
        images = _images_at_once(x.shape[0], rows < phase.height, depth * planes.channel_size, groups, weight)
        if summed:
            assert normed is not None
            sums = sums_for(dx, images, rows)._replace(
                source=x, affine=normed.affine, relu=normed.relu, ceiling=normed.ceiling
            )
        taps = (phase.rows[:, None] * weight.shape[3] + phase.columns).reshape(-1)
        if gathered:
            local = backward_patches(whole, offsets, phase, (rows, phase.width))
        else:
            plane_rows = rows + int(offsets.max()) // whole.width
            plane = plane_rows * whole.width
            local = Planes(whole.starts_h, whole.starts_w, (1, 1), plane_rows, whole.width, plane, (offsets,))
        _correlate(
            dy,
            prologue,
            local,
            images,
            rows,
            _panels(weight, by_channel, taps, groups, channels, channels_out),
            None,
            dx if whole.sparse and residual is not None else residual,
            False,
            dx,
            phase.first_row * strides[2] + phase.first_column * strides[3],
            (x.shape[0], x.shape[1], phase.height, phase.width),
            (strides[0], strides[1], window.stride[0] * strides[2], window.stride[1] * strides[3]),
            groups,
            sums,
        )
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
    """dweight (C_out, C_in / groups, kh, kw). What is summed together follows from the shape alone.

    prologue: of a channels-last ``dy``, normed: of a channels-last ``x``.
    """
    channels_out, channels = weight.shape[0] // groups, weight.shape[1]
    taps, itemsize = weight.shape[2] * weight.shape[3], x.itemsize
    lanes, columns = conv_panels.block_lanes(itemsize), conv_panels.panel_columns(itemsize)
    depth, panel_count = blocks_of(channels, itemsize), -(-channels_out // columns)
    whole = forward_planes(1, dy.shape[2:], window)
    gathered = channels_out >= 2 * GATHERED and whole.width > WASTE * dy.shape[3]
    if gathered:
        whole = forward_patches(dy.shape[2:], window)
    rows = rows_at_once(x.shape[0] * groups, dy.shape[2], depth * planes_of(whole) * whole.width)
    size = rows, dy.shape[3]
    geometry = forward_patches(size, window) if gathered else forward_planes(1, size, window)
    images = _images_at_once(x.shape[0], rows < dy.shape[2], depth * whole.channel_size, groups, weight)
    block = images * geometry.channel_size * lanes
    shape = groups, panel_count, taps, depth, lanes, columns
    gradient = itemsize * int(np.prod(shape))
    runs = -(-x.shape[0] // images) * -(-dy.shape[2] // rows)
    # Few and small gradients are summed apart; where they are large, tasks share out their panels instead.
    runs_at_once = -(-runs // max(1, min(runs, TASKS, -(-TASKS * BLOCKS // gradient))))
    splits = -(-runs // runs_at_once)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // (splits * groups))))
    panels = empty((splits * int(np.prod(shape)),), x.dtype)
    room = rows * geometry.width
    launch(
        correlate_weights_blocks,
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
        images,
        rows,
        geometry.height,
        geometry.width,
        block,
        _in_blocks(geometry, images) * lanes,
        groups,
        runs_at_once,
        at_once,
        panels,
        empty((max_threads(), depth * block + geometry.width * lanes + at_once * columns * images * room), x.dtype),
        work=dy.size * weight[0].size // 16,
    )
    dweight = empty(weight.shape, x.dtype)
    spare = np.empty((max_threads(), 2 * lanes * lanes), x.dtype)
    share = splits, taps, groups, channels_out, channels
    launch(conv_panels.add_panels, panels, *share, as_flat(dweight), spare, work=panels.size)
    return dweight


def _correlate(
    x: np.ndarray,
    prologue: Prologue,
    geometry: Planes,
    images: int,
    rows: int,
    panels: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    out: np.ndarray,
    first: int,
    out_shape: tuple[int, ...],
    out_strides: tuple[int, ...],
    groups: int,
    sums: Sums | None,
) -> None:
    """Launch ``correlate_blocks``; geometry: the planes of ``rows`` rows of the output."""
    lanes, columns = conv_panels.block_lanes(x.itemsize), conv_panels.panel_columns(x.itemsize)
    depth = blocks_of(x.shape[1] // groups, x.itemsize)
    block = images * geometry.channel_size * lanes
    panel_count = -(-(out_shape[1] // groups) // columns)
    tasks = -(-x.shape[0] // images) * groups * -(-out_shape[2] // rows)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // tasks)))
    if out_shape[3] <= TILE_ROWS // 2:  # two panels side by side
        at_once += at_once % 2
    slack = (geometry.width + TILE_ROWS) * lanes  # that tiles may read past the last plane, for rows that are dropped
    launch(
        correlate_blocks,
        as_flat(x),
        x.shape,
        element_strides(x),
        *prologue.operands(),
        geometry.starts_h,
        geometry.starts_w,
        *geometry.stride,
        images,
        rows,
        geometry.height,
        geometry.width,
        block,
        _in_blocks(geometry, images) * lanes,
        panels,
        at_once,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, out)),
        0.0 if relu else -np.inf,
        as_flat(out),
        first,
        out_shape,
        out_strides,
        groups,
        *(NOTHING if sums is None else sums.operands()),
        empty((max_threads(), conv_panels.tile_elements(x.itemsize) + depth * block + slack), x.dtype),
        work=out_shape[0] * out_shape[2] * out_shape[3] * panels.size // (16 * groups),
    )


def blocks_of(channels: int, itemsize: int) -> int:
    """Blocks of so many channels."""
    return -(-channels // conv_panels.block_lanes(itemsize))


def planes_of(geometry: Planes) -> int:
    """Planes of a channel."""
    return len(geometry.starts_h) * len(geometry.starts_w)


def _in_blocks(geometry: Planes, images: int) -> np.ndarray:
    """The taps' offsets in planes that hold so many images one after the other, in pixels."""
    offsets, plane = geometry.offsets[0], geometry.height * geometry.width
    return offsets // plane * images * plane + offsets % plane


def _wastes(rows: int, length: int, columns: int) -> bool:
    """Whether the tiles of an image in planes of ``columns`` hold too many pixels that are none of the output's."""
    height = TILE_ROWS // 2 if length <= TILE_ROWS // 2 else TILE_ROWS
    by_row, run_on = rows * -(-length // height), -(-((rows - 1) * columns + length) // height)
    return height * min(by_row, run_on) > WASTE * rows * length


def rows_at_once(images: int, rows: int, vectors: int) -> int:
    """Rows of the output in one task, from the shape alone: blocks of a good size, and tasks for all.

    vectors: of the blocks that one row needs.
    """
    fit = max(1, BLOCKS // (vectors * VECTOR_BYTES))
    wanted = -(-rows // -(-TASKS // images)) if images < TASKS else rows
    pieces = -(-rows // max(1, min(fit, wanted, rows)))
    return -(-rows // pieces)


def _images_at_once(count: int, in_rows: bool, vectors: int, groups: int, weight: np.ndarray) -> int:
    """Images of a task. Several, where weights are too large for each image to read them all, and images small.

    in_rows: whether a task has not even one image. vectors: of the blocks that one image needs.
    """
    if in_rows or weight.nbytes <= BLOCKS:
        return 1
    pairs = -(-weight.shape[0] // (2 * groups * conv_panels.panel_columns(weight.itemsize)))
    pieces = max(-(-count * vectors * VECTOR_BYTES // BLOCKS), -(-TASKS // (groups * pairs)))
    return -(-count // min(count, pieces))


def _panels(
    weight: np.ndarray, strides: tuple[int, int, int], taps: np.ndarray, groups: int, outputs: int, channels: int
) -> np.ndarray:
    """A C-contiguous ``weight`` as ``kernels.conv_panels`` lays it out, its ``taps`` only."""
    weight = weight if weight.flags.writeable else weight.copy()  # a kernel of its own would be compiled for read-only
    lanes, columns = conv_panels.block_lanes(weight.itemsize), conv_panels.panel_columns(weight.itemsize)
    size = groups * -(-outputs // columns) * columns * taps.size * -(-channels // lanes) * lanes
    panels = empty((size,), weight.dtype)
    places = np.full(weight[0, 0].size, -1)
    places[taps] = np.arange(taps.size)
    spare = np.empty((max_threads(), lanes * lanes), weight.dtype)
    share = strides, places, taps.size, groups, outputs, channels
    launch(conv_panels.pack_panels, as_flat(weight), *share, panels, spare, work=size)
    return panels
