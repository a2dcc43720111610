"""Depthwise convolution: every channel by itself, a vector of them at a time, over the blocks of ``conv_fill``.

weights (taps, C to a whole vector); y[q, c] = sum over taps t of blocks[offsets[t] + q, c] * weights[t, c].
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, depthwise_tile
from fastbn.kernels._vector import (
    add_to,
    at_least,
    fma,
    lanes_of,
    load,
    load_first,
    splat,
    store,
    widen,
)
from fastbn.kernels.batch_norm_tiles import set_shift, tile_products, tile_sums
from fastbn.kernels.conv_fill import fill_blocks


@inlined
def _store_whole(tile, i, start, residual, low, out, at):
    """Pixel i of a tile whose channels lie together."""
    value = load(tile, i * lanes_of(tile)) + start
    if residual is not None:
        value = value + load(residual, at)
    store(out, at, at_least(value, low))


@inlined
def _store_part(tile, i, count, start, residual, low, out, at, stride):
    """The first ``count`` channels of pixel i of a tile, ``stride`` apart in the output."""
    first = i * lanes_of(tile)
    store(tile, first, load(tile, first) + start)
    if residual is not None:
        for lane in range(count):
            tile[first + lane] += residual[at + lane * stride]
    store(tile, first, at_least(load(tile, first), low))
    for lane in range(count):
        out[at + lane * stride] = tile[first + lane]


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, out_strides, x, partner, relu, affine, slopes, x_floor, starts_h, starts_w,
    stride_h, stride_w, rows, plane_rows, columns, block, offsets, weights, bias, residual, floor, out, first, shifts,
    source, source_relu, source_affine, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    tile, blocks = work[: TILE_ROWS * lanes], work[TILE_ROWS * lanes :]
    channels, length = out_shape[1], out_shape[3]
    image, row_block = divmod(task, -(-out_shape[2] // rows))
    first_row = row_block * rows
    lines = min(rows, out_shape[2] - first_row)
    fill_blocks(
        x, partner, relu, affine, slopes, x_floor, image * x_strides[0], 0, channels, x_shape[2], x_shape[3],
        x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w, plane_rows, columns, blocks, block,
        plane_rows * columns * lanes,
    )  # fmt: skip
    zero, low = splat(x, 0.0), splat(x, floor)
    width = weights.shape[1]
    begin = first + image * out_strides[0] + first_row * out_strides[2]
    for c in range(0, channels, lanes):
        count = min(lanes, channels - c)
        whole = count == lanes and out_strides[1] == 1
        start = zero
        if bias is not None:
            start = load_first(bias, c, count, zero)
        for row in range(lines):
            place = c // lanes * block + row * columns * lanes
            at = begin + c * out_strides[1] + row * out_strides[2]
            for column in range(0, length, TILE_ROWS):
                depthwise_tile(blocks, place + column * lanes, weights, c, width, offsets, tile)
                for i in range(min(TILE_ROWS, length - column)):
                    pixel = at + (column + i) * out_strides[3]
                    if whole:
                        _store_whole(tile, i, start, residual, low, out, pixel)
                    else:
                        _store_part(tile, i, count, start, residual, low, out, pixel, out_strides[1])
    pixels = lines * length
    if shifts is not None:
        set_shift(out, begin, channels, 1, shifts[task])
        tile_sums(out, begin, pixels, channels, channels, shifts[task], partials[0, task], partials[1, task])
    if source is not None:
        tile_products(
            out, source, None, source_relu, begin, pixels, channels, channels, 0, source_affine, 0, partials[0, task],
            partials[1, task], None,
        )  # fmt: skip


@driver
def correlate_depthwise(
    x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w, rows,
    plane_rows, columns, block, offsets, weights, bias, residual, floor, out, first, out_shape, out_strides, shifts,
    source, source_relu, source_affine, partials, workspace, parallel,
):  # fmt: skip
    """out = max(sum over t of weights * blocks + bias + residual, floor); see ``conv_blocks.correlate_blocks``.

    workspace: (threads, TILE_ROWS vectors, the blocks and what tiles may read past them).
    """
    tasks = out_shape[0] * -(-out_shape[2] // rows)
    image = (x, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w)
    share = (rows, plane_rows, columns, block, offsets, weights, bias, residual, floor)
    target = (out, first, shifts, source, source_relu, source_affine, partials)
    if parallel:
        for task in prange(tasks):
            _correlate_task(
                int64(task),
                x_shape,
                x_strides,
                out_shape,
                out_strides,
                *image,
                *share,
                *target,
                workspace[get_thread_id()],
            )
    else:
        for task in range(tasks):
            _correlate_task(task, x_shape, x_strides, out_shape, out_strides, *image, *share, *target, workspace[0])


@body
def _weights_task(
    task, x_shape, x_strides, dy_shape, dy_strides, x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes,
    starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns, block, offsets, runs_at_once, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels = x_shape[1]
    row_blocks = -(-dy_shape[2] // rows)
    depth = -(-channels // lanes)
    # Past the last block lies as much as taps may read there, against zeros of dy: it must not be NaN.
    room = depth * block + columns * lanes
    blocks, dy_blocks = work[:room], work[room:]
    dy_block = rows * columns * lanes
    for index in range(depth * block, room):
        work[index] = 0
    nothing = starts_h[:1] * 0
    zero = splat(x, 0.0)
    taps, width = offsets.size, partials.shape[2]
    partials[task] = 0.0
    for run in range(task * runs_at_once, min(x_shape[0] * row_blocks, (task + 1) * runs_at_once)):
        image, row_block = divmod(run, row_blocks)
        first_row = row_block * rows
        fill_blocks(
            x, None, x_ceiling, x_affine, None, x_floor, image * x_strides[0], 0, channels, x_shape[2], x_shape[3],
            x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w, plane_rows, columns, blocks, block,
            plane_rows * columns * lanes,
        )  # fmt: skip
        fill_blocks(
            dy, partner, relu, affine, slopes, -np.inf, image * dy_strides[0], 0, channels, dy_shape[2], dy_shape[3],
            dy_strides[1:], nothing, nothing, first_row, 1, 1, rows, columns, dy_blocks, dy_block, dy_block,
        )  # fmt: skip
        pixels = min(rows, dy_shape[2] - first_row) * columns
        for c in range(depth):
            target = task * taps * width + c * lanes
            threes = taps - taps % 3
            for tap in range(0, threes, 3):
                i0, i1 = c * block + offsets[tap], c * block + offsets[tap + 1]
                i2, j = c * block + offsets[tap + 2], c * dy_block
                v0 = v1 = v2 = zero
                for q in range(0, pixels * lanes, lanes):
                    g = load(dy_blocks, j + q)
                    v0, v1 = fma(load(blocks, i0 + q), g, v0), fma(load(blocks, i1 + q), g, v1)
                    v2 = fma(load(blocks, i2 + q), g, v2)
                add_to(partials, target + tap * width, widen(v0))
                add_to(partials, target + (tap + 1) * width, widen(v1))
                add_to(partials, target + (tap + 2) * width, widen(v2))
            for tap in range(threes, taps):
                i, j = c * block + offsets[tap], c * dy_block
                v0 = zero
                for q in range(0, pixels * lanes, lanes):
                    v0 = fma(load(blocks, i + q), load(dy_blocks, j + q), v0)
                add_to(partials, target + tap * width, widen(v0))


@driver
def correlate_weights_depthwise(
    x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine, slopes,
    starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns, block, offsets, runs_at_once, partials,
    workspace, parallel,
):  # fmt: skip
    """partials (splits, taps, C to a whole vector) float64 = sums over a split's runs of x times dy.

    See ``conv_blocks_weights.correlate_weights_blocks``.
    """
    tasks = partials.shape[0]
    operands = (x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes)
    share = (starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns, block, offsets, runs_at_once, partials)
    if parallel:
        for task in prange(tasks):
            _weights_task(
                int64(task), x_shape, x_strides, dy_shape, dy_strides, *operands, *share, workspace[get_thread_id()]
            )
    else:
        for task in range(tasks):
            _weights_task(task, x_shape, x_strides, dy_shape, dy_strides, *operands, *share, workspace[0])
