"""Convolution of small images side by side, see ``lanes``."""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import allocating_driver, body, driver
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.lanes import (
    add_products,
    channel_size,
    correlate_planes,
    first_image,
    gather_panels,
    read_images,
    read_planes,
    store_products,
    write_images,
)


@body
def _correlate_task(
    task, x, x_shape, source, offsets, tiles, panels, groups, sparse, residual, limits, out, out_shape, work, planes,
    spare,
):  # fmt: skip
    lanes = lanes_of(x)
    plane = out_shape[2] * out_shape[3]
    size = out_shape[1] * plane
    group_size = x_shape[1] // groups * channel_size(source) * lanes
    first, skipped = first_image(task, lanes, x_shape[0])
    read_planes(x, x_shape, first, 0, source, work, planes)
    outputs = out_shape[1] // groups
    correlate_planes(planes, group_size, offsets, tiles, panels, groups, outputs, plane * lanes, sparse, work)
    write_images(work, size, skipped, residual, limits, out, first * size, spare)


@allocating_driver
def correlate_lanes(
    x, x_shape, source, offsets, tiles, weight, bias, index, groups, sparse, residual, limits, out, out_shape, work,
    planes, spare, parallel,
):  # fmt: skip
    """out = the sum over k of panels * planes, + bias + residual, within ``limits``; all (N, C, H, W) and flat.

    N fills a block.
    offsets: of the weights k, in elements. tiles: TILE_FIELDS each: where its panels start, their depth, where its
    offsets start; of its weights the first, the number of runs, the distance from one to the next and their length;
    and of LANE_VECTORS pixels the offset in the planes and that in the output. index: what panels (phases,
    groups, row panels, 1 + depth, LANE_ROWS), the bias first, hold of the flat weight and bias, which may be empty; see
    ``gather_panels``.
    sparse: there are pixels that no tile has. residual: may be empty.
    work, planes, spare: (threads, elements): images before and after, with LANE_ROWS - 1 channels more; planes; a
    vector a lane.
    """
    blocks = -(-x_shape[0] // lanes_of(x))
    panels = gather_panels(weight, bias, index)
    if parallel:
        for task in prange(blocks):
            thread = get_thread_id()
            _correlate_task(
                int64(task), x, x_shape, source, offsets, tiles, panels, groups, sparse, residual, limits, out,
                out_shape, work[thread], planes[thread], spare[thread],
            )  # fmt: skip
    else:
        for task in range(blocks):
            _correlate_task(
                task, x, x_shape, source, offsets, tiles, panels, groups, sparse, residual, limits, out, out_shape,
                work[0], planes[0], spare[0],
            )  # fmt: skip


@body
def _weights_task(
    task, x, x_shape, source, offsets, depth, dy, dy_shape, dy_offsets, groups, blocks_at_once, partials, work, planes,
    sums,
):  # fmt: skip
    lanes, columns = lanes_of(x), source[5]
    dy_size, dy_lie = dy_shape[1] * dy_shape[2] * dy_shape[3], (0, dy_shape[3], dy_shape[2] * dy_shape[3])
    group_size = x_shape[1] // groups * channel_size(source) * lanes
    blocks = -(-x_shape[0] // lanes)
    for index in range(sums.size):
        sums[index] = 0
    for block in range(task * blocks_at_once, min(blocks, (task + 1) * blocks_at_once)):
        first, skipped = first_image(block, lanes, x_shape[0])
        read_planes(x, x_shape, first, skipped, source, work, planes)
        read_images(dy, first * dy_size, dy_size, skipped, work)
        add_products(work, dy_shape, dy_lie, dy_offsets, groups, planes, group_size, columns, offsets, depth, sums)
    store_products(sums, task, groups, dy_shape[1] // groups, depth, partials)


@driver
def correlate_weights_lanes(
    x, x_shape, source, offsets, depth, dy, dy_shape, dy_offsets, groups, blocks_at_once, partials, work, planes, sums,
    parallel,
):  # fmt: skip
    """partials[split, group, output, k] = sum over the split's images and pixels of dy * planes; N fills a block.

    offsets, dy_offsets: of the ``depth`` weights k and of a group's outputs, in elements, see ``whole_tiles``. A split
    is a run of ``blocks_at_once`` blocks. work, planes, sums: (threads, elements): images of x or dy; planes; tiles.
    """
    blocks = -(-x_shape[0] // lanes_of(x))
    splits = -(-blocks // blocks_at_once)
    if parallel:
        for task in prange(splits):
            thread = get_thread_id()
            _weights_task(
                int64(task), x, x_shape, source, offsets, depth, dy, dy_shape, dy_offsets, groups, blocks_at_once,
                partials, work[thread], planes[thread], sums[thread],
            )  # fmt: skip
    else:
        for task in range(splits):
            _weights_task(
                task, x, x_shape, source, offsets, depth, dy, dy_shape, dy_offsets, groups, blocks_at_once, partials,
                work[0], planes[0], sums[0],
            )  # fmt: skip
