"""Gradients of a convolution's weights, summed over the pixels of blocks; see ``kernels.conv_blocks``."""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import OUTER_ROWS, TILE_VECTORS, add_block_products
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.conv_fill import fill_blocks


@body
def _weights_task(
    task, x_shape, x_strides, dy_shape, dy_strides, x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes,
    starts_h, starts_w, stride_h, stride_w, images, rows, plane_rows, columns, block, offsets, groups, runs_at_once,
    at_once, panels, work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    height = min(OUTER_ROWS, lanes)
    channels, channels_out = x_shape[1] // groups, dy_shape[1] // groups
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    panel_blocks, row_blocks = -(-panel_count // at_once), -(-dy_shape[2] // rows)
    split, rest = divmod(task, groups * panel_blocks)
    group, panel_block = divmod(rest, panel_blocks)
    first_panel = panel_block * at_once
    last_panel = min(panel_count, first_panel + at_once)
    used = min(channels_out, last_panel * breadth) - first_panel * breadth
    # Past the last block lies as much as taps may read there, against zeros of dy: it must not be NaN.
    room = depth * block + columns * lanes
    blocks, dy_blocks = work[:room], work[room:]
    pixels_apart, dy_apart = plane_rows * columns, rows * columns  # from image to image
    dy_block = images * dy_apart * lanes
    panel_size = offsets.size * depth * lanes * breadth
    start = (split * groups + group) * panel_count * panel_size
    for index in range(start + first_panel * panel_size, start + last_panel * panel_size):
        panels[index] = 0
    for index in range(room + (last_panel - first_panel) * TILE_VECTORS * dy_block):
        work[index] = 0
    nothing = starts_h[:1] * 0
    for run in range(split * runs_at_once, min(-(-x_shape[0] // images) * row_blocks, (split + 1) * runs_at_once)):
        image_block, row_block = divmod(run, row_blocks)
        first_image, first_row = image_block * images, row_block * rows
        count = min(x_shape[0], first_image + images) - first_image
        for image in range(count):
            origin = (first_image + image) * x_strides[0] + group * channels * x_strides[1]
            fill_blocks(
                x, None, x_ceiling, x_affine, None, x_floor, origin, group * channels, channels, x_shape[2], x_shape[3],
                x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w, plane_rows, columns,
                blocks[image * pixels_apart * lanes :], block, images * pixels_apart * lanes,
            )  # fmt: skip
            channel = group * channels_out + first_panel * breadth
            origin = (first_image + image) * dy_strides[0] + channel * dy_strides[1]
            fill_blocks(
                dy, partner, relu, affine, slopes, -np.inf, origin, channel, used, dy_shape[2], dy_shape[3],
                dy_strides[1:], nothing, nothing, first_row, 1, 1, rows, columns,
                dy_blocks[image * dy_apart * lanes :], dy_block, dy_block,
            )  # fmt: skip
        pixels, runs = min(rows, dy_shape[2] - first_row) * columns, count
        if pixels_apart == dy_apart:
            pixels, runs = pixels + (count - 1) * dy_apart, 1
        for panel in range(first_panel, last_panel):
            b_start = (panel - first_panel) * TILE_VECTORS * dy_block
            at = start + panel * panel_size
            for tap in range(offsets.size):
                for c in range(depth):
                    for i in range(0, lanes, height):
                        for run in range(runs):
                            a_start = c * block + offsets[tap] + run * pixels_apart * lanes + i
                            b_run = b_start + run * dy_apart * lanes
                            add_block_products(blocks, a_start, dy_blocks, b_run, dy_block, pixels, panels, at)
                        at += height * breadth


@driver
def correlate_weights_blocks(
    x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine, slopes,
    starts_h, starts_w, stride_h, stride_w, images, rows, plane_rows, columns, block, offsets, groups, runs_at_once,
    at_once, panels, workspace, parallel,
):  # fmt: skip
    """panels[split] = sum over the split's runs of x times dy, laid out as weights; see ``correlate_blocks``.

    A run has ``rows`` rows of dy of ``images`` images, several only if all rows; a split has ``runs_at_once`` of them.
    x_affine, x_ceiling and x_floor are the prologue of x; partner, relu, affine and slopes that of dy.
    workspace: (threads, the blocks of x, a row, and the blocks of the dy of ``at_once`` panels).
    """
    lanes = lanes_of(x)
    panel_count = -(-(dy_shape[1] // groups) // (TILE_VECTORS * lanes))
    runs = -(-x_shape[0] // images) * -(-dy_shape[2] // rows)
    tasks = -(-runs // runs_at_once) * groups * -(-panel_count // at_once)
    operands = (x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes)
    places = (starts_h, starts_w, stride_h, stride_w, images, rows, plane_rows, columns, block, offsets)
    share = (groups, runs_at_once, at_once, panels)
    if parallel:
        for task in prange(tasks):
            _weights_task(
                int64(task), x_shape, x_strides, dy_shape, dy_strides, *operands, *places, *share,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _weights_task(task, x_shape, x_strides, dy_shape, dy_strides, *operands, *places, *share, workspace[0])
