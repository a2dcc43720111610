"""Gradients of a convolution's weights, summed over the pixels of blocks; see ``kernels.conv_blocks``."""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import allocating_body, driver
from fastbn.kernels._simd import OUTER_ROWS, TILE_VECTORS
from fastbn.kernels._simd_blocks import add_pixel_products
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.conv_blocks import pixels_of
from fastbn.kernels.conv_fill import fill_blocks

RUN = 128  # pixels that one tile visits: their panel stays in the first cache for all taps and channels


@allocating_body
def _weights_task(
    task, x_shape, x_strides, dy_shape, dy_strides, x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes,
    starts_h, starts_w, stride_h, stride_w, images, rows, plane_rows, columns, block, offsets, counts, places,
    targets, groups, runs_at_once, deep, at_once, panels, work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    height = min(OUTER_ROWS, lanes)
    channels, channels_out = x_shape[1] // groups, dy_shape[1] // groups
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    panel_blocks, channel_blocks, row_blocks = -(-panel_count // at_once), -(-depth // deep), -(-dy_shape[2] // rows)
    split, rest = divmod(task, groups * panel_blocks * channel_blocks)
    group, rest = divmod(rest, panel_blocks * channel_blocks)
    panel_block, channel_block = divmod(rest, channel_blocks)
    first_panel, first_block = panel_block * at_once, channel_block * deep
    last_panel, last_block = min(panel_count, first_panel + at_once), min(depth, first_block + deep)
    used = min(channels_out, last_panel * breadth) - first_panel * breadth
    used_in = min(channels, last_block * lanes) - first_block * lanes
    room = deep * block
    blocks, dy_blocks = work[:room], work[room:]
    pixels_apart, dy_apart = plane_rows * columns * lanes, rows * dy_shape[3] * lanes  # from image to image
    dy_block = images * dy_apart
    tile = height * breadth
    panel_size = offsets.size * depth * lanes * breadth
    start = (split * groups + group) * panel_count * panel_size
    for panel in range(first_panel, last_panel):
        for tap in range(offsets.size):
            at = start + panel * panel_size + (tap * depth + first_block) * lanes * breadth
            for index in range(at, at + (last_block - first_block) * lanes * breadth):
                panels[index] = 0
    # Vectors of a panel that hold no output are multiplied all the same.
    for index in range(-(-used // lanes) * dy_block, (last_panel - first_panel) * TILE_VECTORS * dy_block):
        dy_blocks[index] = 0
    nothing = starts_h[:1] * 0
    for run in range(split * runs_at_once, min(-(-x_shape[0] // images) * row_blocks, (split + 1) * runs_at_once)):
        image_block, row_block = divmod(run, row_blocks)
        first_image, first_row = image_block * images, row_block * rows
        count = min(x_shape[0], first_image + images) - first_image
        for image in range(count):
            channel = group * channels + first_block * lanes
            origin = (first_image + image) * x_strides[0] + channel * x_strides[1]
            fill_blocks(
                x, None, x_ceiling, x_affine, None, x_floor, origin, channel, used_in, x_shape[2], x_shape[3],
                x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w, plane_rows, columns,
                blocks[image * pixels_apart :], block, images * pixels_apart,
            )  # fmt: skip
            channel = group * channels_out + first_panel * breadth
            origin = (first_image + image) * dy_strides[0] + channel * dy_strides[1]
            fill_blocks(
                dy, partner, relu, affine, slopes, -np.inf, origin, channel, used, dy_shape[2], dy_shape[3],
                dy_strides[1:], nothing, nothing, first_row, 1, 1, rows, dy_shape[3],
                dy_blocks[image * dy_apart :], dy_block, dy_block,
            )  # fmt: skip
        used_rows = min(rows, dy_shape[2] - first_row)
        pixels = ((count - 1) * rows + used_rows) * dy_shape[3]
        for panel in range(first_panel, last_panel):
            for q in range(0, pixels, RUN):
                b_start = (panel - first_panel) * TILE_VECTORS * dy_block
                for c in range(last_block - first_block):
                    for tap in range(offsets.size):
                        which, number = pixels_of(counts, tap, count, used_rows, rows)
                        place = which * (places.size // counts.size) + q
                        at = start + panel * panel_size + (tap * depth + first_block + c) * lanes * breadth
                        for i in range(lanes // height):
                            a_start = c * block + offsets[tap] + i * height
                            add_pixel_products(
                                blocks, a_start, places, dy_blocks, b_start, targets, place, dy_block,
                                min(RUN, number - q), panels, at + i * tile,
                            )  # fmt: skip


@driver
def correlate_weights_blocks(
    x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine, slopes,
    starts_h, starts_w, stride_h, stride_w, images, rows, plane_rows, columns, block, offsets, counts, places,
    targets, groups, runs_at_once, deep, at_once, panels, workspace, parallel,
):  # fmt: skip
    """panels[split] = sum over the split's runs of x times dy, laid out as weights; see ``correlate_blocks``.

    A run has ``rows`` rows of dy of ``images`` images, several only if all rows; a split has ``runs_at_once`` of them.
    x_affine, x_ceiling and x_floor are the prologue of x; partner, relu, affine and slopes that of dy.
    A task has ``deep`` blocks of x and ``at_once`` panels of dy. workspace: (threads, these blocks and panels).
    """
    lanes = lanes_of(x)
    panel_count = -(-(dy_shape[1] // groups) // (TILE_VECTORS * lanes))
    runs = -(-x_shape[0] // images) * -(-dy_shape[2] // rows)
    depth = -(-(x_shape[1] // groups) // lanes)
    tasks = -(-runs // runs_at_once) * groups * -(-panel_count // at_once) * -(-depth // deep)
    operands = (x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes)
    planes = (starts_h, starts_w, stride_h, stride_w, images, rows, plane_rows, columns, block)
    share = (offsets, counts, places, targets, groups, runs_at_once, deep, at_once, panels)
    if parallel:
        for task in prange(tasks):
            _weights_task(
                int64(task), x_shape, x_strides, dy_shape, dy_strides, *operands, *planes, *share,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _weights_task(task, x_shape, x_strides, dy_shape, dy_strides, *operands, *planes, *share, workspace[0])
