"""How ``kernels.conv_point`` and its gradients share out pixels and channels, from shapes alone.

What is summed together depends on the shape and not on threads: these only say into how many parts channels are cut.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn._threads import max_threads
from fastbn.functional.conv_portions import TASKS, blocks_of
from fastbn.functional.norm_sums import Pieces
from fastbn.functional.weight_panels import panels_size
from fastbn.kernels import conv_panels, conv_point_deep, conv_point_parts
from fastbn.kernels._matrix_unit import BLOCK, DEPTH, matrix_unit
from fastbn.kernels._simd_point import SLIM_ROWS

RUN = 1 << 19  # bytes, about, of what a run reads and writes: it stays in the second cache
SPLIT_RUN = 1 << 19  # likewise, of its parts
GATHERED_PIXELS = 160  # of the runs that are summed over at a time, about: sums are read and written for each time
PART_BYTES = 6  # of a number's parts
LEAST_DEPTH = 48  # channels and outputs of gradients: with fewer, they are split in no less time than multiplied
LEAST_SPLIT = 64  # pixels: for fewer, to split the weights costs what the matrix unit saves
SPLIT_PIXELS = 128  # of a run of which two are in the second cache
TASKS_OF_THREAD = 2  # wanted at least of a forward pass, where the matrix unit multiplies
FEWEST_TASKS = 4  # that share out pixels
PIXELS_OF_TASK = 1152  # pixels, where there are more tasks
SPLIT_PANELS = 1 << 20  # bytes, about, of the parts of a task's panels
DEEP_PANELS = 3 << 20  # bytes of the parts of all panels, from which on sums of many channels are kept between
LEAST_DEEP = 512  # channels of which they are: with fewer, to write a product takes too long beside it
DEEP = 768  # channels that are summed at a time, about
DEEP_STRIPS = 4  # of a run, about, for each of which a panel is read once
EVEN = 1.1  # of the time of even loads
LEAST_WIDE = 64  # outputs of a task, at least: in less time its pixels are not split
MOST_PIXELS = 16384  # pixels, of a run that goes by strips
THREADS = (2, 4)  # whose loads are to be even
PIXELS = 8 * SLIM_ROWS  # of a run at most: its part of a panel stays in the first cache


class ForwardPortions(NamedTuple):
    """Of pixels and outputs: ``at_once`` pixels a run, a piece of the sums, and ``wide`` outputs a task.

    matrix, deep: as ``kernels.conv_point`` has them.
    """

    at_once: int
    wide: int
    pieces: Pieces
    matrix: bool | None
    deep: int | None
    workspace: tuple[int, int]


@lru_cache(maxsize=256)
def forward_portions(pixels: int, channels: int, outputs: int, itemsize: int) -> ForwardPortions:
    """Of the forward pass."""
    matrix = _matrix_for(pixels, LEAST_DEPTH, itemsize)
    deep = None
    if matrix and channels >= LEAST_DEEP and channels * outputs * PART_BYTES >= DEEP_PANELS:
        at_once, wide, deep = _deep_share(pixels, channels, outputs)
        size = conv_point_deep.workspace_elements(at_once // BLOCK, wide, deep)
    elif matrix:
        at_once, wide = forward_share(pixels, channels, outputs, itemsize, matrix)
        size = conv_point_parts.workspace_elements(channels, 1)
    else:
        at_once, wide = forward_share(pixels, channels, outputs, itemsize, matrix)
        size = conv_panels.tile_elements(itemsize) + at_once * _whole(channels, itemsize)
    pieces = _pieces(pixels, at_once, outputs, itemsize)
    return ForwardPortions(at_once, wide, pieces, matrix, deep, (max_threads(), size))


def _deep_share(pixels: int, channels: int, outputs: int) -> tuple[int, int, int]:
    """Pixels and outputs of a task, and channels that are summed at a time, of products of large matrices.

    Outputs are cut into the fewest parts that give all threads about as much.
    """
    strips, threads = -(-pixels // BLOCK), max_threads()
    of_run = -(-strips // max(1, round(strips / DEEP_STRIPS)))
    runs, most = -(-strips // of_run), -(-outputs // LEAST_WIDE)

    def idle(parts: int) -> bool:
        tasks = runs * parts
        return -(-tasks // threads) * threads > EVEN * tasks

    parts = min(range(1, most + 1), key=idle)
    deep = -(-channels // -(-channels // DEEP))
    return of_run * BLOCK, -(-outputs // (parts * BLOCK)) * BLOCK, -(-deep // DEPTH) * DEPTH


def _matrix_for(pixels: int, channels: int, itemsize: int) -> bool | None:
    """Whether the matrix unit multiplies, and is given so many ``channels`` at least; else None."""
    return matrix_unit() if itemsize == 4 and pixels >= LEAST_SPLIT and channels >= LEAST_DEPTH else None


def forward_share(pixels: int, channels: int, outputs: int, itemsize: int, matrix: bool | None) -> tuple[int, int]:
    """Pixels and outputs of a task: what moves the least, panels for each run and x for each part of the outputs."""
    columns = conv_panels.panel_columns(itemsize)
    panels = -(-outputs // columns)
    if matrix:
        parts = -(-panels // max(LEAST_WIDE // columns, SPLIT_PANELS // (channels * PART_BYTES * columns)))
        runs = max(-(-_pixel_tasks(pixels) // parts), -(-pixels // MOST_PIXELS))
        parts = min(max(parts, -(-TASKS_OF_THREAD * max_threads() // runs)), -(-outputs // LEAST_WIDE))
        return _even_splits(pixels, runs, MOST_PIXELS, BLOCK)[0], -(-panels // parts) * columns

    def share(parts: int) -> tuple[int, int]:
        wide = -(-panels // parts) * columns
        runs = max(-(-TASKS // parts), -(-pixels // _most((channels + wide) * itemsize, None)))
        return _tiles(-(-pixels // runs), None), wide

    def moved(parts: int) -> int:
        return -(-pixels // share(parts)[0]) * channels * outputs + parts * pixels * channels

    return share(min(range(1, min(panels, TASKS) + 1), key=moved))


def _pixel_tasks(pixels: int) -> int:
    """Tasks that share out pixels, of which each has many strips: its first one is split before any is multiplied.

    What is summed depends on it, so threads do not count: they share out channels as well.
    """
    tasks = FEWEST_TASKS
    while tasks < TASKS and pixels >= 2 * tasks * PIXELS_OF_TASK:
        tasks *= 2
    return tasks


class Share(NamedTuple):
    """Pixels of a run of the backward pass, runs of a split, those over which the matrix unit sums at a time, and
    channels of a task."""

    at_once: int
    runs_at_once: int
    gathered: int
    wide: int


class BackwardPortions(NamedTuple):
    """Of ``share``, the pieces of the sums of dx, and the shapes of what a launch needs.

    matrix: as ``kernels.conv_point`` has it; turns: True where the fewer channels are those of dy, which are turned.
    """

    share: Share
    pieces: Pieces
    dy_sums: tuple[int, int]
    products: tuple[int, int]
    dy_filled: int
    matrix: bool | None
    turns: bool | None
    workspace: tuple[int, int]


@lru_cache(maxsize=256)
def backward_portions(pixels: int, channels: int, outputs: int, itemsize: int) -> BackwardPortions:
    """Of both gradients."""
    matrix = _matrix_for(pixels, min(channels, outputs), itemsize)
    share = backward_share(pixels, channels, outputs, itemsize, matrix)
    at_once, wide = share.at_once, share.wide
    runs, dy_lanes = -(-pixels // at_once), _whole(outputs, itemsize)
    apart = wide < channels
    turns = True if matrix and outputs < channels else None
    panels = panels_size(channels, outputs, itemsize) if turns else panels_size(outputs, channels, itemsize)
    if matrix:
        strips = at_once // BLOCK
        dy_size, size = 0, conv_point_parts.workspace_elements(outputs, strips)
        size += conv_point_parts.sums_elements(outputs, wide, strips * share.gathered)
    else:
        dy_size = at_once * dy_lanes
        size = conv_panels.tile_elements(itemsize) + at_once * _whole(wide, itemsize) + (0 if apart else dy_size)
    return BackwardPortions(
        share,
        _pieces(pixels, at_once, channels, itemsize),
        (runs, dy_lanes),
        (-(-runs // share.runs_at_once), panels),
        runs * dy_size if apart else 0,
        matrix,
        turns,
        (max_threads(), size),
    )


def backward_share(pixels: int, channels: int, outputs: int, itemsize: int, matrix: bool | None) -> Share:
    """Splits whose gradients of the weights, summed apart, are no more to read and write than x and dy are."""
    columns = conv_panels.panel_columns(itemsize)
    panels = -(-channels // columns)
    splits = pixels * (channels + outputs) / (2 * channels * outputs)
    if matrix:
        tasks = _pixel_tasks(pixels)
        while tasks > 1 and tasks > 2 * splits:
            tasks //= 2
        splits, parts = tasks, -(-max_threads() // tasks)
        wide = min(channels, -(-panels // min(panels, parts)) * columns)
        most = _most((channels + 2 * outputs) * PART_BYTES, True)
    else:
        splits = int(max(1, min(TASKS, splits)))
        wide = min(channels, -(-panels // min(panels, TASKS // splits)) * columns)
        most = _most((wide + outputs) * itemsize, None)
    at_once, runs_at_once = _even_splits(pixels, splits, most, _tile(matrix))
    groups = -(-runs_at_once // max(1, GATHERED_PIXELS // at_once))
    return Share(at_once, runs_at_once, -(-runs_at_once // groups) if matrix else 1, wide)


def _even_splits(pixels: int, splits: int, most: int, tile: int) -> tuple[int, int]:
    """(pixels of a run, ``most`` at most; runs of a split): some ``splits`` or more, as even a load as can be."""
    tiles = -(-pixels // tile)

    def load(share: tuple[int, int]) -> int:
        of_split = share[0] * share[1]
        tasks = -(-tiles // of_split)
        return of_split * sum(-(-tasks // threads) * threads for threads in THREADS)

    def shares() -> Iterator[tuple[int, int]]:
        for count in range(splits, splits + splits // 2 + 1):
            of_split = -(-tiles // count)
            fewest = -(-of_split * tile // most)
            for runs in range(fewest, min(of_split, fewest + 1) + 1):
                yield -(-of_split // runs), runs

    run, runs = min(shares(), key=load)
    return run * tile, runs


def _most(size: int, matrix: bool | None) -> int:
    """Pixels of a run at most, of ``size`` bytes each."""
    tile, run = _tile(matrix), SPLIT_RUN if matrix else RUN
    return _tiles(min(SPLIT_PIXELS if matrix else PIXELS, run // size) - tile + 1, matrix)


def _tile(matrix: bool | None) -> int:
    return BLOCK if matrix else SLIM_ROWS


def _tiles(pixels: int, matrix: bool | None) -> int:
    """So many pixels, to whole tiles."""
    return max(1, -(-pixels // _tile(matrix))) * _tile(matrix)


def _whole(channels: int, itemsize: int) -> int:
    """So many channels, to whole blocks."""
    return blocks_of(channels, itemsize) * conv_panels.block_lanes(itemsize)


def _pieces(pixels: int, at_once: int, channels: int, itemsize: int) -> Pieces:
    """Of (pixels, channels), ``at_once`` pixels a piece."""
    return Pieces.of(np.minimum(at_once, pixels - np.arange(0, pixels, at_once)), channels, itemsize)
