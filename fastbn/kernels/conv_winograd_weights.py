"""The gradient to the weights of ``conv_winograd``: the adjoint of its algorithm, that is F(3x3, 2x2).

    dg = G^T [sum over tiles of (A dY A^T) * (B^T d B)] G

Tiles of x and of dy are transformed in runs, some rows of some images; then every position is a matrix product of its
own, over the tiles of many runs.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import allocating_body, body, driver
from fastbn.kernels._simd import OUTER_ROWS, TILE_VECTORS
from fastbn.kernels._simd_blocks import add_block_products
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


@allocating_body
def _transform_task(
    run, place, side, x_shape, x_strides, dy_shape, dy_strides, x, x_affine, x_ceiling, x_floor, dy, partner, relu,
    affine, slopes, starts_h, starts_w, images, rows, most, values, gradients, blocks,
):  # fmt: skip
    """A run's tiles of x, side 0, or of dy, side 1."""
    lanes = lanes_of(x)
    size = POSITIONS * most * lanes
    nothing = starts_h * 0
    share = (dy_shape[2], dy_shape[3], images, rows, most)
    if side == 0:
        at = place * size * -(-x_shape[1] // lanes)
        _tiles_of_run(
            run, x_shape, x_strides, x, None, x_ceiling, x_affine, None, x_floor, starts_h, starts_w, 2, *share,
            values[at:], blocks,
        )  # fmt: skip
    else:
        at = place * size * -(-dy_shape[1] // lanes)
        _tiles_of_run(
            run, dy_shape, dy_strides, dy, partner, relu, affine, slopes, -np.inf, nothing, nothing, 0, *share,
            gradients[at:], blocks,
        )  # fmt: skip


@body
def _products_task(
    position, first_run, last_run, first_place, fresh, x_shape, dy_shape, images, rows, most, values, gradients,
    panels,
):  # fmt: skip
    """The products at one position, added to what is there unless that is ``fresh``."""
    lanes = lanes_of(panels)
    breadth, step, block = TILE_VECTORS * lanes, min(OUTER_ROWS, lanes), most * lanes
    depth, dy_depth, panel_count = -(-x_shape[1] // lanes), -(-dy_shape[1] // lanes), -(-dy_shape[1] // breadth)
    height, across = dy_shape[2], -(-dy_shape[3] // 2)
    row_blocks = -(-height // rows)
    size = depth * lanes * breadth
    if fresh:
        for panel in range(panel_count):
            start = (panel * POSITIONS + position) * size
            for index in range(start, start + size):
                panels[index] = 0
    for run in range(first_run, last_run):
        image_block, row_block = divmod(run, row_blocks)
        count = min(images, x_shape[0] - image_block * images)
        tiles = count * -(-min(rows, height - row_block * rows) // 2) * across
        place = (first_place + run - first_run) * POSITIONS + position
        for panel in range(panel_count):
            at = (panel * POSITIONS + position) * size
            b_start = (place * dy_depth + panel * TILE_VECTORS) * block
            for c in range(depth):
                for i in range(0, lanes, step):
                    a_start = (place * depth + c) * block + i
                    add_block_products(values, a_start, gradients, b_start, block, tiles, panels, at)
                    at += step * breadth


@body
def _split_task(
    split, thread, runs_at_once, panels, blocks, x_shape, x_strides, dy_shape, dy_strides, operands, images, rows,
    most, values, gradients,
):  # fmt: skip
    """Runs by themselves, one after the other, in the second cache."""
    runs = -(-x_shape[0] // images) * -(-dy_shape[2] // rows)
    first = split * runs_at_once
    share = (images, rows, most, values, gradients)
    for run in range(first, min(runs, first + runs_at_once)):
        for side in range(2):
            _transform_task(
                run, thread, side, x_shape, x_strides, dy_shape, dy_strides, *operands, *share, blocks
            )  # fmt: skip
        for position in range(POSITIONS):
            _products_task(position, run, run + 1, thread, run == first, x_shape, dy_shape, *share, panels)


@driver
def correlate_weights_apart(
    x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine, slopes,
    starts_h, starts_w, images, rows, runs_at_once, most, values, gradients, panels, workspace, parallel,
):  # fmt: skip
    """panels[split] = at every position the products of the tiles of x and of dy, summed; as transformed weights.

    A run has ``rows`` rows of dy, an even number or all, of ``images`` images, several only if all rows; a split, which
    is a task, has ``runs_at_once`` of them. x_affine, x_ceiling, x_floor: the prologue of x;
    partner, relu, affine, slopes: that of dy. starts_h, starts_w: where x's first window begins.
    most: tiles of a run at most.
    values, gradients: flat, (threads, 16, blocks of x or of dy, tiles, lanes), and those of a block behind.
    workspace: (threads, the planes of a run of x or of dy).
    """
    runs = -(-x_shape[0] // images) * -(-dy_shape[2] // rows)
    splits = -(-runs // runs_at_once)
    size = panels.size // splits
    operands = (x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes, starts_h, starts_w)
    share = (images, rows, most, values, gradients)
    shapes = (x_shape, x_strides, dy_shape, dy_strides)
    if parallel:
        for split in prange(splits):
            thread, own = get_thread_id(), panels[int64(split) * size :]
            _split_task(
                int64(split), thread, runs_at_once, own, workspace[thread], x_shape, x_strides, dy_shape, dy_strides,
                operands, *share,
            )  # fmt: skip
    else:
        for split in range(splits):
            own = panels[split * size :]
            _split_task(split, 0, runs_at_once, own, workspace[0], *shapes, operands, *share)


@driver
def correlate_weights_together(
    x, x_shape, x_strides, x_affine, x_ceiling, x_floor, dy, dy_shape, dy_strides, partner, relu, affine, slopes,
    starts_h, starts_w, images, rows, runs_at_once, most, values, gradients, panels, workspace, parallel,
):  # fmt: skip
    """As ``correlate_weights_apart``, all in one sum: ``runs_at_once`` are transformed, then multiplied by position.

    values, gradients: (runs_at_once, ...).
    """
    runs = -(-x_shape[0] // images) * -(-dy_shape[2] // rows)
    operands = (x, x_affine, x_ceiling, x_floor, dy, partner, relu, affine, slopes, starts_h, starts_w)
    share = (images, rows, most, values, gradients)
    shapes = (x_shape, x_strides, dy_shape, dy_strides)
    for first in range(0, runs, runs_at_once):
        last = min(runs, first + runs_at_once)
        if parallel:
            for index in prange(2 * (last - first)):
                place, side = divmod(int64(index), 2)
                _transform_task(
                    first + place, place, side, x_shape, x_strides, dy_shape, dy_strides, *operands, *share,
                    workspace[get_thread_id()],
                )  # fmt: skip
            for position in prange(POSITIONS):
                _products_task(int64(position), first, last, 0, first == 0, x_shape, dy_shape, *share, panels)
        else:
            for index in range(2 * (last - first)):
                place, side = divmod(index, 2)
                _transform_task(first + place, place, side, *shapes, *operands, *share, workspace[0])
            for position in range(POSITIONS):
                _products_task(position, first, last, 0, first == 0, x_shape, dy_shape, *share, panels)
