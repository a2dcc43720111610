"""Convolution with windows of 3 x 3 at stride 1 by Winograd's F(2x2, 3x3); see ``winograd_tiles``.

A task fills the planes of some rows of some images as ``conv_blocks`` does, transforms their tiles, multiplies them
position by position with the transformed weights of ``winograd_panels``, and transforms the products of as many tiles
as the register tile has rows back from the first cache.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import allocating_body, driver
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_blocks import ASKED, CHANNELS, block_tile
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.conv_blocks import sum_piece
from fastbn.kernels.conv_fill import fill_blocks
from fastbn.kernels.winograd_tiles import POSITIONS, output_tiles, transform_tiles


@allocating_body
def _winograd_task(
    task, x_shape, x_strides, out_shape, x, partner, relu, affine, slopes, x_floor, starts_h, starts_w, images,
    rows, panels, at_once, bias, residual, limits, out, shifts, source, source_relu, source_affine, partials,
    work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    tile_size = TILE_ROWS * breadth
    channels, channels_out, height, width = x_shape[1], out_shape[1], out_shape[2], out_shape[3]
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    piece, panel_block = divmod(task, -(-panel_count // at_once))
    image_block, row_block = divmod(piece, -(-height // rows))
    first_image, first_row = image_block * images, row_block * rows
    image_count = min(x_shape[0], first_image + images) - first_image
    row_count = min(rows, height - first_row)
    down, across = -(-row_count // 2), -(-width // 2)
    plane = (2 * down + 2) * (2 * across + 2) * lanes
    block = images * (rows + rows % 2 + 2) * (2 * across + 2) * lanes
    products = work[: POSITIONS * tile_size]
    blocks = work[POSITIONS * tile_size : POSITIONS * tile_size + depth * block]
    values = work[POSITIONS * tile_size + depth * block :]
    for image in range(image_count):
        fill_blocks(
            x, partner, relu, affine, slopes, x_floor, (first_image + image) * x_strides[0], 0, channels, x_shape[2],
            x_shape[3], x_strides[1:], starts_h, starts_w, first_row, 1, 1, 2 * down + 2, 2 * across + 2,
            blocks[image * plane :], block, plane,
        )  # fmt: skip
    tiles, at_start = image_count * down * across, starts_h * 0
    transform_tiles(blocks, block, 2, depth, tiles, down, across, TILE_ROWS, values)
    size, panel_size = depth * TILE_ROWS * lanes, depth * lanes * breadth
    strides = height * width * channels_out, width * channels_out, channels_out
    begin = first_image * strides[0] + first_row * strides[1]
    first_panel, last_panel = panel_block * at_once, min(panel_count, (panel_block + 1) * at_once)
    tile_groups = -(-tiles // TILE_ROWS)
    groups_of_channels = depth * (lanes // min(CHANNELS, lanes))
    most = min(ASKED * lanes, -(-panel_size // (tile_groups * groups_of_channels)))
    for panel in range(first_panel, last_panel):
        channel = panel * breadth
        stored = min(breadth, channels_out - channel)
        pace = most if panel + 1 < last_panel else 0
        for tile in range(0, tiles, TILE_ROWS):
            tile_group = tile // TILE_ROWS
            for position in range(POSITIONS):
                a_start = (tile_group * POSITIONS + position) * size
                b_start = (panel * POSITIONS + position) * panel_size
                ahead = b_start + POSITIONS * panel_size + tile_group * pace * groups_of_channels
                product = products[position * tile_size :]
                block_tile(
                    values, a_start, TILE_ROWS * lanes, panels, b_start, at_start, depth, product, ahead, pace, None,
                    None, 0, 0,
                )  # fmt: skip
            output_tiles(
                products, tile, min(TILE_ROWS, tiles - tile), down, across, row_count, width, bias, channel, stored,
                residual, limits, out, begin + channel, strides,
            )  # fmt: skip
    c = first_panel * breadth
    used = min(channels_out, last_panel * breadth) - c
    pixels = image_count * row_count * width
    sum_piece(
        out, begin + c, pixels, channels_out, c, used, piece, shifts, source, source_relu, source_affine, partials
    )  # fmt: skip


@driver
def correlate_winograd(
    x, x_shape, x_strides, partner, relu, affine, slopes, x_floor, starts_h, starts_w, images, rows, panels,
    at_once, bias, residual, limits, out, out_shape, shifts, source, source_relu, source_affine, partials, workspace,
    parallel,
):  # fmt: skip
    """out = x convolved with panels, + bias + residual, within ``limits``; out and residual channels-last.

    starts_h, starts_w: where the first window begins. A task has ``rows`` rows, an even number or all, of ``images``
    images, several only if all rows, and ``at_once`` panels. workspace: (threads, the products of
    a register tile at every position, the planes of a task and its transformed tiles, whole groups of them).
    Everything else as in ``correlate_blocks``.
    """
    panel_count = -(-out_shape[1] // (TILE_VECTORS * lanes_of(x)))
    tasks = -(-out_shape[0] // images) * -(-out_shape[2] // rows) * -(-panel_count // at_once)
    operands = (x, partner, relu, affine, slopes, x_floor, starts_h, starts_w, images, rows, panels, at_once, bias)
    target = (out, shifts, source, source_relu, source_affine, partials)
    if parallel:
        for task in prange(tasks):
            work = workspace[get_thread_id()]
            _winograd_task(int64(task), x_shape, x_strides, out_shape, *operands, residual, limits, *target, work)
    else:
        for task in range(tasks):
            _winograd_task(task, x_shape, x_strides, out_shape, *operands, residual, limits, *target, workspace[0])
