"""How ``kernels.conv_depthwise`` goes about a convolution: rows at a time, places and portions, from shapes alone."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import blocks_of
from fastbn.kernels._simd_depthwise import PIXELS
from fastbn.kernels.conv_panels import block_lanes

PLANE = 300  # pixels, about, kept at a time: with what is read and written beside them they stay in the first cache
DENSE = 4000  # vectors of x or of y, about, that are taken at a time: they and the next ones stay in the second cache
TASKS = 8  # wanted at least; where images are few, they share out channels, though those lie together in memory
FEW = 16  # pixels; images of fewer are taken together
WORTH = 64  # pixels for which a task has sums of its own of the gradient to the weights
NARROW = 4  # vectors of channels that lie together, at least
SHORT = 8  # rows of a task, at least

Shape = tuple[int, ...]
Phase = tuple[np.ndarray, np.ndarray]  # taps, and how far from pixel t of the phase their outputs lie from output t


class Plane(NamedTuple):
    """Rows kept: an output row meets ``window`` of them, the next one those ``stride`` further."""

    window: int
    stride: int
    columns: int

    def rows(self, at_once: int) -> int:
        """For so many rows of the output."""
        return self.window + (at_once - 1) * self.stride

    def pixels(self, at_once: int) -> int:
        """In ``rows``."""
        return self.rows(at_once) * self.columns


class Portions(NamedTuple):
    """Of a task: ``rows`` rows of ``images`` images, ``at_once`` found together, and ``group`` channels.

    ahead: whether it has all channels, and what lies next in memory is asked for early.
    """

    images: int
    rows: int
    at_once: int
    group: int
    ahead: bool


class ForwardRows(NamedTuple):
    """Operands of ``correlate_depthwise``, see there; workspace: elements of a thread's."""

    top: int
    window: int
    spots: np.ndarray
    size: int
    places: np.ndarray
    offsets: np.ndarray
    portions: Portions
    workspace: int


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
    portions: Portions
    runs_at_once: int
    splits: int
    taps: np.ndarray
    workspace: int


@lru_cache(maxsize=512)
def forward_rows(y_shape: Shape, x_width: int, window: Window, itemsize: int, by_pixel: bool) -> ForwardRows:
    """For y of ``y_shape``; by_pixel: channels lie side by side in it."""
    images, channels, height, width = y_shape
    rows, columns = (np.arange(window.kernel[i]) * window.dilation[i] for i in range(2))
    (top, lead), (stride_h, stride_w) = window.padding, window.stride
    length = max((width - 1) * stride_w + int(columns[-1]) + 1, lead + x_width)
    plane, lanes = Plane(int(rows[-1]) + 1, stride_h, length), block_lanes(itemsize)
    portions = _portions(images, height, width, stride_h * x_width, channels, plane, itemsize, by_pixel, images)
    size = plane.pixels(portions.at_once)
    pixels = np.arange(portions.at_once)[:, None] * (stride_h * length) + np.arange(width) * stride_w
    return ForwardRows(
        top,
        plane.window,
        _spots(plane, portions, lead, x_width) * lanes,
        size * lanes,
        _padded(_of_images(pixels, portions.images, size)) * lanes,
        (rows[:, None] * length + columns).reshape(-1) * lanes,
        portions,
        (PIXELS + portions.images * size) * lanes,
    )


@lru_cache(maxsize=512)
def backward_rows(x_shape: Shape, dy_width: int, window: Window, itemsize: int, by_pixel: bool) -> BackwardRows:
    """For x of ``x_shape``; by_pixel: channels lie side by side in it."""
    images, channels, height, width = x_shape
    steps, breadth = -(-height // window.stride[0]), -(-width // window.stride[1])
    axes = [_phases(i, x_shape[2 + i], window) for i in range(2)]
    (first, last), (left, right) = map(_reach, axes)
    lead, lanes = max(0, -left), block_lanes(itemsize)
    plane = Plane(last - first + 1, 1, lead + max(max(0, right) + breadth, dy_width))
    most = min(TASKS, -(-images * height * width // WORTH))
    portions = _portions(images, steps, breadth, window.stride[0] * width, channels, plane, itemsize, by_pixel, most)
    size = plane.pixels(portions.at_once)
    blocks, row_blocks = -(-images // portions.images), -(-steps // portions.rows)
    runs_at_once = -(-blocks // most) if row_blocks == 1 else 1
    places, pixels, phases, offsets, taps = _by_phase(x_shape[2:], window, axes, plane, portions)
    return BackwardRows(
        -first,
        plane.window,
        _spots(plane, portions, lead, dy_width) * lanes,
        size * lanes,
        _padded(places) * lanes,
        pixels * (channels if by_pixel else 1),
        phases,
        (offsets + lead) * lanes,
        portions,
        runs_at_once,
        -(-blocks * row_blocks // runs_at_once),
        taps,
        (PIXELS + taps.size + portions.images * size) * lanes,
    )


def _by_phase(
    size: Shape, window: Window, axes: list[list[Phase]], plane: Plane, portions: Portions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places, pixels, phases, offsets and taps of ``BackwardRows``, in pixels, without the lead."""
    first, image = _reach(axes[0])[0], plane.pixels(portions.at_once)
    places: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    taps: list[np.ndarray] = []
    phases, tap, place = [], 0, 0
    for i, (rows, shifts_h) in enumerate(axes[0]):
        deep = -(-(size[0] - i) // window.stride[0])
        row = np.arange(min(deep, portions.at_once))[:, None]
        for j, (columns, shifts_w) in enumerate(axes[1]):
            column = np.arange(-(-(size[1] - j) // window.stride[1]))
            inside = (row * window.stride[0] + i) * size[1] + column * window.stride[1] + j
            phases.append((tap, rows.size * columns.size, place, column.size, deep))
            places.append(_of_images(row * plane.columns + column, portions.images, image))
            pixels.append(_of_images(inside, portions.images, size[0] * size[1]))
            offsets.append(((shifts_h[:, None] - first) * plane.columns + shifts_w).reshape(-1))
            taps.append((rows[:, None] * window.kernel[1] + columns).reshape(-1))
            tap, place = tap + taps[-1].size, place + places[-1].size
    return (
        np.concatenate(places),
        np.concatenate(pixels),
        np.array(phases),
        np.concatenate(offsets),
        np.concatenate(taps),
    )


def _portions(
    images: int,
    height: int,
    width: int,
    pixels: int,
    channels: int,
    plane: Plane,
    itemsize: int,
    by_pixel: bool,
    most: int,
) -> Portions:
    """Of outputs of ``height`` x ``width``, in steps of the stride.

    pixels: of the larger image, a step; most: pieces that images may be cut into.
    """
    lanes, vectors = block_lanes(itemsize), blocks_of(channels, itemsize)
    whole = plane.pixels(height) <= PLANE and pixels * height * vectors <= 2 * DENSE
    together = min(images, -(-FEW // (height * width))) if whole and by_pixel else 1
    pieces = min(most, -(-images // together))
    wide = max(NARROW, -(-vectors // -(-TASKS // pieces))) if by_pixel else 1
    parts = -(-vectors // min(wide, vectors))
    group = -(-vectors // parts)
    blocks = 1 if whole else min(-(-TASKS // (pieces * parts)), -(-height // SHORT))
    rows = -(-height // blocks)
    fit = min(DENSE // (pixels * group), (PLANE // plane.columns - plane.window) // plane.stride + 1)
    return Portions(together, rows, rows if whole else min(rows, max(2, fit)), group * lanes, parts == 1)


def _spots(plane: Plane, portions: Portions, lead: int, width: int) -> np.ndarray:
    """Places of ``width`` pixels in each row kept of an image, ``lead`` columns from its left."""
    row = np.arange(plane.rows(portions.at_once))[:, None]
    return (row * plane.columns + lead + np.arange(width)).reshape(-1)


def _of_images(places: np.ndarray, images: int, image: int) -> np.ndarray:
    """``places`` in each of so many images, ``image`` apart."""
    return (np.arange(images)[:, None] * image + places.reshape(-1)).reshape(-1)


def _padded(places: np.ndarray) -> np.ndarray:
    """With the last repeated, for what a tile has beyond the end."""
    return np.pad(places, (0, PIXELS), mode="edge")


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
