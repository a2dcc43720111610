"""A convolution over blocks cut into tasks where nothing is summed: for the threads that there are.

Each output is the same sum in the same order however tasks are cut, so that the bits do not depend on it.
"""

from functools import lru_cache
from typing import NamedTuple

from fastbn.functional.conv_geometry import Window, forward_planes
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES

ROOM = 3 << 18  # bytes of the blocks of a task at most: with a panel they stay in the second cache
FILL = 6  # to copy a vector takes about as long as so many steps of a row of the register tile
NARROW = 1.04  # tiles of half the pixels and two panels take so much longer


class Cut(NamedTuple):
    """Images, rows of the output and panels of a task; by_pixel: as ``kernels.conv_blocks`` has it."""

    images: int
    rows: int
    at_once: int
    by_pixel: bool


@lru_cache(maxsize=512)
def cut(
    count: int, groups: int, size: tuple[int, int], window: Window, depth: int, lanes: int, panels: int, threads: int
) -> Cut:
    """Of ``count`` images, for outputs of ``size``, ``depth`` blocks of ``lanes`` channels and a group's ``panels``.

    Each task fills its blocks and reads its panels, about as long as a tile takes that is multiplied by them.
    """
    height, length = size
    steps = window.kernel[0] * window.kernel[1] * depth * lanes * TILE_ROWS

    def cost(task: Cut) -> float:
        tasks = -(-count // task.images) * groups * -(-height // task.rows) * -(-panels // task.at_once)
        tiles = _pixel_tiles(task, length) if task.by_pixel else _block_tiles(task, length, window)
        filled = FILL * depth * _planes(task, length, window)
        return -(-tasks // threads) * (task.at_once * (tiles + 1) * steps + filled)

    whole = [(1, rows) for rows in parts(height)] + [(images, height) for images in parts(count)[:-1]]
    choices = [
        Cut(images, rows, at_once, by_pixel)
        for images, rows in whole
        for at_once in parts(panels)
        for by_pixel in (False, True)
        if not (by_pixel and at_once % 2)
    ]
    fitting = [task for task in choices if depth * _planes(task, length, window) * VECTOR_BYTES <= ROOM]
    return min(fitting or [task for task in choices if task[:2] == (1, 1)], key=cost)


def parts(count: int) -> list[int]:
    """Sizes of parts of ``count`` that are about the same, the largest first."""
    return sorted({-(-count // pieces) for pieces in range(1, count + 1)}, reverse=True)


def _planes(task: Cut, length: int, window: Window) -> int:
    """Pixels of a task's planes."""
    return task.images * forward_planes(1, (task.rows, length), window).channel_size


def _block_tiles(task: Cut, length: int, window: Window) -> float:
    """Register tiles for which a task reads a panel, that run on where no padding is between the pixels."""
    planes = forward_planes(1, (task.rows, length), window)
    if (planes.height, planes.width) == (task.rows, length):
        return -(-task.images * task.rows * length // TILE_ROWS)
    by_row = task.rows * -(-length // TILE_ROWS)
    return task.images * min(by_row, -(-((task.rows - 1) * planes.width + length) // TILE_ROWS))


def _pixel_tiles(task: Cut, length: int) -> float:
    """As ``_block_tiles``, of half the pixels and two panels."""
    half = TILE_ROWS // 2
    return NARROW * -(-task.images * task.rows * length // half) / 2
