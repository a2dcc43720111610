"""Convolution over blocks of channels: the engine where channels are many.

A task copies the rows of the image that it needs into blocks, see ``conv_fill``. With ``offsets[t]`` the place of
kernel tap t, y[q, o] = sum over taps t and channels c of blocks[offsets[t] + q, c] * w[t, c, o]. Weights lie in panels,
see ``conv_panels``, and so do their gradients, in ``conv_blocks_weights``.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS, block_tile, wide_block_tile
from fastbn.kernels._vector import at_least, lanes_of, load, splat, store
from fastbn.kernels.batch_norm_tiles import set_shift, tile_products, tile_sums
from fastbn.kernels.conv_fill import fill_blocks


@inlined
def _store_whole(tile, i, bias, channel, residual, low, out, at):
    """Row i of a tile, one pixel, of which all channels are wanted and lie together."""
    lanes = lanes_of(tile)
    for v in range(TILE_VECTORS):
        value = load(tile, (i * TILE_VECTORS + v) * lanes)
        if bias is not None:
            value = value + load(bias, channel + v * lanes)
        if residual is not None:
            value = value + load(residual, at + v * lanes)
        store(out, at + v * lanes, at_least(value, low))


@inlined
def _store_part(tile, i, channels, bias, channel, residual, low, out, at, stride):
    """Row i of a tile, one pixel, into ``channels`` places of the output, ``stride`` apart."""
    lanes = lanes_of(tile)
    first = i * TILE_VECTORS * lanes
    for j in range(channels):
        if bias is not None:
            tile[first + j] += bias[channel + j]
        if residual is not None:
            tile[first + j] += residual[at + j * stride]
    for v in range(TILE_VECTORS):
        store(tile, first + v * lanes, at_least(load(tile, first + v * lanes), low))
    for j in range(channels):
        out[at + j * stride] = tile[first + j]


@inlined
def _rows_first(rows, length, columns):
    """Whether tiles that stay in one row of the output are no more than tiles that run on over the padding."""
    return rows * -(-length // TILE_ROWS) <= -(-((rows - 1) * columns + length) // TILE_ROWS)


@body
def _correlate_task(
    task, x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w, rows,
    plane_rows, columns, block, offsets, panels, at_once, bias, residual, floor, out, first, out_shape, out_strides,
    groups, shifts, source, source_relu, source_affine, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    tile, blocks = work[: TILE_ROWS * breadth], work[TILE_ROWS * breadth :]
    channels, channels_out = x_shape[1] // groups, out_shape[1] // groups
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    panel_size = offsets.size * depth * lanes * breadth
    row_blocks, panel_blocks = -(-out_shape[2] // rows), -(-panel_count // at_once)
    image, rest = divmod(task, groups * row_blocks * panel_blocks)
    group, rest = divmod(rest, row_blocks * panel_blocks)
    row_block, panel_block = divmod(rest, panel_blocks)
    first_row = row_block * rows
    count = min(rows, out_shape[2] - first_row)
    origin = image * x_strides[0] + group * channels * x_strides[1]
    fill_blocks(
        x, partner, relu, affine, slopes, x_floor, origin, group * channels, channels, x_shape[2], x_shape[3],
        x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w, plane_rows, columns, blocks, block,
    )  # fmt: skip
    low = splat(x, floor)
    length = out_shape[3]
    last_panel = min(panel_count, (panel_block + 1) * at_once)
    panel = panel_block * at_once
    while panel < last_panel:
        wide = length <= TILE_ROWS // 2 and panel + 1 < last_panel
        height, parts = (TILE_ROWS // 2, 2) if wide else (TILE_ROWS, 1)
        by_row = wide or _rows_first(count, length, columns)
        runs = count if by_row else 1
        run_length = length if by_row else (count - 1) * columns + length
        b_start = (group * panel_count + panel) * panel_size
        for run in range(runs):
            for q in range(0, run_length, height):
                a_start = (run * columns + q) * lanes
                if wide:
                    wide_block_tile(blocks, a_start, block, panels, b_start, panel_size, offsets, depth, tile)
                else:
                    block_tile(blocks, a_start, block, panels, b_start, panel_size, offsets, depth, tile)
                for part in range(parts):
                    stored = min(breadth, channels_out - (panel + part) * breadth)
                    channel = group * channels_out + (panel + part) * breadth
                    target = first + image * out_strides[0] + channel * out_strides[1]
                    whole = out_strides[1] == 1 and stored == breadth
                    row, column = (run, q) if by_row else divmod(q, columns)
                    for i in range(part * height, part * height + min(height, run_length - q)):
                        if column < length:
                            at = target + (first_row + row) * out_strides[2] + column * out_strides[3]
                            if whole:
                                _store_whole(tile, i, bias, channel, residual, low, out, at)
                            else:
                                _store_part(tile, i, stored, bias, channel, residual, low, out, at, out_strides[1])
                        column += 1
                        if column == columns:
                            row, column = row + 1, 0
        panel += parts
    begin = first + image * out_strides[0] + first_row * out_strides[2]
    piece, pixels, width = image * row_blocks + row_block, count * length, out_shape[1]
    if shifts is not None:
        set_shift(out, begin, width, 1, shifts[piece])
        tile_sums(out, begin, pixels, width, width, shifts[piece], partials[0, piece], partials[1, piece])
    if source is not None:
        tile_products(
            out, source, None, source_relu, begin, pixels, width, width, 0, source_affine, partials[0, piece],
            partials[1, piece], None,
        )  # fmt: skip


@driver
def correlate_blocks(
    x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w, rows,
    plane_rows, columns, block, offsets, panels, at_once, bias, residual, floor, out, first, out_shape, out_strides,
    groups, shifts, source, source_relu, source_affine, partials, workspace, parallel,
):  # fmt: skip
    """out = max(sum over t, c of panels * blocks + bias + residual, floor), ``rows`` rows of the output a task.

    x: flat; partner, relu, affine, slopes, x_floor: its prologue. plane_rows, columns: of a plane for so many rows;
    block: elements of a block of all planes and what tiles may read past them. offsets: of the taps, in elements.
    at_once: panels in a task. bias, residual: flat, or None; residual lies as out. first: the element of ``out`` at
    its logical origin; out_shape (N, C, H, W) and out_strides may name a part of it. workspace: (threads, a tile and
    the blocks).
    Sums of a dense channels-last output, made while it is in cache, if all panels are in one task: partials (2, pieces,
    channels to a whole vector) of a task each, float64. Of d and d d, where d = out - its row of shifts, which is
    written too; or, with ``source``, of g and g (source - near), where g is out as it passed source's ReLU.
    """
    lanes = lanes_of(x)
    panel_count = -(-(out_shape[1] // groups) // (TILE_VECTORS * lanes))
    tasks = out_shape[0] * groups * -(-out_shape[2] // rows) * -(-panel_count // at_once)
    if parallel:
        for task in prange(tasks):
            _correlate_task(
                int64(task), x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w,
                stride_h, stride_w, rows, plane_rows, columns, block, offsets, panels, at_once, bias, residual, floor,
                out, first, out_shape, out_strides, groups, shifts, source, source_relu, source_affine, partials,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _correlate_task(
                task, x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h,
                stride_w, rows, plane_rows, columns, block, offsets, panels, at_once, bias, residual, floor, out,
                first, out_shape, out_strides, groups, shifts, source, source_relu, source_affine, partials,
                workspace[0],
            )  # fmt: skip
