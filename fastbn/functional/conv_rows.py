"""Where a depthwise convolution finds its inputs among the rows that it keeps, as ``kernels.conv_depthwise`` reads."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_geometry import Window
from fastbn.kernels._simd_depthwise import PIXELS

KEPT = 1 << 19  # bytes, about, of what a task keeps: it stays in the second cache
TASKS = 16  # wanted at least
WORTH = 256  # pixels for which a task takes up the weights of a channel
NARROW = 4  # vectors of channels that lie together, at least
SHORT = 8  # rows of a task, at least


class ForwardRows(NamedTuple):
    """Places along x: pixels start_w + column * stride of a row, and of every tap by its window's first kept row.

    window: rows of x that a row of the output meets, ``at_once`` of which are found together. offsets: (kept rows,
    taps).
    """

    at_once: int
    starts_w: np.ndarray
    window: int
    columns: int
    offsets: np.ndarray


class BackwardRows(NamedTuple):
    """Places along dy, for pixels of x by their phases: row, then column, modulo the stride.

    top: zeros above dy, or less than 0 where its first rows reach no pixel; lead: zeros before each of its rows.
    window: rows of dy that a row of each phase meets, ``at_once`` of which are found together. offsets: (kept rows,
    taps); taps: the kernel's, by phase; phases: where each begins among them.
    """

    at_once: int
    top: int
    lead: int
    window: int
    columns: int
    offsets: np.ndarray
    taps: np.ndarray
    phases: np.ndarray


@lru_cache(maxsize=256)
def forward_rows(window: Window, out_size: tuple[int, ...], lanes: int) -> ForwardRows:
    """Of an output of ``out_size``; a pixel has ``lanes`` elements."""
    at_once = _at_once(*out_size)
    rows, columns = (np.arange(window.kernel[i]) * window.dilation[i] for i in range(2))
    stride = window.stride[1]
    residues = np.unique(columns % stride)
    width, reach = out_size[1] + int(columns[-1]) // stride, int(rows[-1]) + 1
    kept = reach + (at_once - 1) * window.stride[0]
    along = np.searchsorted(residues, columns % stride) * width + columns // stride
    slots = (np.arange(kept)[:, None] + rows) % kept
    offsets = slots[:, :, None] * (len(residues) * width) + along
    return ForwardRows(at_once, residues - window.padding[1], reach, width, offsets.reshape(kept, -1) * lanes)


@lru_cache(maxsize=256)
def backward_rows(window: Window, in_size: tuple[int, ...], lanes: int) -> BackwardRows:
    """Of an input of ``in_size``; a pixel has ``lanes`` elements."""
    at_once = _at_once(-(-in_size[0] // window.stride[0]), in_size[1])
    phases_h, phases_w = (_phases(i, in_size[i], window) for i in range(2))
    first, last = _reach(phases_h)
    lead = max(0, -_reach(phases_w)[0])
    columns = max(
        lead + int(shifts.max(initial=0)) + -(-(in_size[1] - j) // window.stride[1] // PIXELS) * PIXELS
        for j, (_, shifts) in enumerate(phases_w)
    )
    kept = last - first + at_once
    offsets, taps, starts = [], [], [0]
    for rows, shifts_h in phases_h:
        slots = (np.arange(kept)[:, None] + shifts_h - first) % kept
        for places, shifts_w in phases_w:
            offsets.append((slots[:, :, None] * columns + shifts_w + lead).reshape(kept, -1))
            taps.append((rows[:, None] * window.kernel[1] + places).reshape(-1))
            starts.append(starts[-1] + taps[-1].size)
    return BackwardRows(
        at_once,
        -first,
        lead,
        last - first + 1,
        columns,
        np.concatenate(offsets, axis=1) * lanes,
        np.concatenate(taps),
        np.array(starts),
    )


def _at_once(rows: int, width: int) -> int:
    """Rows that are worth taking up a channel's weights for."""
    return min(rows, max(2, WORTH // width))


def _phases(axis: int, in_size: int, window: Window) -> list[tuple[np.ndarray, np.ndarray]]:
    """The taps that reach the pixels of each phase, and how far from pixel t of it their outputs lie from output t."""
    stride, phases = window.stride[axis], []
    for first in range(min(stride, in_size)):
        distance = first + window.padding[axis] - np.arange(window.kernel[axis]) * window.dilation[axis]
        taps = np.flatnonzero(distance % stride == 0)
        phases.append((taps, distance[taps] // stride))
    return phases


def _reach(phases: list[tuple[np.ndarray, np.ndarray]]) -> tuple[int, int]:
    """The least and the largest distance; 0 where no tap reaches a pixel."""
    shifts = np.concatenate([shifts for _, shifts in phases])
    return (int(shifts.min()), int(shifts.max())) if shifts.size else (0, 0)


@lru_cache(maxsize=256)
def portions(images: int, rows: int, vectors: int, kept: int) -> tuple[int, int]:
    """(rows, vectors of channels) of a task, from the shape alone; kept: bytes that it keeps for a vector.

    images: how many, or into how many runs they are gathered.
    """
    group = min(max(1, KEPT // kept), max(NARROW, -(-vectors // -(-TASKS // images))), vectors)
    blocks = min(-(-TASKS // (images * -(-vectors // group))), -(-rows // SHORT))
    return -(-rows // blocks), group


def splits_of(images: int, pixels: int) -> int:
    """Sums apart over so many images, each of so many pixels: enough for all threads, and not many of few pixels."""
    return min(images, TASKS, -(-images * pixels // WORTH))
