"""Small images side by side: a vector holds one pixel of as many images as it has lanes.

A block of images is transposed into a thread's workspace and copied into the planes of ``kernels.conv``, of which
every element is a vector now. So no lane is spent on padding, whatever the width of an image and the number of its
channels, and the sums of a gradient to the weights are the sums of lanes. A block that the batch does not fill begins
earlier, with images that the block before it has too: its first lanes are skipped where results are stored or summed.

source: what ``functional.conv_lanes`` says of planes: starts_h, starts_w, stride_h, stride_w, rows, columns.
"""

import numpy as np

from fastbn.kernels._jit import allocating_body, body, inlined
from fastbn.kernels._simd import transpose
from fastbn.kernels._simd_lanes import DOT_COLUMNS, DOT_ROWS, LANE_ROWS, LANE_VECTORS, add_dot_products, lane_tile
from fastbn.kernels._vector import bounds_of, lanes_of, splat, within
from fastbn.kernels._vector_memory import load, load_part, store, store_part
from fastbn.kernels.conv import store_dots

TILE_FIELDS = 7 + 2 * LANE_VECTORS
RUN = 64  # pixels in one visit of a tile of dot products, about: its operands stay in the first cache


@inlined
def backwards(part, parts, tasks):
    """The tasks of one of ``parts`` threads, the last ones first: a pass before this left them in the second cache."""
    return range((part + 1) * tasks // parts - 1, part * tasks // parts - 1, -1)


@body
def first_image(block, lanes, images):
    """The first image of a block, and how many lanes of it belong to the block before."""
    first = min(block * lanes, images - lanes)
    return first, block * lanes - first


@body
def read_images(x, start, size, skipped, images):
    """images[e, lane] = x[start + lane * size + e], zero in the first ``skipped`` lanes."""
    lanes = lanes_of(x)
    whole = size - size % lanes
    for e in range(0, whole, lanes):
        transpose(x, start + e, size, images, e * lanes, lanes, False)
    for e in range(whole, size):
        for lane in range(lanes):
            images[e * lanes + lane] = x[start + lane * size + e]
    clear_lanes(images, size, skipped)


@body
def clear_lanes(images, size, skipped):
    """Zeros in the first ``skipped`` lanes of ``size`` vectors."""
    lanes = lanes_of(images)
    for e in range(size if skipped else 0):
        for lane in range(skipped):
            images[e * lanes + lane] = 0


@body
def fill_planes(images, channels, height, width, source, planes):
    """planes[c, i, j, row, column] = images[c, starts_h[i] + row stride_h, starts_w[j] + column stride_w], or 0."""
    starts_h, starts_w, stride_h, stride_w, rows, columns = source
    lanes = lanes_of(images)
    zero = splat(images, 0.0)
    at = 0
    for c in range(channels):
        for start_h in starts_h:
            for start_w in starts_w:
                for row in range(rows):
                    h = start_h + row * stride_h
                    line = (c * height + h) * width
                    for column in range(columns):
                        w = start_w + column * stride_w
                        inside = 0 <= h < height and 0 <= w < width
                        store(planes, at, load(images, (line + w) * lanes) if inside else zero)
                        at += lanes


@body
def read_planes(x, x_shape, first, skipped, source, work, planes):
    """The planes of the images of x from ``first`` on, which may be these images themselves."""
    starts_h, starts_w, stride_h, stride_w, rows, columns = source
    size = x_shape[1] * x_shape[2] * x_shape[3]
    single = starts_h.size == 1 and starts_w.size == 1 and starts_h[0] == 0 and starts_w[0] == 0
    if single and stride_h == 1 and stride_w == 1 and rows == x_shape[2] and columns == x_shape[3]:
        read_images(x, first * size, size, skipped, planes)
    else:
        read_images(x, first * size, size, skipped, work)
        fill_planes(work, x_shape[1], x_shape[2], x_shape[3], source, planes)


@body
def channel_size(source):
    """Elements of a channel's planes, a lane each."""
    starts_h, starts_w, _, _, rows, columns = source
    return starts_h.size * starts_w.size * rows * columns


@body
def write_images(images, size, skipped, residual, limits, out, start, spare):
    """out[start + lane * size + e] = images[e, lane] + residual, within ``limits``; not of the first ``skipped``."""
    lanes = lanes_of(out)
    zero, bounds = splat(out, 0.0), bounds_of(out, limits)
    for e in range(0, size, lanes):
        transpose(images, e * lanes, lanes, spare, 0, lanes, False)
        count = min(lanes, size - e)
        for lane in range(skipped, lanes):
            at = start + lane * size + e
            value = load(spare, lane * lanes)
            if residual.size:
                value = value + load_part(residual, at, count, zero)
            store_part(out, at, within(value, bounds), count)


@allocating_body
def gather_panels(weight, bias, index):
    """Panels as ``correlate_lanes`` has them: weight[i - 1] for i above 0, bias[-i - 1] below it if there is one, 0."""
    panels = np.zeros(index.size, weight.dtype)
    for at in range(index.size):
        i = index[at]
        if i > 0:
            panels[at] = weight[i - 1]
        elif i < 0 and bias.size:
            panels[at] = bias[-i - 1]
    return panels


@body
def correlate_planes(planes, group_size, offsets, tiles, panels, groups, outputs, plane, sparse, out):
    """out[group, output, pixel] = sum over k of panels * planes + bias, from its start; LANE_ROWS - 1 outputs more.

    group_size: elements of a group's planes. outputs: of a group. plane: elements of one. See ``correlate_lanes``.
    """
    group_panels = -(-outputs // LANE_ROWS)
    if sparse:
        for index in range(groups * outputs * plane):
            out[index] = 0
    for at in range(0, tiles.size, TILE_FIELDS):
        base, depth, place = tiles[at], tiles[at + 1], tiles[at + 2]
        first, lines, step, run = tiles[at + 3], tiles[at + 4], tiles[at + 5], tiles[at + 6]
        for group in range(groups):
            for panel in range(group_panels):
                a_start = base + (group * group_panels + panel) * (depth + 1) * LANE_ROWS
                lane_tile(
                    panels, a_start, planes, group * group_size, offsets, place, first, lines, step, run, tiles, at + 7,
                    out, (group * outputs + panel * LANE_ROWS) * plane, plane,
                )  # fmt: skip


@body
def add_products(dy, dy_shape, dy_lie, dy_offsets, groups, planes, group_size, columns, offsets, depth, sums):
    """Add the products of a block to the sums, tile after tile of (groups, outputs, weights), some rows at a time.

    dy_lie: where dy begins, and the vectors from row to row and from output to output.
    """
    lanes = lanes_of(dy)
    outputs, height, width = dy_shape[1] // groups, dy_shape[2], dy_shape[3]
    dy_start, dy_line, dy_group = dy_lie[0] * lanes, dy_lie[1] * lanes, outputs * dy_lie[2] * lanes
    tile = DOT_ROWS * DOT_COLUMNS * lanes
    lines = max(1, RUN // width)
    for row in range(0, height, lines):
        a_row, b_row = row * columns * lanes, dy_start + row * dy_line
        at = 0
        for group in range(groups):
            for output in range(0, outputs, DOT_COLUMNS):
                for k in range(0, depth, DOT_ROWS):
                    add_dot_products(
                        planes, group * group_size + a_row, offsets, k, columns * lanes,
                        dy, group * dy_group + b_row, dy_offsets, output, dy_line,
                        width, min(lines, height - row), sums[at : at + tile],
                    )  # fmt: skip
                    at += tile


@body
def store_products(sums, split, groups, outputs, depth, partials):
    """partials[split, group, output, k] = the sums over lanes of what ``add_products`` added up."""
    at = 0
    for group in range(groups):
        for output in range(0, outputs, DOT_COLUMNS):
            for k in range(0, depth, DOT_ROWS):
                start = ((split * groups + group) * outputs + output) * depth + k
                counts = min(DOT_ROWS, depth - k), min(DOT_COLUMNS, outputs - output)
                store_dots(sums, at, counts[0], counts[1], partials, start, 1, depth)
                at += DOT_ROWS * DOT_COLUMNS * lanes_of(sums)
