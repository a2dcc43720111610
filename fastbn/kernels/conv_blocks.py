"""Convolution over blocks of channels: the engine where channels are many.

A task copies the rows of the image that it needs into blocks, see ``conv_fill``. With ``offsets[t]`` the place of
kernel tap t, y[q, o] = sum over taps t and channels c of blocks[offsets[t] + q, c] * w[t, c, o]. Weights lie in panels,
see ``conv_panels``, and so do their gradients, in ``conv_blocks_weights``.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_blocks import ASKED, CHANNELS, add_pixel_tile, block_tile
from fastbn.kernels._vector import bounds_of, lanes_of, within
from fastbn.kernels._vector_memory import load, store
from fastbn.kernels.batch_norm_tiles import set_shift, tile_products, tile_sums, whole_vectors
from fastbn.kernels.conv_fill import fill_blocks


@inlined
def _store_whole(tile, i, bias, channel, residual, bounds, out, at):
    """Row i of a tile, one pixel, of which all channels are wanted and lie together."""
    lanes = lanes_of(tile)
    for v in range(TILE_VECTORS):
        value = load(tile, (i * TILE_VECTORS + v) * lanes)
        if bias is not None:
            value = value + load(bias, channel + v * lanes)
        if residual is not None:
            value = value + load(residual, at + v * lanes)
        store(out, at + v * lanes, within(value, bounds))


@inlined
def _store_part(tile, i, channels, bias, channel, residual, bounds, out, at, stride):
    """Row i of a tile, one pixel, into ``channels`` places of the output, ``stride`` apart."""
    lanes = lanes_of(tile)
    first = i * TILE_VECTORS * lanes
    for j in range(channels):
        if bias is not None:
            tile[first + j] += bias[channel + j]
        if residual is not None:
            tile[first + j] += residual[at + j * stride]
    for v in range(TILE_VECTORS):
        store(tile, first + v * lanes, within(load(tile, first + v * lanes), bounds))
    for j in range(channels):
        out[at + j * stride] = tile[first + j]


@inlined
def _store_tile(
    tile, first, rows, row, column, line, lines, length, channels, bias, channel, residual, bounds, out, origin, strides
):  # fmt: skip
    """``rows`` rows of a tile from ``first`` on, as far as they are pixels of the output, into ``channels`` of them.

    channel: the first in ``bias``. row, column: of the first of them, in an image of ``lines`` lines, whose first pixel
    is at ``origin``; of each line, ``length`` pixels are the output's.
    """
    whole = strides[1] == 1 and channels == TILE_VECTORS * lanes_of(tile)
    for i in range(first, first + rows):
        if column < length:
            at = origin + row * strides[2] + column * strides[3]
            if whole:
                _store_whole(tile, i, bias, channel, residual, bounds, out, at)
            else:
                _store_part(tile, i, channels, bias, channel, residual, bounds, out, at, strides[1])
        column += 1
        if column == line:
            row, column = row + 1, 0
            if row == lines:
                row = 0
                origin += strides[0]


@inlined
def pixels_of(counts, tap, images, rows, all_rows):
    """The list of a tap, and how many of its pixels lie in so many images of ``rows`` rows, ``all_rows`` if several."""
    which = min(tap, counts.size - 1)
    return which, counts[which] * (images - 1) + counts[which] * rows // all_rows


@inlined
def _pair_sums(
    counts, places, targets, taps_at_once, images, rows, all_rows, blocks, block, panels, b_start, panel_size, offsets,
    depth, sums, apart, more,
):  # fmt: skip
    """The sums of all pixels of a task for two panels; what a pass over the pixels reads of these stays in cache.

    more: whether panels follow, to be asked for meanwhile.
    """
    lanes = lanes_of(blocks)
    steps = depth * (lanes // min(CHANNELS, lanes))  # of a tap and a tile
    tiles = 1
    for tap in range(offsets.size):
        tiles += pixels_of(counts, tap, images, rows, all_rows)[1] // (TILE_ROWS // 2)
    ahead, pace = b_start + 2 * panel_size, min(ASKED * lanes, -(-2 * panel_size // (tiles * steps))) if more else 0
    for index in range(2 * apart):
        sums[index] = 0
    for tap in range(0, offsets.size, taps_at_once):
        which, number = pixels_of(counts, tap, images, rows, all_rows)
        start, last = which * (places.size // counts.size), min(tap + taps_at_once, offsets.size)
        for q in range(0, number, TILE_ROWS // 2):
            add_pixel_tile(
                blocks, places, targets, start + q, block, panels, b_start, panel_size, offsets, tap, last, depth, sums,
                apart, ahead, pace,
            )  # fmt: skip
            ahead += pace * steps * (last - tap)


@inlined
def _tiles_by_row(rows, length, columns, height):
    """Whether tiles that stay in one row of the output are no more than tiles that run on over the padding."""
    return rows * -(-length // height) <= -(-((rows - 1) * columns + length) // height)


@inlined
def sum_piece(out, begin, pixels, width, c, used, piece, shifts, source, source_relu, source_affine, partials):
    """The sums of ``correlate_blocks`` over ``pixels`` of a piece that follow one another, ``used`` channels from c on.

    begin: the offset of the first.
    """
    filled = whole_vectors(used, lanes_of(out))
    if shifts is not None:
        shift = shifts[piece, c : c + filled]
        set_shift(out, begin, used, 1, shift)
        sums, squares = partials[0, piece, c : c + filled], partials[1, piece, c : c + filled]
        tile_sums(out, begin, pixels, width, used, shift, sums, squares)
    if source is not None:
        sums, products = partials[0, piece, c : c + filled], partials[1, piece, c : c + filled]
        tile_products(
            out, source, None, source_relu, begin, pixels, width, used, 0, source_affine, c, sums, products, None
        )  # fmt: skip


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, out_strides, x, partner, relu, affine, slopes, x_floor, starts_h, starts_w,
    stride_h, stride_w, images, rows, plane_rows, columns, block, offsets, counts, places, targets, taps_at_once,
    panels, at_once, bias, residual, limits, out, first, groups, shifts, source, source_relu, source_affine, partials,
    work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    by_pixel, places_at_once = counts.size > 0, images * rows * out_shape[3] + 1
    room = (2 * places_at_once if by_pixel else TILE_ROWS) * breadth
    tile, blocks = work[:room], work[room:]
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
    bounds = bounds_of(x, limits)
    first_panel, last_panel = panel_block * at_once, min(panel_count, (panel_block + 1) * at_once)
    groups_of_channels = offsets.size * depth * (lanes // min(CHANNELS, lanes))
    panel = first_panel
    while panel < last_panel:
        wide = by_pixel and panel + 1 < last_panel
        height, parts = (places_at_once, 2) if wide else (TILE_ROWS, 1)
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
        more = panel + parts < last_panel
        if wide:
            _pair_sums(
                counts, places, targets, taps_at_once, last_image - first_image, count, rows, blocks, block, panels,
                b_start, panel_size, offsets, depth, tile, height * breadth, more,
            )  # fmt: skip
        ahead, tiles = b_start + panel_size, run_count * -(-run_length // height)
        pace = min(ASKED * lanes, -(-panel_size // (tiles * groups_of_channels))) if more else 0
        channel = group * channels_out + panel * breadth
        for run in range(run_count):
            run_image, run_row = divmod(run, runs_of_image)
            run_start = (run_image * lines + run_row) * line
            for q in range(0, run_length, height):
                image, rest = divmod(run_start + q, lines * line)
                row, column = divmod(rest, line)
                origin = first + (first_image + image) * out_strides[0] + first_row * out_strides[2]
                origin += channel * out_strides[1]
                if not wide:
                    at, step = origin + row * out_strides[2] + column * out_strides[3], out_strides[3]
                    block_tile(
                        blocks, (run_start + q) * lanes, block, panels, b_start, offsets, depth, tile, ahead, pace, out,
                        residual, at, step,
                    )  # fmt: skip
                    ahead += pace * groups_of_channels
                for part in range(parts):
                    c = part * breadth
                    stored = min(breadth, channels_out - panel * breadth - c)
                    _store_tile(
                        tile, part * height, min(height, run_length - q), row, column, line, lines, length, stored,
                        bias, channel + c, residual, bounds, out, origin + c * out_strides[1], out_strides,
                    )  # fmt: skip
        panel += parts
    begin = first + first_image * out_strides[0] + first_row * out_strides[2]
    pixels, width = (last_image - first_image) * count * length, out_shape[1]
    c = first_panel * breadth
    used = min(width, last_panel * breadth) - c
    sum_piece(out, begin + c, pixels, width, c, used, piece, shifts, source, source_relu, source_affine, partials)


@driver
def correlate_blocks(
    x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w, images,
    rows, plane_rows, columns, block, offsets, counts, places, targets, taps_at_once, panels, at_once, bias, residual,
    limits, out, first, out_shape, out_strides, groups, shifts, source, source_relu, source_affine, partials, workspace,
    parallel,
):  # fmt: skip
    """out = the sum over t, c of panels * blocks, + bias + residual, within ``limits``: a least and a greatest number.

    A task has ``rows`` rows of ``images`` images, several only if all rows, and ``at_once`` panels.
    x: flat; partner, relu, affine, slopes, x_floor: its prologue. plane_rows, columns: of an image in a plane; a plane
    has the images of a task one after the other. block: elements of a block's planes. offsets: of the taps.
    counts: if any, panels are taken in pairs, ``taps_at_once`` of their taps in a pass over the task's pixels. These
    come from lists: one for all taps, or one for each, without the pixels that it brings only padding. counts: of an
    image's pixels in a list; places: theirs in a block, in elements; targets: their numbers in the task, or the one
    after the last for those that fill up a tile. bias, residual: flat, or None; residual lies as out. first: the
    element of ``out`` at its logical origin; out_shape (N, C, H, W) and out_strides may name a part of it. workspace:
    (threads, a tile or a pair's sums of all pixels and one more, the blocks of a task and what tiles may read past
    them).
    Sums of a dense channels-last output of one group, made while it is in cache: partials (2, pieces, channels to a
    whole vector), float64; a piece has the rows and images of a task. Of d and d d, where d = out - its row of shifts,
    which is written too; or, with ``source``, of g and g (source - near), where g is out as it passed source's ReLU.
    """
    lanes = lanes_of(x)
    panel_count = -(-(out_shape[1] // groups) // (TILE_VECTORS * lanes))
    tasks = -(-out_shape[0] // images) * -(-out_shape[2] // rows) * groups * -(-panel_count // at_once)
    image = (x, partner, relu, affine, slopes, x_floor, starts_h, starts_w, stride_h, stride_w)
    share = (
        images, rows, plane_rows, columns, block, offsets, counts, places, targets, taps_at_once, panels, at_once, bias,
        residual,
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
                limits,
                *target,
                workspace[get_thread_id()],
            )
    else:
        for task in range(tasks):
            _correlate_task(
                task, x_shape, x_strides, out_shape, out_strides, *image, *share, limits, *target, workspace[0]
            )
