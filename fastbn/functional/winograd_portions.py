"""How ``kernels.conv_winograd`` goes about a convolution: where it pays, and in what portions, from shapes alone."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_cut import parts
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import BLOCKS, TASKS, Shape, blocks_of
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES
from fastbn.kernels.conv_panels import block_lanes, panel_columns, tile_elements
from fastbn.kernels.winograd_panels import TAPS
from fastbn.kernels.winograd_tiles import POSITIONS

# Transforms cost as much as some products: of pixels they count little from so many channels on, of weights where each
# tile has its share of them, pairs of channels.
CHANNELS, TILES, PAIRS = 64, 32, 1536
# What is left of 2.25 times fewer products, at least, where tiles reach over the edge.
GAIN = 1.5
VALUES = 1 << 20  # bytes, about, of a task's transformed tiles: with a panel they stay in the second cache
GROUPS = 5  # register tiles, at least, for which a panel is read once
RUN = 128  # tiles, about, of x and dy that are transformed together for the gradient to the weights
TRANSFORMED = 1 << 24  # bytes of them, about, that wait in the last cache


class Place(NamedTuple):
    """Where windows begin, and images and rows of a task: operands of both kernels."""

    starts_h: np.ndarray
    starts_w: np.ndarray
    images: int
    rows: int


class Portions(NamedTuple):
    """Of ``correlate_winograd``. panels: elements; workspace: elements of a thread's."""

    place: Place
    at_once: int
    panels: int
    workspace: int
    work: int


class WeightPortions(NamedTuple):
    """Of ``kernels.conv_winograd_weights``. values, gradients: elements for a run, ``spare`` more behind the latter."""

    place: Place
    runs_at_once: int
    splits: int
    most: int
    panels: int
    values: int
    gradients: int
    spare: int
    workspace: int
    work: int


def pays(weight_shape: Shape, window: Window, groups: int, y_shape: Shape, kept: bool = False) -> bool:
    """Whether the window is one for Winograd, and the products that it saves outweigh the transforms.

    kept: those of the weights were made before.
    """
    if window[:2] != ((3, 3), (1, 1)) or window.dilation != (1, 1) or groups != 1 or min(weight_shape[:2]) < CHANNELS:
        return False
    count, _, height, width = y_shape
    tiles = count * -(-height // 2) * -(-width // 2)
    enough = tiles >= TILES and (kept or tiles * PAIRS >= weight_shape[0] * weight_shape[1])
    return enough and TAPS * count * height * width >= GAIN * POSITIONS * tiles


@lru_cache(maxsize=512)
def portions(
    out_shape: Shape, channels: int, starts: tuple[int, int], itemsize: int, threads: int | None = None
) -> Portions:
    """For an output (N, C, H, W) from so many channels; starts: the row and column where its first window begins.

    threads: to run it; None if it stays in cache until it is summed: then it is cut by its shape alone.
    """
    count, outputs, height, width = out_shape
    down, across = -(-height // 2), -(-width // 2)
    depth, panel_count = blocks_of(channels, itemsize), -(-outputs // panel_columns(itemsize))
    if threads is None:
        images, rows = _task(count, down, across, depth, outputs, panel_count)
        at_once = -(-panel_count // _pieces(images, rows, count, down, panel_count))
    else:
        images, rows, at_once = _cut(count, down, across, depth, panel_count, panel_columns(itemsize), threads)
    groups = -(-images * rows * across // TILE_ROWS)
    vectors = depth * (images * (2 * rows + 2) * (2 * across + 2) + POSITIONS * groups * TILE_ROWS)
    panels = panel_count * panel_columns(itemsize) * POSITIONS * depth * block_lanes(itemsize)
    return Portions(
        _place(starts, images, min(2 * rows, height)),
        at_once,
        panels,
        POSITIONS * tile_elements(itemsize) + vectors * block_lanes(itemsize),
        count * outputs * height * width * channels // 2,
    )


@lru_cache(maxsize=512)
def weight_portions(dy_shape: Shape, channels: int, starts: tuple[int, int], itemsize: int) -> WeightPortions:
    """For the gradient to the weights of so many input channels."""
    count, outputs, height, width = dy_shape
    down, across = -(-height // 2), -(-width // 2)
    lanes, columns = block_lanes(itemsize), panel_columns(itemsize)
    depth, dy_depth = blocks_of(channels, itemsize), blocks_of(outputs, itemsize)
    rows = _evenly(down, RUN // across)
    images = max(1, min(count, RUN // (rows * across))) if rows == down else 1
    most = images * rows * across
    runs = -(-count // images) * -(-down // rows)
    panels = -(-outputs // columns) * columns * POSITIONS * depth * lanes
    splits, runs_at_once = min(runs, TASKS, TASKS * BLOCKS // (panels * itemsize)), runs
    if splits >= TASKS // 2:
        runs_at_once = -(-runs // splits)
        splits = -(-runs // runs_at_once)
    else:
        transformed = POSITIONS * most * (depth + dy_depth) * VECTOR_BYTES
        splits, runs_at_once = 1, max(1, min(runs, TRANSFORMED // transformed))
    return WeightPortions(
        _place(starts, images, min(2 * rows, height)),
        runs_at_once,
        splits,
        most,
        splits * panels,
        POSITIONS * depth * most * lanes,
        POSITIONS * dy_depth * most * lanes,
        most * lanes,
        images * (2 * rows + 2) * (2 * across + 2) * max(depth, dy_depth) * lanes,
        count * outputs * height * width * channels // 2,
    )


def _place(starts: tuple[int, int], images: int, rows: int) -> Place:
    return Place(np.array(starts[:1]), np.array(starts[1:]), images, rows)


def _evenly(count: int, most: int) -> int:
    """As many of ``count`` at once as are no more than ``most``, or one, in parts of about the same size."""
    return -(-count // -(-count // max(1, min(count, most))))


def _task(count: int, down: int, across: int, depth: int, outputs: int, panel_count: int) -> tuple[int, int]:
    """Images, and rows of tiles, of a task: where the whole costs least."""
    choices = [(1, rows) for rows in range(1, down + 1)] + [(images, down) for images in range(2, count + 1)]
    fitting = [choice for choice in choices if choice[0] * choice[1] * across <= _most(depth)] or choices[:1]

    def cost(choice: tuple[int, int]) -> float:
        """In tiles. To fill a pixel takes about as long as to multiply a tile for one output, to transform it four."""
        images, rows = choice
        pieces = _pieces(images, rows, count, down, panel_count)
        total = 0.0
        for deep, images_alike in ((images, count // images), (count % images, 1)):
            for high, rows_alike in ((rows, down // rows), (down % rows, 1)):
                tiles = deep * high * across
                multiplied = -(-tiles // TILE_ROWS) * TILE_ROWS
                filled = deep * (2 * high + 2) * (2 * across + 2) if high else 0
                total += images_alike * rows_alike * (multiplied + pieces * (filled + 4 * tiles) / outputs)
        return total

    return min(reversed(fitting), key=cost)


def _most(depth: int) -> int:
    """Tiles of a task."""
    return max(GROUPS * TILE_ROWS, VALUES // (POSITIONS * depth * VECTOR_BYTES))


def _cut(
    count: int, down: int, across: int, depth: int, panel_count: int, columns: int, threads: int
) -> tuple[int, int, int]:
    """Images, rows of tiles and panels of a task where nothing is summed, see ``conv_cut``."""

    def cost(task: tuple[int, int, int]) -> float:
        """As in ``_task``. To read a panel takes about as long as to multiply a group of tiles by it."""
        images, rows, at_once = task
        tasks = -(-count // images) * -(-down // rows) * -(-panel_count // at_once)
        tiles = images * rows * across
        filled = images * (2 * rows + 2) * (2 * across + 2)
        multiplied = (-(-tiles // TILE_ROWS) + 1) * TILE_ROWS
        return -(-tasks // threads) * (at_once * columns * multiplied + filled + 4 * tiles)

    whole = [(1, rows) for rows in parts(down)] + [(images, down) for images in parts(count)[:-1]]
    fitting = [choice for choice in whole if choice[0] * choice[1] * across <= _most(depth)] or [(1, 1)]
    return min(((*choice, at_once) for choice in fitting for at_once in parts(panel_count)), key=cost)


def _pieces(images: int, rows: int, count: int, down: int, panel_count: int) -> int:
    """Tasks that share the same tiles and take other panels."""
    return min(panel_count, -(-TASKS // (-(-count // images) * -(-down // rows))))
