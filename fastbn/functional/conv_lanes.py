"""Convolution by ``kernels.conv_lanes``, over images side by side: the engine for many small images of few channels."""

import math
from functools import lru_cache

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, in_order_of
from fastbn.functional.conv_geometry import Planes, Window, backward_planes, forward_planes
from fastbn.functional.norm_sums import limits_of
from fastbn.kernels import conv_lanes as kernels
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels._simd_lanes import DOT_COLUMNS, DOT_ROWS, LANE_ROWS, LANE_VECTORS
from fastbn.kernels.conv import whole_tiles
from fastbn.kernels.lanes import TILE_FIELDS

SPLITS = 8  # partial gradients of the weights, about
WORKSPACE = 1 << 21  # bytes, about, of a thread: the second cache holds them
WASTE = 1.25  # times as many images as there are

# Planes, and offsets, tiles and index as ``correlate_lanes`` has them.
Operands = tuple[Planes, np.ndarray, np.ndarray, np.ndarray]


def suits(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], y_shape: tuple[int, ...], itemsize: int) -> bool:
    """Whether the images of a C-contiguous x (N, C, H, W) are small and fill blocks."""
    lanes = VECTOR_BYTES // itemsize
    blocks = -(-x_shape[0] // lanes)
    images = 3 * math.prod(x_shape[1:]) + 2 * math.prod(y_shape[1:]) + 2 * math.prod(weight_shape)
    fits = images * VECTOR_BYTES <= WORKSPACE
    return lanes <= x_shape[0] and blocks * lanes <= WASTE * x_shape[0] and fits


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    window: Window,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    ceiling: float = math.inf,
) -> None:
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it."""
    operands = forward_tiles(weight.shape, groups, x.shape[2:], y.shape[2:], window, x.itemsize)
    _correlate(x, *operands, weight, bias, groups, residual, limits_of(relu, ceiling), y)


def backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int, need_dx: bool = True
) -> tuple[np.ndarray, np.ndarray | None, None]:
    """(dweight, dx, None): both gradients, dx None unless needed; it makes no sums of dx."""
    dx = backward_data(dy, x, weight, window, groups)[0] if need_dx else None
    return backward_weight(dy, x, weight, window, groups), dx, None


def backward_data(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int
) -> tuple[np.ndarray, None]:
    """dx like ``x``; it makes no sums of it."""
    operands = backward_tiles(weight.shape, groups, x.shape[2:], dy.shape[2:], window, x.itemsize)
    dx = empty(x.shape, x.dtype)
    _correlate(dy, *operands, weight, None, groups, None, limits_of(False), dx)
    return dx, None


def backward_weight(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, window: Window, groups: int) -> np.ndarray:
    """dweight (C_out, C_in / groups, kh, kw). What is summed together follows from the shape alone."""
    geometry, offsets, dy_offsets = product_tiles(weight.shape, groups, dy.shape[2:], window, x.itemsize)
    blocks, blocks_at_once = split(x)
    partials = np.empty((-(-blocks // blocks_at_once), *weight.shape), x.dtype)
    launch(
        kernels.correlate_weights_lanes,
        as_flat(x),
        x.shape,
        geometry.source,
        offsets,
        weight[0].size,
        as_flat(dy),
        dy.shape,
        dy_offsets,
        groups,
        blocks_at_once,
        as_flat(partials),
        workspace(max(x[0].size, dy[0].size), x),
        workspace(x.shape[1] * geometry.channel_size, x),
        workspace(groups * offsets.size * dy_offsets.size, x),
        work=dy.size * weight[0].size // 16,
    )
    return partials.sum(axis=0)


def split(x: np.ndarray) -> tuple[int, int]:
    """Blocks of images, and how many of them are summed together."""
    blocks = -(-x.shape[0] // (VECTOR_BYTES // x.itemsize))
    return blocks, -(-blocks // SPLITS)


def _correlate(
    x: np.ndarray,
    geometry: Planes,
    offsets: np.ndarray,
    tiles: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    residual: np.ndarray | None,
    limits: tuple[float, float],
    out: np.ndarray,
) -> None:
    launch(
        kernels.correlate_lanes,
        as_flat(x),
        x.shape,
        geometry.source,
        offsets,
        tiles,
        as_flat(weight),
        as_flat(weight)[:0] if bias is None else as_flat(dense_c(bias)),
        index,
        groups,
        geometry.sparse,
        np.empty(0, x.dtype) if residual is None else as_flat(in_order_of(residual, out)),
        limits,
        as_flat(out),
        out.shape,
        workspace(max(x[0].size, whole_panels(out.shape) + VECTOR_BYTES // x.itemsize), x),
        workspace(x.shape[1] * geometry.channel_size, x),
        workspace(VECTOR_BYTES // x.itemsize, x),
        work=out.size * index.size // 128,
    )


def whole_panels(shape: tuple[int, ...]) -> int:
    """Pixels of an output (N, C, H, W)'s image, with as many channels more as the last panel may have."""
    return (shape[1] + LANE_ROWS - 1) * shape[2] * shape[3]


def spread_out(vectors: int) -> int:
    """Vectors from one channel to the next: an odd number, or else a pixel's channels meet in few sets of a cache."""
    return vectors | 1


def workspace(vectors: int, like: np.ndarray) -> np.ndarray:
    """Room for every thread, uninitialised."""
    return empty((max_threads(), vectors * (VECTOR_BYTES // like.itemsize)), like.dtype)


def _panels(taps: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Weights (groups, rows, ...) as flat panels (groups, row panels, 1 + K, LANE_ROWS), the bias before them."""
    groups, rows = taps.shape[:2]
    count = -(-rows // LANE_ROWS)
    padded = np.zeros((groups, count * LANE_ROWS, 1 + taps[0, 0].size), taps.dtype)
    if bias is not None:
        padded[:, :rows, 0] = bias
    padded[:, :rows, 1:] = taps.reshape(groups, rows, -1)
    return np.ascontiguousarray(padded.reshape(groups, count, LANE_ROWS, -1).swapaxes(2, 3)).reshape(-1)


def _numbered(weight_shape: tuple[int, ...], groups: int) -> np.ndarray:
    """The places of weights from 1 on, by group."""
    numbers = np.arange(1, 1 + math.prod(weight_shape)).reshape(weight_shape)
    return numbers.reshape(groups, -1, *weight_shape[1:])


@lru_cache(maxsize=256)
def product_tiles(
    weight_shape: tuple[int, ...], groups: int, out_size: tuple[int, int], window: Window, itemsize: int
) -> tuple[Planes, np.ndarray, np.ndarray]:
    """Planes, and offsets of weights and of a group's outputs in whole tiles, of the gradient to the weights."""
    lanes = VECTOR_BYTES // itemsize
    geometry = forward_planes(weight_shape[1], out_size, window)
    dy_offsets = np.arange(weight_shape[0] // groups) * (out_size[0] * out_size[1] * lanes)
    return geometry, whole_tiles(geometry.offsets[0] * lanes, DOT_ROWS), whole_tiles(dy_offsets, DOT_COLUMNS)


@lru_cache(maxsize=256)
def forward_tiles(
    weight_shape: tuple[int, ...],
    groups: int,
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    window: Window,
    itemsize: int,
) -> Operands:
    """The operands of the forward pass, whose weights k go by kernel row, kernel column, channel."""
    lanes = VECTOR_BYTES // itemsize
    geometry = forward_planes(weight_shape[1], out_size, window)
    taps = geometry.offsets[0].reshape(weight_shape[1:]).transpose(1, 2, 0)
    inside = []
    for axis in range(2):
        places = np.arange(out_size[axis])[:, None] * window.stride[axis]
        places = places + np.arange(window.kernel[axis]) * window.dilation[axis] - window.padding[axis]
        inside.append((places >= 0) & (places < in_size[axis]))
    pixels = np.arange(out_size[0])[:, None] * geometry.width + np.arange(out_size[1])
    tiles = _tiles(pixels, np.arange(pixels.size).reshape(pixels.shape), inside, weight_shape[1], (0, 0), lanes)
    numbers = _numbered(weight_shape, groups).transpose(0, 1, 3, 4, 2)
    index = _panels(numbers, -1 - np.arange(weight_shape[0]).reshape(groups, -1))
    return geometry, taps.reshape(-1) * lanes, tiles.reshape(-1), index


@lru_cache(maxsize=256)
def backward_tiles(
    weight_shape: tuple[int, ...],
    groups: int,
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    window: Window,
    itemsize: int,
    spread: bool = False,
) -> Operands:
    """The operands of the gradient to x, one phase after the other; spread: see ``spread_out``."""
    lanes = VECTOR_BYTES // itemsize
    outputs = weight_shape[0] // groups
    geometry = backward_planes(outputs, out_size, in_size, window)
    gap = spread_out(geometry.channel_size) - geometry.channel_size if spread else 0
    numbers = _numbered(weight_shape, groups).transpose(0, 2, 3, 4, 1)
    offsets, tiles, index, place, base = [], [], [], 0, 0
    for phase, distances in zip(geometry.phases, geometry.offsets, strict=True):
        inside, targets = [], []
        for axis, (first, count, taps) in enumerate(
            ((phase.first_row, phase.height, phase.rows), (phase.first_column, phase.width, phase.columns))
        ):
            shifts = (first + window.padding[axis] - taps * window.dilation[axis]) // window.stride[axis]
            sources = np.arange(count)[:, None] + shifts
            inside.append((sources >= 0) & (sources < out_size[axis]))
            targets.append(first + np.arange(count) * window.stride[axis])
        pixels = np.arange(phase.height)[:, None] * geometry.width + np.arange(phase.width)
        written = targets[0][:, None] * in_size[1] + targets[1]
        tiles.append(_tiles(pixels, written, inside, outputs, (base, place), lanes))
        offsets.append((distances.reshape(outputs, -1) + np.arange(outputs)[:, None] * gap).T.reshape(-1) * lanes)
        index.append(_panels(numbers[:, :, phase.rows][:, :, :, phase.columns], None))
        place += distances.size
        base += index[-1].size
    return geometry, np.concatenate(offsets), np.concatenate(tiles).reshape(-1), np.concatenate(index)


def _tiles(
    sources: np.ndarray,
    targets: np.ndarray,
    inside: list[np.ndarray],
    channels: int,
    starts: tuple[int, int],
    lanes: int,
) -> np.ndarray:
    """Tiles (count, TILE_FIELDS) of the pixels ``sources`` (rows, columns) in the planes, ``targets`` in the output.

    inside: for both axes (pixels, kernel taps) whether the input has what is under a tap; the others are left out of
    the sums, as far as all pixels of a tile can do without them: of the shapes of tiles that with the fewest products.
    starts: of the panels and of the offsets.
    """
    taps = [axis.shape[1] for axis in inside]
    found = []
    for pixels in _tilings(*sources.shape):
        places = pixels // sources.shape[1], pixels % sources.shape[1]
        runs = [
            (axis.argmax(axis=1)[place].min(axis=1), (count - axis[:, ::-1].argmax(axis=1))[place].max(axis=1))
            for axis, place, count in zip(inside, places, taps, strict=True)
        ]
        found.append((sum((runs[0][1] - runs[0][0]) * (runs[1][1] - runs[1][0])), pixels, runs))
    _, pixels, ((top, bottom), (left, right)) = min(found, key=lambda entry: entry[0])
    tiles = np.empty((len(pixels), TILE_FIELDS), np.int64)
    tiles[:, :3] = starts[0], taps[0] * taps[1] * channels, starts[1]
    tiles[:, 3], tiles[:, 4] = (top * taps[1] + left) * channels, bottom - top
    tiles[:, 5], tiles[:, 6] = taps[1] * channels, (right - left) * channels
    whole = right - left == taps[1]
    tiles[whole, 4], tiles[whole, 6] = 1, ((bottom - top) * taps[1] * channels)[whole]
    tiles[:, 7:] = np.hstack([sources.reshape(-1)[pixels], targets.reshape(-1)[pixels]]) * lanes
    return tiles


def _tilings(rows: int, columns: int) -> list[np.ndarray]:
    """The pixels of an image LANE_VECTORS by LANE_VECTORS, the last ones repeated: row by row, and in blocks."""
    count = -(-rows * columns // LANE_VECTORS)
    tilings = [np.minimum(np.arange(count * LANE_VECTORS), rows * columns - 1).reshape(count, LANE_VECTORS)]
    for height in range(2, LANE_VECTORS + 1):
        width = LANE_VECTORS // height
        if height * width == LANE_VECTORS:
            down, right = np.arange(-(-rows // height) * height), np.arange(-(-columns // width) * width)
            grid = np.minimum(down, rows - 1)[:, None] * columns + np.minimum(right, columns - 1)
            blocks = grid.reshape(len(down) // height, height, len(right) // width, width)
            tilings.append(blocks.swapaxes(1, 2).reshape(-1, LANE_VECTORS))
    return tilings
