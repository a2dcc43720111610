"""How ``kernels.conv_blocks`` goes about a convolution: places, portions and panels, from shapes alone."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES
from fastbn.kernels.conv_panels import block_lanes, panel_columns, tile_elements

BLOCKS = 1 << 19  # bytes, about, of the blocks of a task: with a panel they stay in the second cache
TASKS = 16  # wanted at least
WASTE = 1.1  # times as many pixels as the output has in the tiles of runs, and tiles take theirs one by one

Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where a task's pixels come to lie: operands of ``fill_blocks``; block, offsets and places in elements."""

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
    places: np.ndarray


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
    by_pixel: bool
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
    deep: int
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
    vectors = blocks_of(channels, itemsize) * _planes_of(whole) * whole.width
    if summed:
        vectors = max(vectors, blocks_of(channels_out, itemsize) * y_size[1])
    weights, panels = math.prod(weight_shape) * itemsize, -(-channels_out // panel_columns(itemsize))
    rows = _rows_at_once(x_shape[0] * groups, y_size[0], vectors, weights // groups, panels)
    images = _images_at_once(x_shape[0], rows < y_size[0], whole, weight_shape, groups, channels, itemsize)
    planes = forward_planes(1, (rows, y_size[1]), window)
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
    weights, panels = math.prod(weight_shape) * itemsize, -(-channels // panel_columns(itemsize))
    parts = []
    for phase, offsets in zip(planes.phases, planes.offsets, strict=True):
        vectors = blocks_of(channels_out, itemsize) * _planes_of(planes) * planes.width
        if summed:
            vectors = max(vectors, blocks_of(channels, itemsize) * phase.width)
        rows = _rows_at_once(x_shape[0] * groups, phase.height, vectors, weights // groups, panels)
        images = _images_at_once(x_shape[0], rows < phase.height, planes, weight_shape, groups, channels_out, itemsize)
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
    rows = _rows_at_once(count * groups, size[0], depth * _planes_of(whole) * whole.width)
    images = _images_at_once(count, rows < size[0], whole, weight_shape, groups, channels, itemsize)
    place = _place(forward_planes(1, (rows, size[1]), window), images, rows, size[1], itemsize)
    elements = groups * panel_count * taps * depth * lanes * columns
    runs = -(-count // images) * -(-size[0] // rows)
    # Few and small gradients are summed apart; where they are large, tasks share out their panels instead.
    runs_at_once = -(-runs // max(1, min(runs, TASKS, -(-TASKS * BLOCKS // (elements * itemsize)))))
    splits = -(-runs // runs_at_once)
    pixels = images * rows * size[1]
    deep, at_once = _shared(depth, panel_count, place.block, columns * pixels, -(-TASKS // (splits * groups)))
    workspace = deep * place.block + at_once * columns * pixels
    work = count * size[0] * size[1] * channels_out * groups * channels * taps // 16
    return WeightPortions(place, runs_at_once, deep, at_once, splits, splits * elements, workspace, work)


def _shared(depth: int, panels: int, block: int, panel: int, tasks: int) -> tuple[int, int]:
    """Blocks of x and panels of dy, of so many elements, for each of about ``tasks`` tasks: what fills the least."""

    def filled(parts: int) -> int:
        return parts * depth * block + min(depth, -(-tasks // parts)) * panels * panel

    parts = min(range(1, min(panels, tasks) + 1), key=filled)
    return -(-depth // min(depth, -(-tasks // parts))), -(-panels // parts)


def _portions(planes: Planes, images: int, rows: int, size: Shape, layout: Layout, itemsize: int) -> Portions:
    """planes: of ``rows`` rows of an output of ``size`` (N, H, W)."""
    lanes, columns = block_lanes(itemsize), panel_columns(itemsize)
    place = _place(planes, images, rows, size[2], itemsize)
    depth, panel_count = blocks_of(layout.channels, itemsize), -(-layout.outputs // columns)
    tasks = -(-size[0] // images) * layout.groups * -(-size[1] // rows)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // tasks)))
    by_pixel = _wastes(rows, size[2], planes)
    if by_pixel:
        at_once += at_once % 2
    panels = layout.groups * panel_count * columns * layout.taps * depth * lanes
    slack = (planes.width + TILE_ROWS) * lanes  # that tiles may read past the last plane, for rows that are dropped
    workspace = tile_elements(itemsize) + depth * place.block + slack
    work = size[0] * size[1] * size[2] * panels // (16 * layout.groups)
    return Portions(place, by_pixel, at_once, layout, panels, workspace, work)


def _place(planes: Planes, images: int, rows: int, length: int, itemsize: int) -> Place:
    """planes: of one image; length: of a row of the output."""
    lanes, offsets, plane = block_lanes(itemsize), planes.offsets[0], planes.height * planes.width
    row = np.arange(images)[:, None] * plane + np.arange(rows) * planes.width
    places = (row.reshape(-1, 1) + np.arange(length)).reshape(-1)
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
        np.pad(places, (0, TILE_ROWS), mode="edge") * lanes,
    )


def blocks_of(channels: int, itemsize: int) -> int:
    """Blocks of so many channels."""
    return -(-channels // block_lanes(itemsize))


def _planes_of(geometry: Planes) -> int:
    """Planes of a channel."""
    return len(geometry.starts_h) * len(geometry.starts_w)


def _wastes(rows: int, length: int, planes: Planes) -> bool:
    """Whether the tiles of runs over ``rows`` rows hold too many pixels that are none of the output's."""
    if planes.width == length and planes.height == rows:
        return False
    by_row, run_on = rows * -(-length // TILE_ROWS), -(-((rows - 1) * planes.width + length) // TILE_ROWS)
    return TILE_ROWS * min(by_row, run_on) > WASTE * rows * length


def _rows_at_once(images: int, rows: int, vectors: int, weights: int = 0, panels: int = 1) -> int:
    """Rows of the output in one task: blocks of a good size, and tasks for all.

    vectors: of the blocks that one row needs. Few images are cut into pieces, which read all ``weights`` (bytes) each,
    or share out ``panels``, for each of which the blocks are filled anew: whatever moves less.
    """
    fit = max(1, BLOCKS // (vectors * VECTOR_BYTES))

    def moved(pieces: int) -> float:
        groups = min(panels, -(-TASKS // (images * pieces)))
        idle = max(1.0, TASKS / (images * pieces * groups))
        return idle * images * (pieces * weights + groups * rows * vectors * VECTOR_BYTES)

    wanted = -(-rows // min(range(1, rows + 1), key=moved)) if images < TASKS else rows
    pieces = -(-rows // max(1, min(fit, wanted, rows)))
    return -(-rows // pieces)


def _images_at_once(
    count: int, in_rows: bool, whole: Planes, weight_shape: Shape, groups: int, channels: int, itemsize: int
) -> int:
    """Images of a task. Several, where weights are too large for each image to read them all, and images small.

    in_rows: whether a task has not even one image. whole: the planes of one image, of ``channels`` channels.
    """
    if in_rows or math.prod(weight_shape) * itemsize <= BLOCKS:
        return 1
    vectors = blocks_of(channels, itemsize) * whole.channel_size
    pairs = -(-weight_shape[0] // (2 * groups * panel_columns(itemsize)))
    pieces = max(-(-count * vectors * VECTOR_BYTES // BLOCKS), -(-TASKS // (groups * pairs)))
    return -(-count // min(count, pieces))
