"""How ``kernels.conv_blocks`` goes about a convolution: places, portions and panels, from shapes alone."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_cut import Cut, cut
from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.functional.weight_panels import Packing, places_of, tap_elements
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES
from fastbn.kernels.conv_panels import block_lanes, panel_columns, tile_elements

BLOCKS = 1 << 19  # bytes, about, of the blocks of a task: with a panel they stay in the second cache
TASKS = 16  # wanted at least
PAIR = 1 << 18  # bytes, about, of the part of two panels that a pass over a task's pixels reads
WORTH = 0.9  # of the products of taps and pixels: where no more of them meet the image, the others are left out
WASTE = 1.1  # times as many pixels as the output has in the tiles of runs, and tiles take theirs one by one

Shape = tuple[int, ...]


class Place(NamedTuple):
    """Where a task's pixels come to lie: operands of ``fill_blocks``; block, offsets and places in elements.

    counts, places, targets: the lists of ``correlate_blocks``, empty if it does without.
    """

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
    counts: np.ndarray
    places: np.ndarray
    targets: np.ndarray


class Portions(NamedTuple):
    """Of ``correlate_blocks``. panels: elements; workspace: elements of a thread's."""

    place: Place
    taps_at_once: int
    at_once: int
    packing: Packing
    panels: int
    workspace: int
    work: int


class Part(NamedTuple):
    """The pixels of dx that one launch writes: a phase of ``backward_planes``. panels: where its own begin."""

    portions: Portions
    panels: int
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
    threads: int | None,
) -> Portions:
    """For y, of ``y_size`` pixels; threads: to run it, None if it stays in cache until its moments are taken."""
    channels_out, channels, taps = weight_shape[0] // groups, weight_shape[1], weight_shape[2] * weight_shape[3]
    whole = forward_planes(1, y_size, window)
    vectors = blocks_of(channels, itemsize) * _planes_of(whole) * whole.width
    strides = channels_out * channels * taps, channels * taps, taps
    places = places_of(np.arange(taps), taps, channels, itemsize)
    packing = Packing(strides, places, groups, channels_out, channels)
    size, panels = (x_shape[0], *y_size), -(-channels_out // panel_columns(itemsize))
    if threads is not None:
        depth, lanes = blocks_of(channels, itemsize), block_lanes(itemsize)
        task = cut(x_shape[0], groups, y_size, window, depth, lanes, panels, threads)
        planes = forward_planes(1, (task.rows, y_size[1]), window)
        return _of_tasks(planes, task, size, x_shape[2:], packing, taps, itemsize)
    vectors = max(vectors, blocks_of(channels_out, itemsize) * y_size[1])
    weights = math.prod(weight_shape) * itemsize
    rows = _rows_at_once(x_shape[0] * groups, y_size[0], vectors, weights // groups, panels)
    images = _images_at_once(x_shape[0], rows < y_size[0], whole, weight_shape, groups, channels, itemsize)
    planes = forward_planes(1, (rows, y_size[1]), window)
    return _portions(planes, images, rows, size, x_shape[2:], packing, taps, itemsize)


@lru_cache(maxsize=512)
def backward_portions(
    dy_shape: Shape, x_shape: Shape, weight_shape: Shape, window: Window, groups: int, itemsize: int, summed: bool
) -> tuple[Packing, int, tuple[Part, ...]]:
    """For dx: its weights, the elements of their panels, and part by part. summed: dx stays in cache until then."""
    channels_out, channels, taps = weight_shape[0] // groups, weight_shape[1], weight_shape[2] * weight_shape[3]
    planes = backward_planes(1, dy_shape[2:], x_shape[2:], window)
    strides = channels_out * channels * taps, taps, channels * taps
    weights, panels = math.prod(weight_shape) * itemsize, -(-channels // panel_columns(itemsize))
    tap, begin, parts = groups * panels * tap_elements(channels_out, itemsize), 0, []
    places, unused = np.zeros((2, taps), np.int64), np.ones(taps, bool)
    packing = Packing(strides, places, groups, channels, channels_out)
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
        places[:, used] = places_of(np.arange(used.size), used.size, channels_out, itemsize, begin)
        unused[used] = False
        size = x_shape[0], phase.height, phase.width
        portions = _portions(local, images, rows, size, dy_shape[2:], packing, used.size, itemsize)
        parts.append(Part(portions, begin, phase.first_row, phase.first_column, phase.height, phase.width))
        begin += used.size * tap
    rest = int(unused.sum())
    places[:, unused] = places_of(np.arange(rest), rest, channels_out, itemsize, begin)
    return packing, taps * tap, tuple(parts)


@lru_cache(maxsize=512)
def weight_portions(
    dy_shape: Shape, x_size: Shape, weight_shape: Shape, window: Window, groups: int, itemsize: int
) -> WeightPortions:
    """For dweight; x_size: the pixels of an image of x."""
    count, size = dy_shape[0], (dy_shape[2], dy_shape[3])
    channels_out, channels, taps = weight_shape[0] // groups, weight_shape[1], weight_shape[2] * weight_shape[3]
    lanes, columns = block_lanes(itemsize), panel_columns(itemsize)
    depth, panel_count = blocks_of(channels, itemsize), -(-channels_out // columns)
    whole = forward_planes(1, size, window)
    rows = _rows_at_once(count * groups, size[0], depth * _planes_of(whole) * whole.width)
    images = _images_at_once(count, rows < size[0], whole, weight_shape, groups, channels, itemsize)
    planes = forward_planes(1, (rows, size[1]), window)
    place = _place(planes, images, rows, _lists(planes, images, rows, size, x_size), itemsize)
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


def _portions(
    planes: Planes, images: int, rows: int, size: Shape, source: Shape, packing: Packing, taps: int, itemsize: int
) -> Portions:
    """planes: of ``rows`` rows of an output of ``size`` (N, H, W), from images of ``source`` (H, W)."""
    panel_count = -(-packing.outputs // panel_columns(itemsize))
    tasks = -(-size[0] // images) * packing.groups * -(-size[1] // rows)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // tasks)))
    by_pixel = _wastes(rows, size[2], planes)
    if by_pixel:
        at_once += at_once % 2
    return _of_tasks(planes, Cut(images, rows, at_once, by_pixel), size, source, packing, taps, itemsize)


def _of_tasks(
    planes: Planes, task: Cut, size: Shape, source: Shape, packing: Packing, taps: int, itemsize: int
) -> Portions:
    """``_portions`` of such tasks."""
    lanes, columns = block_lanes(itemsize), panel_columns(itemsize)
    depth, panel_count = blocks_of(packing.channels, itemsize), -(-packing.outputs // columns)
    lists, tile, taps_at_once = NO_LISTS, tile_elements(itemsize), taps
    if task.by_pixel:
        lists = _lists(planes, task.images, task.rows, size[1:], source)
        tile = 2 * columns * (task.images * task.rows * size[2] + 1)
        taps_at_once = max(1, PAIR // (2 * columns * depth * lanes * itemsize)) if lists.counts.size == 1 else 1
    place = _place(planes, task.images, task.rows, lists, itemsize)
    panels = packing.groups * panel_count * taps * tap_elements(packing.channels, itemsize)
    slack = (planes.width + TILE_ROWS) * lanes  # that tiles may read past the last plane, for rows that are dropped
    workspace = tile + depth * place.block + slack
    work = size[0] * size[1] * size[2] * panels // (16 * packing.groups)
    return Portions(place, taps_at_once, task.at_once, packing, panels, workspace, work)


def _place(planes: Planes, images: int, rows: int, lists: "Lists", itemsize: int) -> Place:
    """planes: of one image."""
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
        lists.counts,
        lists.places * lanes,
        lists.targets,
    )


class Lists(NamedTuple):
    """Pixels of a task, see ``correlate_blocks``; places in vectors."""

    counts: np.ndarray
    places: np.ndarray
    targets: np.ndarray


NO_LISTS = Lists(*(np.empty(0, np.int64) for _ in Lists._fields))


def _lists(planes: Planes, images: int, rows: int, size: Shape, source: Shape) -> Lists:
    """planes: of ``rows`` rows of an output of ``size`` (H, W), from images of ``source`` (H, W)."""
    met = _met(planes, rows, size, source)
    if met.mean() > WORTH:
        met = np.ones_like(met[:1])
    plane, (_, _, length) = planes.height * planes.width, met.shape
    counts = met.sum(axis=(1, 2))
    longest = images * int(counts.max()) + TILE_ROWS
    places, targets = np.zeros((len(met), longest), np.int64), np.full((len(met), longest), images * rows * length)
    for which, pixels in enumerate(met):
        image, (row, column) = np.arange(images)[:, None], np.nonzero(pixels)
        number = images * counts[which]
        places[which, :number] = (image * plane + row * planes.width + column).reshape(-1)
        targets[which, :number] = ((image * rows + row) * length + column).reshape(-1)
    return Lists(counts, places.reshape(-1), targets.reshape(-1))


def _met(planes: Planes, rows: int, size: Shape, source: Shape) -> np.ndarray:
    """(taps, rows, columns): whether a tap meets the image; above and below only where a task has all rows."""
    plane, inner = np.divmod(planes.offsets[0], planes.height * planes.width)
    row, column = np.divmod(inner, planes.width)
    plane_h, plane_w = np.divmod(plane, planes.starts_w.size)
    y = planes.starts_h[plane_h][:, None] + planes.stride[0] * (row[:, None] + np.arange(rows))
    x = planes.starts_w[plane_w][:, None] + planes.stride[1] * (column[:, None] + np.arange(size[1]))
    inside_h = (y >= 0) & (y < source[0]) if rows == size[0] else np.ones(y.shape, bool)
    return inside_h[:, :, None] & ((x >= 0) & (x < source[1]))[:, None, :]


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
