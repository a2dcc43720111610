"""How ``kernels.conv_depthwise`` goes about a convolution: rows kept, places and portions, from shapes alone."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import blocks_of
from fastbn.kernels._simd import OUTER_ROWS
from fastbn.kernels.conv_panels import block_lanes

KEPT = 1 << 19  # bytes, about, of what a task keeps: it stays in the second cache
TASKS = 16  # wanted at least
WORTH = 256  # pixels for which a task takes up the weights of a channel; of a run of several images
DENSE = 1000  # vectors of x that a task of the backward pass takes at a time: they stay in cache with all they need
NARROW = 4  # vectors of channels that lie together, at least
SHORT = 8  # rows of a task, at least

Shape = tuple[int, ...]
Phase = tuple[np.ndarray, np.ndarray]  # taps, and how far from pixel t of the phase their outputs lie from output t


class Ring(NamedTuple):
    """Rows kept on the way down: an output row meets ``window`` of them, the next one those ``stride`` further."""

    window: int
    stride: int
    columns: int

    def kept(self, at_once: int) -> int:
        """For so many rows of the output."""
        return self.window + (at_once - 1) * self.stride


class Portions(NamedTuple):
    """Of a task: ``rows`` rows of ``images`` images, ``at_once`` found together, ``run_rows`` in a run, and ``group``
    channels. pitch: elements from pixel to pixel of the kept rows; ahead: whether the next rows are asked for early."""

    images: int
    rows: int
    at_once: int
    run_rows: int
    group: int
    pitch: int
    ahead: bool


class FPortions(NamedTuple):
    images: int
    rows: int
    at_once: int
    group: int
    ahead: int


class ForwardRows(NamedTuple):
    """Operands of ``correlate_depthwise``. offsets: (taps,); workspace: elements of a thread's."""

    top: int
    window: int
    spots: np.ndarray
    size: int
    places: np.ndarray
    offsets: np.ndarray
    portions: FPortions
    workspace: int


import os
FULL = int(os.environ.get("DW_FULL", 256))
PX = int(os.environ.get("DW_PX", 128))
AHEAD = int(os.environ.get("DW_AHEAD", 1))
MINROWS = int(os.environ.get("DW_MINROWS", 4))


class BackwardRows(NamedTuple):
    """Operands of ``gradients_depthwise``, see there. top: less than 0 where the first rows of dy reach no pixel.

    taps: the kernel's, by phase; splits: sums apart, each over ``runs_at_once`` times the rows and images of a task.
    """

    top: int
    window: int
    spots: np.ndarray
    size: int
    places: np.ndarray
    pixels: np.ndarray
    phases: np.ndarray
    offsets: np.ndarray
    portions: FPortions
    runs_at_once: int
    splits: int
    taps: np.ndarray
    workspace: int


@lru_cache(maxsize=512)
def forward_rows(y_shape: Shape, window: Window, itemsize: int, by_pixel: bool, x_width: int) -> ForwardRows:
    """For y of ``y_shape``; by_pixel: channels lie side by side in it."""
    images, channels, height, width = y_shape
    lanes = block_lanes(itemsize)
    rows, columns = (np.arange(window.kernel[i]) * window.dilation[i] for i in range(2))
    top, lead = window.padding
    stride, reach = window.stride, int(rows[-1]) + 1
    length = max((width - 1) * stride[1] + int(columns[-1]) + 1, lead + x_width)
    vectors = blocks_of(channels, itemsize)
    whole = height * width <= FULL
    together = min(images, -(-PX // (height * width))) if whole and by_pixel else 1
    at_once = height if whole else min(height, max(MINROWS, PX // width))
    pieces = -(-images // together)
    wide = max(NARROW, -(-vectors // -(-TASKS // pieces))) if by_pixel else 1
    group = min(int(os.environ.get('DW_GROUP',wide)), vectors)
    parts = -(-vectors // group)
    group = -(-vectors // parts)
    blocks = 1 if whole else min(-(-TASKS // (pieces * parts)), -(-height // SHORT))
    task_rows = -(-height // blocks)
    at_once = min(task_rows, at_once)
    kept = (at_once - 1) * stride[0] + reach
    spots = np.arange(kept)[:, None] * length + lead + np.arange(x_width)
    places = _of_images(
        np.arange(at_once)[:, None] * (stride[0] * length) + np.arange(width) * stride[1], together, kept * length
    )
    offsets = rows[:, None] * length + columns
    size = kept * length * lanes
    return ForwardRows(
        top,
        reach,
        spots.reshape(-1) * lanes,
        size,
        _padded(places) * lanes,
        offsets.reshape(-1) * lanes,
        FPortions(together, task_rows, at_once, group * lanes, int(by_pixel and parts == 1) * AHEAD),
        OUTER_ROWS * lanes + together * size,
    )


BPX = int(os.environ.get("DW_BPX", 128))
BROWS = int(os.environ.get("DW_BROWS", 4))


@lru_cache(maxsize=512)
def backward_rows(x_shape: Shape, window: Window, itemsize: int, by_pixel: bool, y_width: int) -> BackwardRows:
    """For x of ``x_shape``; by_pixel: channels lie side by side in it."""
    images, channels, height, width = x_shape
    lanes = block_lanes(itemsize)
    vectors = blocks_of(channels, itemsize)
    steps, breadth = -(-height // window.stride[0]), -(-width // window.stride[1])
    axes = [_phases(i, x_shape[2 + i], window) for i in range(2)]
    (first, last), (left, right) = map(_reach, axes)
    lead = max(0, -left)
    length = lead + max(max(0, right) + breadth, y_width)
    whole = height * width <= FULL
    most = min(TASKS, -(-images * height * width // WORTH))
    together = min(images, -(-BPX // (height * width))) if whole and by_pixel else 1
    at_once = steps if whole else min(steps, max(BROWS, BPX // width))
    pieces = min(most, -(-images // together))
    wide = max(NARROW, -(-vectors // -(-TASKS // pieces))) if by_pixel else 1
    group = min(int(os.environ.get('DW_GROUP',wide)), vectors)
    parts = -(-vectors // group)
    group = -(-vectors // parts)
    blocks = 1 if whole else min(-(-TASKS // (pieces * parts)), -(-steps // SHORT))
    rows = -(-steps // blocks)
    at_once = min(rows, at_once)
    kept = at_once - 1 + last - first + 1
    size = kept * length
    blocks, row_blocks = -(-images // together), -(-steps // rows)
    runs_at_once = -(-blocks // most) if row_blocks == 1 else 1
    places, pixels, phases, offsets, taps = _by_phase(x_shape[2:], window, axes, length, size, at_once, together)
    spots = np.arange(kept)[:, None] * length + lead + np.arange(y_width)
    return BackwardRows(
        -first,
        last - first + 1,
        spots.reshape(-1) * lanes,
        size * lanes,
        _padded(places) * lanes,
        pixels * (channels if by_pixel else 1),
        phases,
        (offsets + lead) * lanes,
        FPortions(together, rows, at_once, group * lanes, int(by_pixel and parts == 1) * AHEAD),
        runs_at_once,
        -(-blocks * row_blocks // runs_at_once),
        taps,
        (OUTER_ROWS + taps.size + together * size) * lanes,
    )


def _by_phase(
    size: Shape, window: Window, axes: list[list[Phase]], length: int, image: int, at_once: int, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, pixels, phases, offsets and taps of ``BackwardRows``, in pixels, without the lead."""
    first = _reach(axes[0])[0]
    places: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    taps: list[np.ndarray] = []
    phases, tap, place = [], 0, 0
    for i, (rows, shifts_h) in enumerate(axes[0]):
        deep = -(-(size[0] - i) // window.stride[0])
        row = np.arange(min(deep, at_once))[:, None]
        for j, (columns, shifts_w) in enumerate(axes[1]):
            column = np.arange(-(-(size[1] - j) // window.stride[1]))
            inside = (row * window.stride[0] + i) * size[1] + column * window.stride[1] + j
            phases.append((tap, rows.size * columns.size, place, column.size, deep))
            places.append(_of_images(row * length + column, images, image))
            pixels.append(_of_images(inside, images, size[0] * size[1]))
            offsets.append(((shifts_h[:, None] - first) * length + shifts_w).reshape(-1))
            taps.append((rows[:, None] * window.kernel[1] + columns).reshape(-1))
            tap, place = tap + taps[-1].size, place + places[-1].size
    return (
        np.concatenate(places),
        np.concatenate(pixels),
        np.array(phases),
        np.concatenate(offsets),
        np.concatenate(taps),
    )


def _of_images(places: np.ndarray, images: int, image: int) -> np.ndarray:
    """``places`` in each of so many images, ``image`` apart."""
    return (np.arange(images)[:, None] * image + places.reshape(-1)).reshape(-1)


def _padded(places: np.ndarray) -> np.ndarray:
    """With the last repeated, for what a tile has beyond the end."""
    return np.pad(places, (0, OUTER_ROWS), mode="edge")


def _phases(axis: int, in_size: int, window: Window) -> list[Phase]:
    """Of the pixels that are alike modulo the stride, the taps that reach them."""
    stride, phases = window.stride[axis], []
    for first in range(min(stride, in_size)):
        distance = first + window.padding[axis] - np.arange(window.kernel[axis]) * window.dilation[axis]
        taps = np.flatnonzero(distance % stride == 0)
        phases.append((taps, distance[taps] // stride))
    return phases


def _reach(phases: list[Phase]) -> tuple[int, int]:
    """The least and the largest distance; 0 where no tap reaches a pixel."""
    shifts = np.concatenate([shifts for _, shifts in phases])
    return (int(shifts.min()), int(shifts.max())) if shifts.size else (0, 0)
