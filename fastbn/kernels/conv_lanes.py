"""Convolution of small images side by side: a vector holds one pixel of as many images as it has lanes.

A block of images is transposed into a thread's workspace and copied into the planes of ``kernels.conv``, of which
every element is a vector now. So no lane is spent on padding, whatever the width of an image and the number of its
channels, and the sums of a gradient to the weights are the sums of lanes. A block that the batch does not fill begins
earlier, with images that the block before it has too: its first lanes are not stored.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import (
    DOT_COLUMNS,
    DOT_ROWS,
    LANE_ROWS,
    LANE_VECTORS,
    add_dot_products,
    lane_tile,
    transpose,
)
from fastbn.kernels._vector import at_least, lanes_of, load, load_part, splat, store, store_part
from fastbn.kernels.conv import store_dots

TILE_FIELDS = 5 + 2 * LANE_VECTORS
RUN = 64  # pixels in one visit of a tile of dot products, about: its operands stay in the first cache


@body
def _read(x, start, size, skipped, images):
    """images[e, lane] = x[start + lane * size + e], zero in the first ``skipped`` lanes."""
    lanes = lanes_of(x)
    whole = size - size % lanes
    for e in range(0, whole, lanes):
        transpose(x, start + e, size, images, e * lanes)
    for e in range(whole, size):
        for lane in range(lanes):
            images[e * lanes + lane] = x[start + lane * size + e]
    for e in range(size if skipped else 0):
        for lane in range(skipped):
            images[e * lanes + lane] = 0


@body
def _fill(images, channels, height, width, starts_h, starts_w, stride_h, stride_w, rows, columns, planes):
    """planes[c, i, j, row, column] = images[c, starts_h[i] + row stride_h, starts_w[j] + column stride_w], or 0."""
    lanes = lanes_of(images)
    zero = splat(images, 0.0)
    at = 0
    for c in range(channels):
        for start_h in starts_h:
            for start_w in starts_w:
                for row in range(rows):
                    h = start_h + row * stride_h
                    source = (c * height + h) * width
                    for column in range(columns):
                        w = start_w + column * stride_w
                        inside = 0 <= h < height and 0 <= w < width
                        store(planes, at, load(images, (source + w) * lanes) if inside else zero)
                        at += lanes


@body
def _write(images, size, skipped, residual, low, out, start, spare):
    """out[start + lane * size + e] = max(images[e, lane] + residual, low), but for the first ``skipped`` lanes."""
    lanes = lanes_of(out)
    zero = splat(out, 0.0)
    for e in range(0, size, lanes):
        transpose(images, e * lanes, lanes, spare, 0)
        count = min(lanes, size - e)
        for lane in range(skipped, lanes):
            at = start + lane * size + e
            value = load(spare, lane * lanes)
            if residual.size:
                value = value + load_part(residual, at, count, zero)
            store_part(out, at, at_least(value, low), count)


@body
def _first_image(block, lanes, images):
    """The first image of a block, and how many lanes of it belong to the block before."""
    first = min(block * lanes, images - lanes)
    return first, block * lanes - first


@body
def _correlate_task(
    task, x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, tiles, panels, groups, sparse,
    residual, floor, out, out_shape, work, planes, spare,
):  # fmt: skip
    lanes = lanes_of(x)
    size, out_size = x_shape[1] * x_shape[2] * x_shape[3], out_shape[1] * out_shape[2] * out_shape[3]
    plane = out_shape[2] * out_shape[3] * lanes
    outputs = out_shape[1] // groups
    group_panels = -(-outputs // LANE_ROWS)
    group_size = x_shape[1] // groups * starts_h.size * starts_w.size * rows * columns * lanes
    first, skipped = _first_image(task, lanes, x_shape[0])
    _read(x, first * size, size, 0, work)
    _fill(work, x_shape[1], x_shape[2], x_shape[3], starts_h, starts_w, stride_h, stride_w, rows, columns, planes)
    if sparse:
        for index in range(out_size * lanes):
            work[index] = 0
    for at in range(0, tiles.size, TILE_FIELDS):
        base, depth, place, low, count = tiles[at], tiles[at + 1], tiles[at + 2], tiles[at + 3], tiles[at + 4]
        for group in range(groups):
            for panel in range(group_panels):
                a_start = base + (group * group_panels + panel) * (depth + 1) * LANE_ROWS
                lane_tile(
                    panels, a_start, low, planes, group * group_size, offsets, place, count, tiles, at + 5,
                    work, (group * outputs + panel * LANE_ROWS) * plane, plane,
                )  # fmt: skip
    _write(work, out_size, skipped, residual, splat(out, floor), out, first * out_size, spare)


@driver
def correlate_lanes(
    x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, tiles, panels, groups, sparse,
    residual, floor, out, out_shape, work, planes, spare, parallel,
):  # fmt: skip
    """out = max(sum over k of panels * planes + bias + residual, floor), all (N, C, H, W) and flat; N fills a block.

    rows, columns: of a plane. offsets: of the weights k, in elements. tiles: TILE_FIELDS each: where its panels start,
    their depth, where its offsets start, the first k and the number of them, and of LANE_VECTORS pixels the offset in
    the planes and that in the output. panels: flat (phases, groups, row panels, 1 + depth, LANE_ROWS), the bias first.
    sparse: there are pixels that no tile has. residual: may be empty.
    work, planes, spare: (threads, elements): images before and after, with LANE_ROWS - 1 channels more; planes; a
    vector a lane.
    """
    blocks = -(-x_shape[0] // lanes_of(x))
    if parallel:
        for task in prange(blocks):
            thread = get_thread_id()
            _correlate_task(
                int64(task), x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, tiles, panels,
                groups, sparse, residual, floor, out, out_shape, work[thread], planes[thread], spare[thread],
            )  # fmt: skip
    else:
        for task in range(blocks):
            _correlate_task(
                task, x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, tiles, panels,
                groups, sparse, residual, floor, out, out_shape, work[0], planes[0], spare[0],
            )  # fmt: skip


@body
def _add_products(dy, dy_shape, dy_offsets, groups, planes, group_size, columns, offsets, depth, sums):
    """Add the products of a block to the sums, tile after tile of (groups, outputs, weights), some rows at a time."""
    lanes = lanes_of(dy)
    outputs, height, width = dy_shape[1] // groups, dy_shape[2], dy_shape[3]
    dy_group = outputs * height * width * lanes
    tile = DOT_ROWS * DOT_COLUMNS * lanes
    lines = max(1, RUN // width)
    for row in range(0, height, lines):
        a_row, b_row = row * columns * lanes, row * width * lanes
        at = 0
        for group in range(groups):
            for output in range(0, outputs, DOT_COLUMNS):
                for k in range(0, depth, DOT_ROWS):
                    add_dot_products(
                        planes, group * group_size + a_row, offsets, k, columns * lanes,
                        dy, group * dy_group + b_row, dy_offsets, output, width * lanes,
                        width, min(lines, height - row), sums[at : at + tile],
                    )  # fmt: skip
                    at += tile


@body
def _weights_task(
    task, x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, depth, dy, dy_shape, dy_offsets,
    groups, blocks_at_once, partials, work, planes, sums,
):  # fmt: skip
    lanes = lanes_of(x)
    size, dy_size = x_shape[1] * x_shape[2] * x_shape[3], dy_shape[1] * dy_shape[2] * dy_shape[3]
    group_size = x_shape[1] // groups * starts_h.size * starts_w.size * rows * columns * lanes
    blocks = -(-x_shape[0] // lanes)
    for index in range(sums.size):
        sums[index] = 0
    for block in range(task * blocks_at_once, min(blocks, (task + 1) * blocks_at_once)):
        first, skipped = _first_image(block, lanes, x_shape[0])
        _read(x, first * size, size, skipped, work)
        _fill(work, x_shape[1], x_shape[2], x_shape[3], starts_h, starts_w, stride_h, stride_w, rows, columns, planes)
        _read(dy, first * dy_size, dy_size, skipped, work)
        _add_products(work, dy_shape, dy_offsets, groups, planes, group_size, columns, offsets, depth, sums)
    outputs = dy_shape[1] // groups
    at = 0
    for group in range(groups):
        for output in range(0, outputs, DOT_COLUMNS):
            for k in range(0, depth, DOT_ROWS):
                start = ((task * groups + group) * outputs + output) * depth + k
                counts = min(DOT_ROWS, depth - k), min(DOT_COLUMNS, outputs - output)
                store_dots(sums, at, counts[0], counts[1], partials, start, 1, depth)
                at += DOT_ROWS * DOT_COLUMNS * lanes


@driver
def correlate_weights_lanes(
    x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, depth, dy, dy_shape, dy_offsets, groups,
    blocks_at_once, partials, work, planes, sums, parallel,
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
                int64(task), x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, depth, dy,
                dy_shape, dy_offsets, groups, blocks_at_once, partials, work[thread], planes[thread], sums[thread],
            )  # fmt: skip
    else:
        for task in range(splits):
            _weights_task(
                task, x, x_shape, starts_h, starts_w, stride_h, stride_w, rows, columns, offsets, depth, dy,
                dy_shape, dy_offsets, groups, blocks_at_once, partials, work[0], planes[0], sums[0],
            )  # fmt: skip
