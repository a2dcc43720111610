"""The gradient to the weights of ``conv_winograd``: the adjoint of its algorithm, that is F(3x3, 2x2).

    dg = G^T [sum over tiles of (A dY A^T) * (B^T d B)] G

Tiles of x and of dy are transformed in runs, some rows of some images; then every position is a matrix product of its
own, over the tiles of many runs.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import OUTER_ROWS, TILE_VECTORS, add_block_products
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.conv_fill import fill_blocks
from fastbn.kernels.winograd_tiles import POSITIONS, transform_tiles


@body
def _tiles_of_run(
    run, shape, strides, x, partner, relu, affine, slopes, floor, starts_h, starts_w, margin, height, width, images,
    rows, most, values, blocks,
):  # fmt: skip
    """The transformed tiles of a run of x, or of dy."""
    lanes = lanes_of(x)
    depth = -(-shape[1] // lanes)
    image_block, row_block = divmod(run, -(-height // rows))
    first_image, first_row = image_block * images, row_block * rows
    count = min(shape[0], first_image + images) - first_image
    down, across = -(-min(rows, height - first_row) // 2), -(-width // 2)
    plane = (2 * down + margin) * (2 * across + margin) * lanes
    for image in range(count):
        fill_blocks(
            x, partner, relu, affine, slopes, floor, (first_image + image) * strides[0], 0, shape[1], shape[2],
            shape[3], strides[1:], starts_h, starts_w, first_row, 1, 1, 2 * down + margin, 2 * across + margin,
            blocks[image * plane :], images * plane, plane,
        )  # fmt: skip
    transform_tiles(blocks, images * plane, margin, depth, count * down * across, down, across, most, values)


@body
def _transform_task(
    run, place, x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine,
    slopes, starts_h, starts_w, nothing, images, rows, most, values, gradients, blocks,
):  # fmt: skip
    lanes = lanes_of(x)
    size = POSITIONS * most * lanes
    x_at, dy_at = place * size * -(-x_shape[1] // lanes), place * size * -(-dy_shape[1] // lanes)
    share = (dy_shape[2], dy_shape[3], images, rows, most)
    _tiles_of_run(
        run, x_shape, x_strides, x, None, x_ceiling, x_affine, None, x_floor, starts_h, starts_w, 2, *share,
        values[x_at:], blocks,
    )  # fmt: skip
    _tiles_of_run(
        run, dy_shape, dy_strides, dy, partner, relu, affine, slopes, -np.inf, nothing, nothing, 0, *share,
        gradients[dy_at:], blocks,
    )  # fmt: skip


@body
def _products_task(
    task, first_run, last_run, x_shape, dy_shape, images, rows, most, at_once, values, gradients, panels
):  # fmt: skip
    """The products at one position and for some panels, added; before the first run, they are set to zero."""
    lanes = lanes_of(panels)
    breadth, step, block = TILE_VECTORS * lanes, min(OUTER_ROWS, lanes), most * lanes
    depth, dy_depth = -(-x_shape[1] // lanes), -(-dy_shape[1] // lanes)
    height, across = dy_shape[2], -(-dy_shape[3] // 2)
    row_blocks = -(-height // rows)
    piece, position = divmod(task, POSITIONS)
    first_panel, last_panel = piece * at_once, min(-(-dy_shape[1] // breadth), (piece + 1) * at_once)
    size = depth * lanes * breadth
    if first_run == 0:
        for panel in range(first_panel, last_panel):
            start = (panel * POSITIONS + position) * size
            for index in range(start, start + size):
                panels[index] = 0
    for run in range(first_run, last_run):
        image_block, row_block = divmod(run, row_blocks)
        count = min(images, x_shape[0] - image_block * images)
        tiles = count * -(-min(rows, height - row_block * rows) // 2) * across
        place = (run - first_run) * POSITIONS + position
        for panel in range(first_panel, last_panel):
            at = (panel * POSITIONS + position) * size
            b_start = (place * dy_depth + panel * TILE_VECTORS) * block
            for c in range(depth):
                for i in range(0, lanes, step):
                    a_start = (place * depth + c) * block + i
                    add_block_products(values, a_start, gradients, b_start, block, tiles, panels, at)
                    at += step * breadth


@driver
def correlate_weights_winograd(
    x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine, slopes,
    starts_h, starts_w, nothing, images, rows, runs_at_once, most, at_once, values, gradients, panels, workspace,
    parallel,
):  # fmt: skip
    """panels = at every position the products of the tiles of x and of dy, summed; laid out as transformed weights.

    A run has ``rows`` rows of dy, an even number or all, of ``images`` images, several only if all rows;
    ``runs_at_once`` are transformed, then multiplied. most: tiles of a run. at_once: panels of a task. starts_h,
    starts_w: where x's first window begins; nothing: one zero. values, gradients: flat, (runs_at_once, 16, blocks of x
    or dy, most, lanes), and as much as a block behind. workspace: (threads, the planes of a run of x or of dy).
    The prologues are those of ``correlate_weights_blocks``.
    """
    row_blocks = -(-dy_shape[2] // rows)
    runs = -(-x_shape[0] // images) * row_blocks
    tasks = POSITIONS * -(-dy_shape[1] // (TILE_VECTORS * lanes_of(x) * at_once))
    operands = (x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine)
    share = (slopes, starts_h, starts_w, nothing, images, rows, most, values, gradients)
    products = (x_shape, dy_shape, images, rows, most, at_once, values, gradients, panels)
    for first in range(0, runs, runs_at_once):
        last = min(runs, first + runs_at_once)
        if parallel:
            for place in prange(last - first):
                place = int64(place)
                _transform_task(first + place, place, *operands, *share, workspace[get_thread_id()])
            for task in prange(tasks):
                _products_task(int64(task), first, last, *products)
        else:
            for place in range(last - first):
                _transform_task(first + place, place, *operands, *share, workspace[0])
            for task in range(tasks):
                _products_task(task, first, last, *products)
