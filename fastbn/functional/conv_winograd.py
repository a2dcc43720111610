"""Convolution with windows of 3 x 3 at stride 1 by ``kernels.conv_winograd``: where it pays, in what portions.

A NaN or an infinity in a pixel may reach the outputs of all the tiles that read it: up to three rows or columns away.
"""

from functools import lru_cache

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, element_strides, empty_like, in_order_of, is_channels_last
from fastbn.functional import conv_blocks
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import NOTHING, Sums, sums_for
from fastbn.functional.packed_weights import packed
from fastbn.kernels import conv_panels
from fastbn.kernels._simd import TILE_ROWS
from fastbn.kernels.conv_winograd import correlate_winograd
from fastbn.kernels.winograd_panels import TAPS, transform_panels
from fastbn.kernels.winograd_tiles import POSITIONS

TASKS = 16
VALUES = 1 << 20
NOTHING_YET = np.zeros(1, np.int64)


def _portion(count, height, width, channels, itemsize):
    down, across = -(-height // 2), -(-width // 2)
    depth = conv_blocks.blocks_of(channels, itemsize)
    limit = max(8 * TILE_ROWS, VALUES // (POSITIONS * depth * conv_panels.VECTOR_BYTES))
    if down * across >= limit:
        rows = max(1, limit // across)
        rows = -(-down // -(-down // rows))
        return 1, 2 * rows
    return max(1, min(count, limit // (down * across))), height + height % 2


def forward(x, weight, bias, window, groups, residual, relu, y, prologue=PLAIN, moments=False):
    images, rows = _portion(x.shape[0], y.shape[2], y.shape[3], x.shape[1], x.itemsize)
    sums = None
    if moments:
        sums = sums_for(y, images, rows)
        sums = sums._replace(shifts=np.empty(sums.partials.shape[1:], x.dtype))
    panels = packed(weight, lambda: _panels(weight, (0, weight[0].size, TAPS), np.arange(TAPS), *weight.shape[:2]))
    starts = np.array([-window.padding[0]]), np.array([-window.padding[1]])
    _correlate(x, prologue, starts, images, rows, panels, bias, residual, relu, y, sums)
    return sums


def _correlate(x, prologue, starts, images, rows, panels, bias, residual, relu, out, sums):
    lanes, columns = conv_panels.block_lanes(x.itemsize), conv_panels.panel_columns(x.itemsize)
    depth = conv_blocks.blocks_of(x.shape[1], x.itemsize)
    height, width = out.shape[2:]
    down, across = min(rows + rows % 2, height + height % 2) // 2, -(-width // 2)
    groups = -(-images * down * across // TILE_ROWS)
    plane = (rows + rows % 2 + 2) * (2 * across + 2)
    panel_count = -(-out.shape[1] // columns)
    tasks = -(-x.shape[0] // images) * -(-height // rows)
    at_once = -(-panel_count // min(panel_count, -(-TASKS // tasks)))
    room = POSITIONS * conv_panels.tile_elements(x.itemsize) + depth * lanes * (
        images * plane + groups * TILE_ROWS * POSITIONS
    )
    launch(
        correlate_winograd,
        as_flat(x),
        x.shape,
        element_strides(x),
        *prologue.operands(),
        *starts,
        images,
        rows,
        NOTHING_YET,
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


def _panels(weight, strides, taps, outputs, channels):
    weight = weight if weight.flags.writeable else weight.copy()
    lanes, columns = conv_panels.block_lanes(weight.itemsize), conv_panels.panel_columns(weight.itemsize)
    size = -(-channels // lanes) * lanes * columns
    count = -(-outputs // columns)
    panels = empty((count * POSITIONS * size,), weight.dtype)
    places = np.empty(TAPS, np.int64)
    places[taps] = np.arange(TAPS)
    work = empty((max_threads(), TAPS * size + lanes * lanes), weight.dtype)
    launch(transform_panels, as_flat(weight), strides, places, outputs, channels, panels, work, work=panels.size)
    return panels
