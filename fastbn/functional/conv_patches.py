"""Convolution by ``kernels.conv_patches``: few channels into many, as into a network's first layer.

Arguments as in ``conv_blocks``; outputs are channels-last, and operands come without a prologue but for dy.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn._memory import empty, scratch
from fastbn._tape import call
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, in_order_of, with_places
from fastbn.functional import conv_planes
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point import streams
from fastbn.functional.conv_point_portions import PIXELS
from fastbn.functional.conv_portions import TASKS, Shape
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import Sums, limits_of, pieces_of
from fastbn.functional.packed_weights import packed
from fastbn.functional.weight_panels import packed_matrix, panels_size, unpacked
from fastbn.kernels._simd_point import SLIM_ROWS
from fastbn.kernels.conv_panels import block_lanes, tile_elements
from fastbn.kernels.conv_patches import correlate_patches, correlate_weights_patches


class Portions(NamedTuple):
    """Operands of both kernels from ``rows`` on, up to ``room``; splits: of the weights' gradient."""

    rows: int
    window: tuple[int, int, int, int, int]
    columns: int
    firsts: np.ndarray
    runs: np.ndarray
    counts: np.ndarray
    taps: int
    room: int


def suits(weight_shape: Shape, groups: int, itemsize: int) -> bool:
    """Whether channels are too few for blocks, patches are not, and outputs fill a vector."""
    outputs, channels, height, width = weight_shape
    lanes = block_lanes(itemsize)
    return groups == 1 and channels < lanes <= min(outputs, channels * height * width)


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
    ceiling: float = math.inf,
) -> Sums | None:
    """Write a channels-last ``y``; its moments, if wanted."""
    portions = _portions(weight.shape[1], y.shape[2:], window, x.itemsize)
    sums = None
    if moments:
        sums = pieces_of(y.shape, y.itemsize, 1, portions.rows).moments(x.dtype)
    pixels, taps, outputs = portions.rows * y.shape[3], portions.taps, len(weight)
    launch(
        correlate_patches,
        *with_places(x),
        y.shape,
        *portions,
        packed(weight, lambda: packed_matrix(_as_patches(weight), outputs, taps, (taps, 1)), "patches"),
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, y)),
        limits_of(relu, ceiling),
        as_flat(y),
        streams(y),
        None if sums is None else sums.shifts,
        None if sums is None else sums.partials,
        _workspace(portions, tile_elements(x.itemsize), pixels, 0, x.dtype),
        work=y.size // outputs * weight.size // 16,
    )
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
) -> tuple[np.ndarray, np.ndarray | None, None]:
    """(dweight, dx, None); dx None unless needed, and then of a dy without a prologue."""
    portions = _portions(weight.shape[1], dy.shape[2:], window, x.itemsize)
    pixels, taps, outputs = portions.rows * dy.shape[3], portions.taps, len(weight)
    pieces = len(dy) * -(-dy.shape[2] // portions.rows)
    at_once = -(-pieces // TASKS)
    sums = empty((-(-pieces // at_once), panels_size(outputs, taps, x.itemsize)), x.dtype)
    launch(
        correlate_weights_patches,
        *with_places(x),
        dy.shape,
        *portions,
        as_flat(dy),
        *prologue.operands(),
        at_once,
        sums,
        _workspace(portions, 0, pixels, outputs, x.dtype),
        work=dy.size // outputs * weight.size // 16,
    )
    dx = conv_planes.backward_data(dy, x, weight, window, groups)[0] if need_dx else None
    return _of_patches(unpacked(sums, len(sums), (outputs, taps), 1, 1), weight.shape), dx, None


def _as_patches(weight: np.ndarray) -> np.ndarray:
    """``weight`` with its channels last, as patches have them: a copy."""
    outputs, channels, height, width = weight.shape
    taps = empty((outputs, height, width, channels), weight.dtype)
    call(np.copyto, taps, weight.transpose(0, 2, 3, 1))
    return taps


def _of_patches(taps: np.ndarray, shape: Shape) -> np.ndarray:
    """A weight of that shape from what ``_as_patches`` makes of it: a copy."""
    outputs, channels, height, width = shape
    weight = empty(shape, taps.dtype, lasting=True)
    call(np.copyto, weight.transpose(0, 2, 3, 1), taps.reshape(outputs, height, width, channels))
    return weight


@lru_cache(maxsize=256)
def _portions(channels: int, out_size: tuple[int, int], window: Window, itemsize: int) -> Portions:
    (height, width), (stride_h, stride_w), (pad_h, pad_w), (step_h, step_w) = window
    lanes, taps = block_lanes(itemsize), channels * height * width
    rows = max(1, min(out_size[0], PIXELS // out_size[1]))
    rows = -(-out_size[0] // -(-out_size[0] // rows))
    reach = (height - 1) * step_h + 1
    columns = (out_size[1] - 1) * stride_w + (width - 1) * step_w + 1
    deep = (rows - 1) * stride_h + reach
    i, j, c = np.unravel_index(np.arange(taps), (height, width, channels))
    places = (i * step_h * columns + j * step_w) * channels + c
    firsts, runs, counts = [0], list[int](), list[int]()
    for block in range(0, taps, lanes):
        inside = places[block : block + lanes]
        # A run begins where a tap does not lie right behind the one before it.
        begins = np.flatnonzero(np.diff(inside, prepend=inside[0] - 2) != 1)
        runs.extend(inside[begins] - begins)
        counts.extend([*begins[1:], inside.size])
        firsts.append(len(runs))
    room = 2 * lanes + channels * deep * columns
    geometry = -pad_h, -pad_w, stride_h, stride_w, reach
    return Portions(rows, geometry, columns, np.array(firsts), np.array(runs), np.array(counts), taps, room)


def _workspace(portions: Portions, tile: int, pixels: int, outputs: int, dtype: np.dtype) -> np.ndarray:
    """For each thread: the padded rows, a tile, the blocks of so many pixels and outputs, and what tiles may read."""
    lanes = block_lanes(dtype.itemsize)
    blocks = portions.firsts.size - 1 + -(-outputs // lanes)
    return scratch((max_threads(), portions.room + tile + (blocks * pixels + SLIM_ROWS) * lanes), dtype)
