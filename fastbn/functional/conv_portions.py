"""How ``kernels.conv_blocks`` goes about a convolution: places, portions and panels, from shapes alone."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_geometry import (
    Planes,
    Window,
    backward_patches,
    backward_planes,
    forward_patches,
    forward_planes,
)
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES
from fastbn.kernels.conv_panels import block_lanes, panel_columns, tile_elements

BLOCKS = 1 << 19  # bytes, about, of the blocks of a task: with a panel they stay in the second cache
TASKS = 16  # wanted at least
# Planes hold only what a tap meets, a plane for each, where padding would take tiles so many times as large, and each
# pixel serves so many outputs that copying it for every tap does not show.
WASTE, GATHERED = 1.3, 64

Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where a task's pixels come to lie: operands of ``fill_blocks``, ``block`` and ``offsets`` in elements."""

    starts_h: np.ndarray
    starts_w: np.ndarray
    stride_h: int
    stride_w: int
    images: int
    rows: int
    plane_rows: int
    columns: int
    block: int
    offsets: np.ndarray


class Layout(NamedTuple):
    """Of weights in panels, as ``pack_panels`` takes it."""

    strides: tuple[int, int, int]
    places: np.ndarray
    taps: int
    groups: int
    outputs: int
    channels: int


class Portions(NamedTuple):
    """Of ``correlate_blocks``. panels: elements; workspace: elements of a thread's."""

    place: Place
    at_once: int
    layout: Layout
    panels: int
    workspace: int
    work: int


class Part(NamedTuple):
    """The pixels of dx that one launch writes: a phase of ``backward_planes``."""

    portions: Portions
    first_row: int
    first_column: int
    height: int
    width: int


class WeightPortions(NamedTuple):
    """Of ``correlate_weights_blocks``. panels, workspace: as in ``Portions``."""

    place: Place
    runs_at_once: int
    at_once: int
    splits: int
    panels: int
    workspace: int
    work: int


@lru_cache(maxsize=512)
def forward_portions(
    x_shape: Shape,
    weight_shape: Shape,
    y_size: tuple[int, int],
    window: Window,
    groups: int,
    itemsize: int,
    summed: bool,
) -> Portions:
    """For y, of ``y_size`` pixels; summed: it stays in cache until its moments are taken."""
    channels_out, channels, taps = weight_shape[0] // groups, weight_shape[1], weight_shape[2] * weight_shape[3]
    whole = forward_planes(1, y_size, window)
    gathered = channels_out >= GATHERED and _wastes(*y_size, whole.width)
    if gathered:
        whole = forward_patches(y_size, window)
    vectors = blocks_of(channels, itemsize) * planes_of(whole) * whole.width
    if summed:
        vectors = max(vectors, blocks_of(channels_out, itemsize) * y_size[1])
    rows = rows_at_once(x_shape[0] * groups, y_size[0], vectors)
    images = _images_at_once(x_shape[0], rows < y_size[0], whole, weight_shape, groups, channels, itemsize)
    size = rows, y_size[1]
    planes = forward_patches(size, window) if gathered else forward_planes(1, size, window)
    layout = Layout(
        (channels_out * channels * taps, channels * taps, taps), np.arange(taps), taps, groups, channels_out, channels
    )
    return _portions(planes, images, rows, (x_shape[0], *y_size), layout, itemsize)


@lru_cache(maxsize=512)
def backward_portions(
    dy_shape: Shape, x_shape: Shape, weight_shape: Shape, window: Window, groups: int, itemsize: int, summed: bool
) -> tuple[Part, ...]:
    """For dx, part by part; summed: it stays in cache until it is summed."""
    channels_out, channels, taps = weight_shape[0] // groups, weight_shape[1], weight_shape[2] * weight_shape[3]
    planes = backward_planes(1, dy_shape[2:], x_shape[2:], window)
    strides = channels_out * channels * taps, taps, channels * taps
    parts = []
    for phase, offsets in zip(planes.phases, planes.offsets, strict=True):
        gathered = channels >= GATHERED and _wastes(phase.height, phase.width, planes.width)
        whole = planes
        if gathered:
            whole = backward_patches(planes, offsets, phase, (phase.height, phase.width))
        vectors = blocks_of(channels_out, itemsize) * planes_of(whole) * whole.width
        if summed:
            vectors = max(vectors, blocks_of(channels, itemsize) * phase.width)
        rows = rows_at_once(x_shape[0] * groups, phase.height, vectors)
        images = _images_at_once(x_shape[0], rows < phase.height, whole, weight_shape, groups, channels_out, itemsize)
        if gathered:
            local = backward_patches(planes, offsets, phase, (rows, phase.width))
        else:
            plane_rows = rows + int(offsets.max()) // planes.width
            plane = plane_rows * planes.width
            local = Planes(planes.starts_h, planes.starts_w, (1, 1), plane_rows, planes.width, plane, (offsets,))
        used = (phase.rows[:, None] * weight_shape[3] + phase.columns).reshape(-1)
        places = np.full(taps, -1)
        places[used] = np.arange(used.size)
        layout = Layout(strides, places, used.size, groups, channels, channels_out)
        size = x_shape[0], phase.height, phase.width
        portions = _portions(local, images, rows, size, layout, itemsize)
        parts.append(Part(portions, phase.first_row, phase.first_column, phase.height, phase.width))
    return tuple(parts)


@lru_cache(maxsize=512)
def weight_portions(dy_shape: Shape, weight_shape: Shape, window: Window, groups: int, itemsize: int) -> WeightPortions:
    """For dweight."""
    count, size = dy_shape[0], (dy_shape[2], dy_shape[3])
    channels_out, channels, taps = weight_shape[0] // groups, weight_shape[1], weight_shape[2] * weight_shape[3]
    lanes, columns = block_lanes(itemsize), panel_columns(itemsize)
    depth, panel_count = blocks_of(channels, itemsize), -(-channels_out // columns)
    whole = forward_planes(1, size, window)
    gathered = channels_out >= 2 * GATHERED and whole.width > WASTE * size[1]
    if gathered:
        whole = forward_patches(size, window)
    rows = rows_at_once(count * groups, size[0], depth * planes_of(whole) * whole.width)
    images = _images_at_once(count, rows < size[0], whole, weight_shape, groups, channels, itemsize)
    planes = forward_patches((rows, size[1]), window) if gathered else forward_planes(1, (rows, size[1]), window)
    place = _place(planes, images, rows, itemsize)
    elements = groups * panel_count * taps * depth * lanes * columns
    runs = -(-count // images) * -(-size[0] // rows)
    # Few and small gradients are summed apart; where they are large, tasks share out their panels instead.
    runs_at_once = -(-runs // max(1, min(runs, TASKS, -(-TASKS * BLOCKS // (elements * itemsize)))))
    splits = -(-runs // runs_at_once)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // (splits * groups))))
    workspace = depth * place.block + planes.width * lanes + at_once * columns * images * rows * planes.width
    work = count * size[0] * size[1] * channels_out * groups * channels * taps // 16
    return WeightPortions(place, runs_at_once, at_once, splits, splits * elements, workspace, work)


def _portions(planes: Planes, images: int, rows: int, size: Shape, layout: Layout, itemsize: int) -> Portions:
    """planes: of ``rows`` rows of an output of ``size`` (N, H, W)."""
    lanes, columns = block_lanes(itemsize), panel_columns(itemsize)
    place = _place(planes, images, rows, itemsize)
    depth, panel_count = blocks_of(layout.channels, itemsize), -(-layout.outputs // columns)
    tasks = -(-size[0] // images) * layout.groups * -(-size[1] // rows)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // tasks)))
    if size[2] <= TILE_ROWS // 2:  # two panels side by side
        at_once += at_once % 2
    panels = layout.groups * panel_count * columns * layout.taps * depth * lanes
    slack = (planes.width + TILE_ROWS) * lanes  # that tiles may read past the last plane, for rows that are dropped
    workspace = tile_elements(itemsize) + depth * place.block + slack
    work = size[0] * size[1] * size[2] * panels // (16 * layout.groups)
    return Portions(place, at_once, layout, panels, workspace, work)


def _place(planes: Planes, images: int, rows: int, itemsize: int) -> Place:
    lanes, offsets, plane = block_lanes(itemsize), planes.offsets[0], planes.height * planes.width
    return Place(
        planes.starts_h,
        planes.starts_w,
        *planes.stride,
        images,
        rows,
        planes.height,
        planes.width,
        images * planes.channel_size * lanes,
        (offsets // plane * images * plane + offsets % plane) * lanes,
    )


def blocks_of(channels: int, itemsize: int) -> int:
    """Blocks of so many channels."""
    return -(-channels // block_lanes(itemsize))


def planes_of(geometry: Planes) -> int:
    """Planes of a channel."""
    return len(geometry.starts_h) * len(geometry.starts_w)


def _wastes(rows: int, length: int, columns: int) -> bool:
    """Whether the tiles of an image in planes of ``columns`` hold too many pixels that are none of the output's."""
    height = TILE_ROWS // 2 if length <= TILE_ROWS // 2 else TILE_ROWS
    by_row, run_on = rows * -(-length // height), -(-((rows - 1) * columns + length) // height)
    return height * min(by_row, run_on) > WASTE * rows * length


def rows_at_once(images: int, rows: int, vectors: int) -> int:
    """Rows of the output in one task: blocks of a good size, and tasks for all.

    vectors: of the blocks that one row needs.
    """
    fit = max(1, BLOCKS // (vectors * VECTOR_BYTES))
    wanted = -(-rows // -(-TASKS // images)) if images < TASKS else rows
    pieces = -(-rows // max(1, min(fit, wanted, rows)))
    return -(-rows // pieces)


def _images_at_once(
    count: int, in_rows: bool, whole: Planes, weight_shape: Shape, groups: int, channels: int, itemsize: int
) -> int:
    """Images of a task. Several, where weights are too large for each image to read them all, and images small.

    in_rows: whether a task has not even one image. whole: the planes of one image, of ``channels`` channels.
    """
    if in_rows or int(np.prod(weight_shape)) * itemsize <= BLOCKS:
        return 1
    vectors = blocks_of(channels, itemsize) * whole.channel_size
    pairs = -(-weight_shape[0] // (2 * groups * panel_columns(itemsize)))
    pieces = max(-(-count * vectors * VECTOR_BYTES // BLOCKS), -(-TASKS // (groups * pairs)))
    return -(-count // min(count, pieces))
