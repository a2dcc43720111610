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


class ForwardRows(NamedTuple):
    """Operands of ``correlate_depthwise``. offsets: (kept rows, taps); workspace: elements of a thread's."""

    top: int
    lead: int
    window: int
    columns: int
    places: np.ndarray
    offsets: np.ndarray
    portions: Portions
    workspace: int


class BackwardRows(NamedTuple):
    """Operands of ``gradients_depthwise``, see there. top: less than 0 where the first rows of dy reach no pixel.

    taps: the kernel's, by phase; splits: sums apart, each over ``runs_at_once`` times the rows and images of a task.
    """

    top: int
    lead: int
    window: int
    columns: int
    places: np.ndarray
    pixels: np.ndarray
    phases: np.ndarray
    offsets: np.ndarray
    portions: Portions
    runs_at_once: int
    splits: int
    taps: np.ndarray
    workspace: int


@lru_cache(maxsize=512)
def forward_rows(y_shape: Shape, window: Window, itemsize: int, by_pixel: bool) -> ForwardRows:
    """For y of ``y_shape``; by_pixel: channels lie side by side in it."""
    images, channels, height, width = y_shape
    rows, columns = (np.arange(window.kernel[i]) * window.dilation[i] for i in range(2))
    stride, reach, length = window.stride, int(rows[-1]) + 1, (width - 1) * window.stride[1] + int(columns[-1]) + 1
    ring = Ring(reach, stride[0], length)
    portions = _portions(images, height, width, channels, ring, itemsize, by_pixel, images, max(2, WORTH // width))
    kept, pitch = ring.kept(portions.at_once), portions.pitch
    row = np.arange(portions.run_rows)[:, None] * (stride[0] * length)
    places = _of_images(row + np.arange(width) * stride[1], portions.images, kept * length)
    slots = (np.arange(kept)[:, None] + rows) % kept
    offsets = (slots[:, :, None] * length + columns).reshape(kept, -1)
    workspace = OUTER_ROWS * block_lanes(itemsize) + portions.images * kept * length * pitch
    return ForwardRows(*window.padding, reach, length, _padded(places) * pitch, offsets * pitch, portions, workspace)


@lru_cache(maxsize=512)
def backward_rows(x_shape: Shape, window: Window, itemsize: int, by_pixel: bool) -> BackwardRows:
    """For x of ``x_shape``; by_pixel: channels lie side by side in it."""
    images, channels, height, width = x_shape
    steps, breadth = -(-height // window.stride[0]), -(-width // window.stride[1])
    axes = [_phases(i, x_shape[2 + i], window) for i in range(2)]
    (first, last), (left, right) = map(_reach, axes)
    lead = max(0, -left)
    ring = Ring(last - first + 1, 1, lead + max(0, right) + breadth)
    most = min(TASKS, -(-images * height * width // WORTH))
    at_once = min(max(2, WORTH // breadth), max(1, DENSE // (breadth * blocks_of(channels, itemsize))))
    portions = _portions(images, steps, breadth, channels, ring, itemsize, by_pixel, most, at_once)
    blocks, row_blocks = -(-images // portions.images), -(-steps // portions.rows)
    runs_at_once = -(-blocks // most) if row_blocks == 1 else 1
    kept, pitch = ring.kept(portions.at_once), portions.pitch
    places, pixels, phases, offsets, taps = _by_phase(x_shape[2:], window, axes, ring, kept, portions)
    room = portions.group * taps.size + portions.images * kept * ring.columns * pitch
    return BackwardRows(
        -first,
        lead,
        ring.window,
        ring.columns,
        _padded(places) * pitch,
        pixels * (channels if by_pixel else 1),
        phases,
        (offsets + lead) * pitch,
        portions,
        runs_at_once,
        -(-blocks * row_blocks // runs_at_once),
        taps,
        OUTER_ROWS * block_lanes(itemsize) + room,
    )


def _by_phase(
    size: Shape, window: Window, axes: list[list[Phase]], ring: Ring, kept: int, portions: Portions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, pixels, phases, offsets and taps of ``BackwardRows``, in pixels, without the lead."""
    first = _reach(axes[0])[0]
    places: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    taps: list[np.ndarray] = []
    phases, tap, place = [], 0, 0
    for i, (rows, shifts_h) in enumerate(axes[0]):
        slots = (np.arange(kept)[:, None] + shifts_h - first) % kept
        deep = -(-(size[0] - i) // window.stride[0])
        row = np.arange(min(deep, portions.run_rows))[:, None]
        for j, (columns, shifts_w) in enumerate(axes[1]):
            column = np.arange(-(-(size[1] - j) // window.stride[1]))
            inside = (row * window.stride[0] + i) * size[1] + column * window.stride[1] + j
            phases.append((tap, rows.size * columns.size, place, inside.size, deep))
            places.append(_of_images(row * ring.columns + column, portions.images, kept * ring.columns))
            pixels.append(_of_images(inside, portions.images, size[0] * size[1]))
            offsets.append((slots[:, :, None] * ring.columns + shifts_w).reshape(kept, -1))
            taps.append((rows[:, None] * window.kernel[1] + columns).reshape(-1))
            tap, place = tap + taps[-1].size, place + places[-1].size
    return (
        np.concatenate(places),
        np.concatenate(pixels),
        np.array(phases),
        np.concatenate(offsets, axis=1),
        np.concatenate(taps),
    )


def _portions(
    images: int,
    height: int,
    width: int,
    channels: int,
    ring: Ring,
    itemsize: int,
    by_pixel: bool,
    most: int,
    at_once: int,
) -> Portions:
    """Of outputs of ``height`` x ``width``, in steps of the stride.

    most: pieces that images may be cut into; at_once: rows, where an image is not taken whole.
    """
    lanes, vectors = block_lanes(itemsize), blocks_of(channels, itemsize)
    whole = width < OUTER_ROWS and height * width <= WORTH
    together = min(images, -(-WORTH // (height * width))) if whole and by_pixel else 1
    at_once = height if whole else min(height, at_once)
    pieces = min(most, -(-images // together))
    kept = together * ring.kept(at_once) * ring.columns * lanes * itemsize
    wide = max(NARROW, -(-vectors // -(-TASKS // pieces))) if by_pixel else 1
    group = min(max(1, KEPT // kept), wide, vectors)
    parts = -(-vectors // group)
    group = -(-vectors // parts)
    blocks = 1 if whole else min(-(-TASKS // (pieces * parts)), -(-height // SHORT))
    rows = -(-height // blocks)
    # An odd number of cache lines from pixel to pixel: pixels of one channel lie in all parts of the first cache.
    pitch = (group | 1) * lanes
    ahead = parts == 1 and rows > at_once and by_pixel
    return Portions(together, rows, min(rows, at_once), height if whole else 1, group * lanes, pitch, ahead)


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
