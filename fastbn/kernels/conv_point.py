"""Convolution of single pixels, 1x1: channels-last arrays as matrices (pixels, channels).

A task copies a run of pixels, as its prologue makes them, into blocks of as many channels as a vector has lanes, pixel
by pixel: what register tiles multiply then lies at constant distances in the second cache. Prologues are those of
``conv_fill``, weights lie in panels, see ``conv_panels``.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_point import SLIM_ROWS, point_tile, slim_point_tile
from fastbn.kernels._vector import (
    at_least,
    at_most,
    lanes_of,
    load,
    load_first,
    load_part,
    prefetch,
    splat,
    store,
    store_part,
)
from fastbn.kernels.batch_norm_tiles import set_shift, tile_sums
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K

FILL_ROWS = 16  # pixels that share the constants of a channel


@inlined
def _constant(values, row, c, count, zero):
    """Channels from c on of a row of constants, 0 where there are none."""
    return zero if values is None else load_first(values, row * values.shape[1] + c, count, zero)


@body
def fill_pixels(x, partner, relu, affine, slopes, floor, first, pixels, channels, blocks, block):
    """blocks[c, p, lane] = x[first + p, c lanes + lane] through its prologue, 0 past the last channel.

    block: elements from one c to the next.
    """
    lanes = lanes_of(x)
    zero, low = splat(x, 0.0), splat(x, floor)
    for top in range(0, pixels, FILL_ROWS):
        rows = min(FILL_ROWS, pixels - top)
        ahead = rows * channels
        for c in range(0, channels, lanes):
            count = min(lanes, channels - c)
            near, scale = _constant(affine, NEAR_MEAN, c, count, zero), _constant(affine, SCALE, c, count, zero)
            shift = _constant(affine, SHIFT, c, count, zero)
            a, b = _constant(slopes, A, c, count, zero), _constant(slopes, B, c, count, zero)
            k, inv_std = _constant(slopes, K, c, count, zero), _constant(slopes, NEAR_INV_STD, c, count, zero)
            i = (first + top) * channels + c
            target = c // lanes * block + top * lanes
            for _ in range(rows):
                prefetch(x, i + ahead)
                if slopes is not None:
                    prefetch(partner, i + ahead)
                if count == lanes:
                    if affine is None:
                        value = load(x, i)
                    elif slopes is None:
                        value = at_most(normalized(x, None, None, i, 0, near, scale, shift, low), relu)
                    else:
                        value = gradient(
                            x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None
                        )
                elif affine is None:
                    value = load_first(x, i, count, zero)
                elif slopes is None:
                    value = at_most(normalized_first(x, None, None, i, count, 0, near, scale, shift, low), relu)
                else:
                    value = gradient_first(
                        x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None
                    )
                store(blocks, target, value)
                i += channels
                target += lanes


@inlined
def _finish(rows, count, bias, channel, residual, low, out, at, outputs):
    """Bias, residual and floor of ``count`` channels of a tile's pixels."""
    lanes = lanes_of(out)
    for j in range(0, count, lanes):
        part = min(lanes, count - j)
        for i in range(rows):
            place = at + i * outputs + j
            value = load_part(out, place, part, low)
            if bias is not None:
                value = value + load_part(bias, channel + j, part, low)
            if residual is not None:
                value = value + load_part(residual, place, part, low)
            store_part(out, place, at_least(value, low), part)


@body
def multiply_pixels(blocks, block, pixels, channels, panels, outputs, bias, residual, floor, out, first, tile):
    """out[first + p, o] = max(sum over channels c of blocks[c, p] * panels[c, o] + bias + residual, floor).

    Tiles may read SLIM_ROWS pixels past the last block. tile: SLIM_ROWS * TILE_VECTORS vectors.
    """
    lanes = lanes_of(out)
    breadth = TILE_VECTORS * lanes
    panel_size = -(-channels // lanes) * lanes * breadth
    low = splat(out, floor)
    for o in range(0, outputs, breadth):
        count = min(breadth, outputs - o)
        slim = count <= lanes
        height, width = (SLIM_ROWS, lanes) if slim else (TILE_ROWS, breadth)
        start = o // breadth * panel_size
        for q in range(0, pixels, height):
            rows, at = min(height, pixels - q), (first + q) * outputs + o
            whole = rows == height and count == width
            target, place, step = (out, at, outputs) if whole else (tile, 0, width)
            if slim:
                slim_point_tile(blocks, q * lanes, block, panels, start, channels, target, place, step)
            else:
                point_tile(blocks, q * lanes, block, panels, start, channels, target, place, step)
            if not whole:
                for i in range(rows):
                    for j in range(0, count, lanes):
                        store_part(out, at + i * outputs + j, load(tile, i * width + j), min(lanes, count - j))
            if bias is not None or residual is not None or floor > -np.inf:
                _finish(rows, count, bias, o, residual, low, out, at, outputs)


@body
def _correlate_task(
    task, x, ceiling, affine, x_floor, pixels, channels, at_once, panels, outputs, bias, residual, floor, out, shifts,
    partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    room = SLIM_ROWS * TILE_VECTORS * lanes
    tile, blocks = work[:room], work[room:]
    first = task * at_once
    count = min(at_once, pixels - first)
    block = at_once * lanes
    fill_pixels(x, None, ceiling, affine, None, x_floor, first, count, channels, blocks, block)
    multiply_pixels(blocks, block, count, channels, panels, outputs, bias, residual, floor, out, first, tile)
    if shifts is not None:
        set_shift(out, first * outputs, outputs, 1, shifts[task])
        sums, squares = partials[0, task], partials[1, task]
        tile_sums(out, first * outputs, count, outputs, outputs, shifts[task], sums, squares)


@driver
def correlate_points(
    x, ceiling, affine, x_floor, pixels, channels, at_once, panels, outputs, bias, residual, floor, out, shifts,
    partials, workspace, parallel,
):  # fmt: skip
    """out (pixels, outputs) = max(x (pixels, channels) * panels + bias + residual, floor), ``at_once`` pixels a task.

    All flat; ceiling, affine, x_floor: the prologue of x. shifts, partials: moments, if not None, a task a piece, see
    ``conv_blocks.correlate_blocks``. workspace: (threads, a tile, the blocks of a task and SLIM_ROWS vectors).
    """
    tasks = -(-pixels // at_once)
    share = (x, ceiling, affine, x_floor, pixels, channels, at_once, panels, outputs, bias, residual, floor, out)
    if parallel:
        for task in prange(tasks):
            _correlate_task(int64(task), *share, shifts, partials, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _correlate_task(task, *share, shifts, partials, workspace[0])
