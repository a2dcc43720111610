"""Convolution over blocks of channels: the engine where channels are many.

A task copies the rows of the image that it needs into blocks, see ``conv_fill``. With ``offsets[t]`` the place of
kernel tap t, y[q, o] = sum over taps t and channels c of blocks[offsets[t] + q, c] * w[t, c, o]. Weights lie in panels,
see ``conv_panels``, and so do their gradients, in ``conv_blocks_weights``.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS, block_tile, pixel_tile
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
def _tiles_by_row(rows, length, columns, height):
    """Whether tiles that stay in one row of the output are no more than tiles that run on over the padding."""
    return rows * -(-length // height) <= -(-((rows - 1) * columns + length) // height)


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, out_strides, x, partner, relu, affine, slopes, x_floor, starts_h, starts_w,
    stride_h, stride_w, images, rows, plane_rows, columns, block, offsets, places, by_pixel, panels, at_once, bias,
    residual, floor, out, first, groups, shifts, source, source_relu, source_affine, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    tile, blocks = work[: TILE_ROWS * breadth], work[TILE_ROWS * breadth :]
    channels, channels_out = x_shape[1] // groups, out_shape[1] // groups
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    panel_size = offsets.size * depth * lanes * breadth
    row_blocks, panel_blocks = -(-out_shape[2] // rows), -(-panel_count // at_once)
    piece, rest = divmod(task, groups * panel_blocks)
    group, panel_block = divmod(rest, panel_blocks)
    image_block, row_block = divmod(piece, row_blocks)
    first_image, first_row = image_block * images, row_block * rows
    last_image = min(x_shape[0], first_image + images)
    count, length = min(rows, out_shape[2] - first_row), out_shape[3]
    pixels_apart = plane_rows * columns  # from image to image, in a plane
    for image in range(last_image - first_image):
        origin = (first_image + image) * x_strides[0] + group * channels * x_strides[1]
        fill_blocks(
            x, partner, relu, affine, slopes, x_floor, origin, group * channels, channels, x_shape[2], x_shape[3],
            x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w, plane_rows, columns,
            blocks[image * pixels_apart * lanes :], block, images * pixels_apart * lanes,
        )  # fmt: skip
    low = splat(x, floor)
    first_panel, last_panel = panel_block * at_once, min(panel_count, (panel_block + 1) * at_once)
    panel = first_panel
    while panel < last_panel:
        wide = by_pixel and panel + 1 < last_panel
        height, parts = (TILE_ROWS // 2, 2) if wide else (TILE_ROWS, 1)
        # A run: all pixels where none is padding; else an image with the padding between its rows, or one row.
        dense = wide or (columns == length and plane_rows == rows)
        line, lines = (length, rows) if wide else (columns, plane_rows)
        by_row = not dense and _tiles_by_row(count, length, columns, height)
        runs_of_image = count if by_row else 1
        run_count = 1 if dense else (last_image - first_image) * runs_of_image
        run_length = length if by_row else (count - 1) * line + length
        if dense:
            run_length += (last_image - first_image - 1) * lines * line
        b_start = (group * panel_count + panel) * panel_size
        for run in range(run_count):
            run_image, run_row = divmod(run, runs_of_image)
            run_start = (run_image * lines + run_row) * line
            for q in range(0, run_length, height):
                if wide:
                    pixel_tile(blocks, places, q, block, panels, b_start, panel_size, offsets, depth, tile)
                else:
                    a_start = (run_start + q) * lanes
                    block_tile(blocks, a_start, block, panels, b_start, panel_size, offsets, depth, tile)
                for part in range(parts):
                    stored = min(breadth, channels_out - (panel + part) * breadth)
                    channel = group * channels_out + (panel + part) * breadth
                    whole = out_strides[1] == 1 and stored == breadth
                    image, rest = divmod(run_start + q, lines * line)
                    row, column = divmod(rest, line)
                    origin = first + (first_image + image) * out_strides[0] + channel * out_strides[1]
                    for i in range(part * height, part * height + min(height, run_length - q)):
                        if column < length:
                            at = origin + (first_row + row) * out_strides[2] + column * out_strides[3]
                            if whole:
                                _store_whole(tile, i, bias, channel, residual, low, out, at)
                            else:
                                _store_part(tile, i, stored, bias, channel, residual, low, out, at, out_strides[1])
                        column += 1
                        if column == line:
                            row, column = row + 1, 0
                            if row == lines:
                                row = 0
                                origin += out_strides[0]
        panel += parts
    begin = first + first_image * out_strides[0] + first_row * out_strides[2]
    pixels, width = (last_image - first_image) * count * length, out_shape[1]
    c = first_panel * breadth
    used = min(width, last_panel * breadth) - c
    filled = -(-used // lanes) * lanes
    if shifts is not None:
        shift = shifts[piece, c : c + filled]
        set_shift(out, begin + c, used, 1, shift)
        sums, squares = partials[0, piece, c : c + filled], partials[1, piece, c : c + filled]
        tile_sums(out, begin + c, pixels, width, used, shift, sums, squares)
    if source is not None:
        sums, products = partials[0, piece, c : c + filled], partials[1, piece, c : c + filled]
        tile_products(
            out, source, None, source_relu, begin + c, pixels, width, used, 0, source_affine, c, sums, products, None
        )  # fmt: skip


@driver
def correlate_blocks(
    x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w, images,
    rows, plane_rows, columns, block, offsets, places, by_pixel, panels, at_once, bias, residual, floor, out, first,
    out_shape, out_strides, groups, shifts, source, source_relu, source_affine, partials, workspace, parallel,
):  # fmt: skip
    """out = max(sum over t, c of panels * blocks + bias + residual, floor).

    A task has ``rows`` rows of ``images`` images, several only if all rows, and ``at_once`` panels.
    x: flat; partner, relu, affine, slopes, x_floor: its prologue. plane_rows, columns: of an image in a plane; a plane
    has the images of a task one after the other. block: elements of a block's planes. offsets: of the taps, places: of
    a task's pixels and some more, in elements. by_pixel: panels are taken in pairs, and pixels from their places, which
    need not follow one another. bias, residual: flat, or None; residual lies as out. first: the element of ``out`` at
    its logical origin; out_shape (N, C, H, W) and out_strides may name a part of it. workspace: (threads, a tile, the
    blocks of a task and what tiles may read past them).
    Sums of a dense channels-last output of one group, made while it is in cache: partials (2, pieces, channels to a
    whole vector), float64; a piece has the rows and images of a task. Of d and d d, where d = out - its row of shifts,
    which is written too; or, with ``source``, of g and g (source - near), where g is out as it passed source's ReLU.
    """
    lanes = lanes_of(x)
    panel_count = -(-(out_shape[1] // groups) // (TILE_VECTORS * lanes))
    tasks = -(-out_shape[0] // images) * -(-out_shape[2] // rows) * groups * -(-panel_count // at_once)
    image = (x, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w)
    share = (
        images, rows, plane_rows, columns, block, offsets, places, by_pixel, panels, at_once, bias, residual, floor,
    )  # fmt: skip
    target = (out, first, groups, shifts, source, source_relu, source_affine, partials)
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
