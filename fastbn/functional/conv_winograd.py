"""Convolution with windows of 3 x 3 at stride 1 by ``kernels.conv_winograd``: where it pays, and in what portions.

A NaN or an infinity reaches every output of the tiles that read it, so also neighbours of the windows that hold it.
"""

from functools import lru_cache

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, element_strides, empty_like, in_order_of, is_channels_last
from fastbn.functional import conv_blocks
from fastbn.functional.conv_blocks import BLOCKS, TASKS, blocks_of
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import NOTHING, Sums, sums_for
from fastbn.functional.packed_weights import packed
from fastbn.kernels import conv_panels
from fastbn.kernels._simd import TILE_ROWS, VECTOR_BYTES
from fastbn.kernels.conv_winograd import correlate_winograd
from fastbn.kernels.conv_winograd_weights import correlate_weights_winograd
from fastbn.kernels.winograd_panels import TAPS, gather_panels, transform_panels
from fastbn.kernels.winograd_tiles import POSITIONS

VALUES = 1 << 20  # bytes, about, of the transformed tiles of a task: with a panel they stay in the second cache
RUN = 128  # tiles, about, of x and dy that are transformed together
TRANSFORMED = 1 << 24  # bytes of them that wait in the last cache
GROUPS = 4  # of tiles, at least: so often is a panel used
NO_OFFSET = np.zeros(1, np.int64)


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    window: Window,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    prologue: Prologue = PLAIN,
    moments: bool = False,
) -> Sums | None:
    """As ``conv_blocks.forward``."""
    if not is_channels_last(y):
        return conv_blocks.forward(x, weight, bias, window, groups, residual, relu, y, prologue, moments)
    outputs, channels = weight.shape[:2]
    images, rows, at_once = _portion(y.shape, channels, x.itemsize)
    sums = None
    if moments:
        sums = sums_for(y, images, rows)
        sums = sums._replace(shifts=np.empty(sums.partials.shape[1:], x.dtype))
    strides = 0, channels * TAPS, TAPS
    panels = packed(weight, lambda: _panels(weight, strides, False, outputs, channels))
    first = -window.padding[0], -window.padding[1]
    _correlate(x, prologue, first, images, rows, panels, at_once, bias, residual, relu, y, sums)
    return sums


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    normed: Prologue | None = None,
    residual: np.ndarray | None = None,
    need_dx: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, Sums | None]:
    """As ``conv_blocks.backward``."""
    dx, sums = None, None
    dweight = backward_weight(dy, x, weight, window, prologue, normed or PLAIN)
    if need_dx and is_channels_last(x):
        dx, sums = backward_data(dy, x, weight, window, prologue, residual, normed)
    elif need_dx:
        dx, sums = conv_blocks.backward_data(dy, x, weight, window, groups, prologue, residual, normed)
    return dweight, dx, sums


def backward_data(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    prologue: Prologue = PLAIN,
    residual: np.ndarray | None = None,
    normed: Prologue | None = None,
) -> tuple[np.ndarray, Sums | None]:
    """As ``conv_blocks.backward_data``, of a channels-last ``x``: the convolution of dy with the weights turned."""
    outputs, channels = weight.shape[:2]
    dx = empty_like(x)
    images, rows, at_once = _portion(x.shape, outputs, x.itemsize)
    sums = None
    if normed is not None:
        sums = sums_for(dx, images, rows)._replace(
            source=x, affine=normed.affine, relu=normed.relu, ceiling=normed.ceiling
        )
    panels = _panels(weight, (0, TAPS, channels * TAPS), True, channels, outputs)
    first = window.padding[0] - 2, window.padding[1] - 2
    _correlate(dy, prologue, first, images, rows, panels, at_once, None, residual, False, dx, sums)
    return dx, sums


def backward_weight(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    prologue: Prologue = PLAIN,
    normed: Prologue = PLAIN,
) -> np.ndarray:
    """As ``conv_blocks.backward_weight``."""
    outputs, channels = weight.shape[:2]
    lanes, columns = conv_panels.block_lanes(x.itemsize), conv_panels.panel_columns(x.itemsize)
    depth, dy_depth = blocks_of(channels, x.itemsize), blocks_of(outputs, x.itemsize)
    images, rows, runs_at_once, splits = _weights_portion(dy.shape, channels, x.itemsize)
    down, across = -(-rows // 2), -(-dy.shape[3] // 2)
    most = images * down * across
    run = (max_threads() if splits > 1 else runs_at_once) * POSITIONS * most * lanes
    plane = images * (2 * down + 2) * (2 * across + 2)
    panels = empty((splits * -(-outputs // columns) * columns * POSITIONS * depth * lanes,), x.dtype)
    launch(
        correlate_weights_winograd,
        as_flat(x),
        x.shape,
        element_strides(x),
        normed.affine,
        normed.operands()[1],
        normed.operands()[-1],
        as_flat(dy),
        dy.shape,
        element_strides(dy),
        *prologue.operands()[:-1],
        *_starts(-window.padding[0], -window.padding[1]),
        NO_OFFSET,
        images,
        rows,
        runs_at_once,
        splits > 1,
        most,
        empty((run * depth,), x.dtype),
        empty((run * dy_depth + most * lanes,), x.dtype),
        panels,
        empty((max_threads(), plane * max(depth, dy_depth) * lanes), x.dtype),
        work=dy.size * channels // 2,
    )
    dweight = empty(weight.shape, x.dtype)
    work = empty((max_threads(), (TAPS * depth * columns + 2 * lanes) * lanes), x.dtype)
    launch(gather_panels, panels, splits, outputs, channels, as_flat(dweight), work, work=panels.size)
    return dweight


def _correlate(
    x: np.ndarray,
    prologue: Prologue,
    first: tuple[int, int],
    images: int,
    rows: int,
    panels: np.ndarray,
    at_once: int,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    out: np.ndarray,
    sums: Sums | None,
) -> None:
    """Launch ``correlate_winograd``; first: the row and column where the first window begins."""
    down, across = -(-rows // 2), -(-out.shape[3] // 2)
    groups = -(-images * down * across // TILE_ROWS)
    vectors = images * (2 * down + 2) * (2 * across + 2) + POSITIONS * groups * TILE_ROWS
    block = blocks_of(x.shape[1], x.itemsize) * conv_panels.block_lanes(x.itemsize)
    room = POSITIONS * conv_panels.tile_elements(x.itemsize) + block * vectors
    launch(
        correlate_winograd,
        as_flat(x),
        x.shape,
        element_strides(x),
        *prologue.operands(),
        *_starts(*first),
        images,
        rows,
        NO_OFFSET,
        panels,
        at_once,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, out)),
        0.0 if relu else -np.inf,
        as_flat(out),
        out.shape,
        *(NOTHING if sums is None else sums.operands()),
        empty((max_threads(), room), x.dtype),
        work=out.size * x.shape[1] // 2,
    )


@lru_cache(maxsize=256)
def _starts(row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row]), np.array([column])


@lru_cache(maxsize=256)
def _portion(out_shape: tuple[int, ...], channels: int, itemsize: int) -> tuple[int, int, int]:
    """Images, rows and panels of a task."""
    count, outputs, height, width = out_shape
    down, across = -(-height // 2), -(-width // 2)
    panel_count = -(-outputs // conv_panels.panel_columns(itemsize))
    tile = POSITIONS * blocks_of(channels, itemsize) * VECTOR_BYTES
    limit = max(GROUPS * TILE_ROWS, VALUES // tile)
    candidates = [(1, rows) for rows in range(1, down + 1)] + [(images, down) for images in range(2, count + 1)]
    best, chosen = np.inf, (1, height, panel_count)
    for images, rows in candidates:
        if images * rows * across > limit and (images, rows) != (1, 1):
            continue
        tasks = -(-count // images) * -(-down // rows)
        pieces = min(panel_count, -(-TASKS // tasks))
        cost = _cost(images, rows, count, down, across, outputs, pieces)
        if cost <= best:
            best, chosen = cost, (images, min(2 * rows, height), -(-panel_count // pieces))
    return chosen


def _cost(images: int, rows: int, count: int, down: int, across: int, outputs: int, pieces: int) -> float:
    """Of all tasks, in tiles. To fill a pixel takes about as long as to multiply a tile by one output."""
    total = 0.0
    for deep, times_deep in ((images, count // images), (count % images, 1)):
        for high, times_high in ((rows, down // rows), (down % rows, 1)):
            tiles = deep * high * across
            filled = deep * (2 * high + 2) * (2 * across + 2)
            groups = -(-tiles // TILE_ROWS)
            total += times_deep * times_high * (groups * TILE_ROWS + pieces * (filled + 4 * tiles) / outputs)
    return total


@lru_cache(maxsize=256)
def _weights_portion(dy_shape: tuple[int, ...], channels: int, itemsize: int) -> tuple[int, int, int, int]:
    """Images and rows of a run, runs at once, and sums apart."""
    count, outputs, height, width = dy_shape
    down, across = -(-height // 2), -(-width // 2)
    rows = -(-down // -(-down // max(1, min(down, RUN // across))))
    images = max(1, min(count, RUN // (rows * across))) if rows == down else 1
    runs = -(-count // images) * -(-down // rows)
    depth, dy_depth = blocks_of(channels, itemsize), blocks_of(outputs, itemsize)
    splits = min(runs, TASKS, TASKS * BLOCKS // (POSITIONS * depth * outputs * VECTOR_BYTES))
    if splits < TASKS // 2:
        tiles = POSITIONS * images * rows * across * (depth + dy_depth) * VECTOR_BYTES
        return images, min(2 * rows, height), max(1, min(runs, TRANSFORMED // tiles)), 1
    runs_at_once = -(-runs // splits)
    return images, min(2 * rows, height), runs_at_once, -(-runs // runs_at_once)


def _panels(
    weight: np.ndarray, strides: tuple[int, int, int], turned: bool, outputs: int, channels: int
) -> np.ndarray:
    """A C-contiguous ``weight`` as ``transform_panels`` lays it out; turned: by half a turn."""
    weight = weight if weight.flags.writeable else weight.copy()  # a kernel of its own would be compiled for read-only
    lanes, columns = conv_panels.block_lanes(weight.itemsize), conv_panels.panel_columns(weight.itemsize)
    size = blocks_of(channels, weight.itemsize) * lanes * columns
    panels = empty((-(-outputs // columns) * POSITIONS * size,), weight.dtype)
    places = np.arange(TAPS)[:: -1 if turned else 1].copy()
    work = empty((max_threads(), TAPS * size + lanes * lanes), weight.dtype)
    launch(transform_panels, as_flat(weight), strides, places, outputs, channels, panels, work, work=panels.size)
    return panels
