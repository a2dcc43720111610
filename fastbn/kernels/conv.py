"""Convolution as a matrix product whose right operand is the image itself.

Images are first copied into *planes*: zero-padded, and split by the residue of their row and column modulo the stride,
so that the pixel under one weight is the same distance away for every output pixel. With ``offsets[k]`` that distance
for weight k = (channel, kernel row, kernel column), and q = row * width + column counting outputs along the padded
width, y[q] = sum over k of w[k] * planes[offsets[k] + q]: no patch is ever gathered. What q counts beyond the output's
own width is computed and dropped. The gradient to the input is the same product over planes of dy, once for each
residue; the one to the weights is a dot product of two runs of memory.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS, VECTOR_BYTES
from fastbn.kernels._simd_gemm import tile_product_at
from fastbn.kernels._simd_lanes import DOT_COLUMNS, DOT_ROWS, add_dot_products
from fastbn.kernels._vector import lanes_of, total, widen
from fastbn.kernels._vector_memory import load

TILES = 4  # register tiles along q in one task of ``correlate``
TASKS = 16  # fewer than that, and ``correlate`` splits the rows too
DOT_ROW_TILES = 4
DOT_COLUMN_TILES = 8
RUN = 512  # elements of q in one visit of a tile of dot products: its operands stay in the first cache


def slack(itemsize: int) -> int:
    """Elements that tiles may read past the last plane, besides a row of it; they must be there, and not NaN."""
    return TILE_BYTES // itemsize


def tile_elements(itemsize: int) -> int:
    """Elements of workspace that one thread of ``correlate`` needs."""
    return TILE_ROWS * (TILE_BYTES // itemsize)


def dot_elements(itemsize: int) -> int:
    """Elements of workspace that one thread of ``correlate_weights`` needs."""
    return DOT_ROW_TILES * DOT_COLUMN_TILES * DOT_ROWS * DOT_COLUMNS * (VECTOR_BYTES // itemsize)


def whole_tiles(offsets: np.ndarray, tile: int) -> np.ndarray:
    """Offsets for whole tiles: the last one repeated, for products that are not stored."""
    return offsets[np.minimum(np.arange(-(-offsets.size // tile) * tile), offsets.size - 1)]


def lanes(itemsize: int) -> int:
    """Elements of a vector: the length of a plane's row of q is a multiple of it in ``correlate_weights``."""
    return VECTOR_BYTES // itemsize


@body
def _split_plane(task, x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, width, planes, size):
    n, c = divmod(task, x_shape[1])
    source = n * x_strides[0] + c * x_strides[1]
    at = task * size
    for start_h in starts_h:
        for start_w in starts_w:
            # Columns whose input start_w + column * stride_w lies in the image.
            low = min(width, max(0, -(start_w // stride_w)))
            high = max(low, min(width, (x_shape[3] - 1 - start_w) // stride_w + 1))
            step = stride_w * x_strides[3]
            for row in range(rows):
                h = start_h + row * stride_h
                if h < 0 or h >= x_shape[2]:
                    for column in range(width):
                        planes[at + column] = 0
                else:
                    origin = source + h * x_strides[2] + start_w * x_strides[3]
                    for column in range(low):
                        planes[at + column] = 0
                    if step == 1:
                        for column in range(low, high):
                            planes[at + column] = x[origin + column]
                    else:
                        for column in range(low, high):
                            planes[at + column] = x[origin + column * step]
                    for column in range(high, width):
                        planes[at + column] = 0
                at += width
    for index in range(at, (task + 1) * size):
        planes[index] = 0


@driver
def split_planes(x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, width, planes, size, parallel):
    """planes[n, c, i, j, row, column] = x[n, c, starts_h[i] + row * stride_h, starts_w[j] + column * stride_w].

    Zero outside the image. size: elements of the planes of one channel, the last ones zero if it is more than needed.
    """
    tasks = x_shape[0] * x_shape[1]
    if parallel:
        for task in prange(tasks):
            _split_plane(
                int64(task), x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, width, planes, size
            )
    else:
        for task in range(tasks):
            _split_plane(task, x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, width, planes, size)


@body
def _store_tile(tile, q_first, rows, bias, bias_start, residual, limits, width, out, at, out_shape, out_strides):
    """Write the columns of a tile that are pixels of the output; at: the output's element for row 0 and q = 0."""
    columns = tile.size // TILE_ROWS
    low, high = tile.dtype.type(limits[0]), tile.dtype.type(limits[1])
    row, left = divmod(q_first, width)
    done = 0
    while done < columns and row < out_shape[2]:
        count = min(columns - done, width - left)
        used = min(count, out_shape[3] - left)
        base = at + row * out_strides[2] + left * out_strides[3]
        for i in range(rows):
            shift = bias[bias_start + i] if bias.size else tile[0] * 0
            target = base + i * out_strides[1]
            for j in range(used):
                value = tile[i * columns + done + j]
                if bias.size:
                    value += shift
                if residual.size:
                    value += residual[target + j * out_strides[3]]
                out[target + j * out_strides[3]] = low if value < low else high if value > high else value
        done += count
        left = 0
        row += 1


@body
def _grid(out_shape, width, groups, columns):
    """Blocks along q, row panels of a group, and row panels in one task."""
    q_blocks = -(-((out_shape[2] - 1) * width + out_shape[3]) // (TILES * columns))
    panels = -(-(out_shape[1] // groups) // TILE_ROWS)
    wanted = -(-TASKS // (out_shape[0] * groups * q_blocks))
    return q_blocks, panels, -(-panels // min(panels, wanted))


@body
def _correlate_task(
    task, planes, channel_size, channels, width, offsets, panels, bias, residual, limits, out, first, out_shape,
    out_strides, groups, tile,
):  # fmt: skip
    columns = tile.size // TILE_ROWS
    q_blocks, group_panels, at_once = _grid(out_shape, width, groups, columns)
    row_blocks = -(-group_panels // at_once)
    image, rest = divmod(task, groups * row_blocks * q_blocks)
    group, rest = divmod(rest, row_blocks * q_blocks)
    row_block, q_block = divmod(rest, q_blocks)
    rows = out_shape[1] // groups
    source = (image * groups + group) * channels * channel_size
    target = first + image * out_strides[0] + group * rows * out_strides[1]
    q_last = min((q_block + 1) * TILES * columns, (out_shape[2] - 1) * width + out_shape[3])
    for panel in range(row_block * at_once, min(group_panels, (row_block + 1) * at_once)):
        row = panel * TILE_ROWS
        for q in range(q_block * TILES * columns, q_last, columns):
            a_start = (group * group_panels + panel) * offsets.size * TILE_ROWS
            tile_product_at(panels, a_start, planes, source + q, offsets, tile)
            _store_tile(
                tile, q, min(TILE_ROWS, rows - row), bias, group * rows + row, residual, limits, width,
                out, target + row * out_strides[1], out_shape, out_strides,
            )  # fmt: skip


@driver
def correlate(
    planes, channel_size, channels, width, offsets, panels, bias, residual, limits, out, first, out_shape, out_strides,
    groups, workspace, parallel,
):  # fmt: skip
    """out = the sum over k of panels[row, k] * planes[offsets[k] + q], + bias + residual, within ``limits``.

    planes: what ``split_planes`` made, ``channels`` of ``channel_size`` for each group, then ``slack``. width: of the
    planes. panels: flat (groups, row panels, K, TILE_ROWS). bias, residual: flat, may be empty; residual lies as out.
    first: the element of ``out`` at its logical origin; out_shape (N, C, H, W) and out_strides may name a part of it.
    """
    q_blocks, group_panels, at_once = _grid(out_shape, width, groups, TILE_BYTES // workspace.itemsize)
    tasks = out_shape[0] * groups * q_blocks * -(-group_panels // at_once)
    if parallel:
        for task in prange(tasks):
            _correlate_task(
                int64(task), planes, channel_size, channels, width, offsets, panels, bias, residual, limits, out, first,
                out_shape, out_strides, groups, workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _correlate_task(
                task, planes, channel_size, channels, width, offsets, panels, bias, residual, limits, out, first,
                out_shape, out_strides, groups, workspace[0],
            )  # fmt: skip


@body
def store_dots(sums, at, rows, columns, partials, start, row_step, column_step):
    """partials[start + i * row_step + j * column_step] = the sum over the lanes of sums[at + (i, j)]."""
    lanes = lanes_of(sums)
    for i in range(rows):
        for j in range(columns):
            value = load(sums, at + (i * DOT_COLUMNS + j) * lanes)
            partials[start + i * row_step + j * column_step] = total(widen(value))


@body
def _correlate_weights_task(
    task, images, images_at_once, dy_planes, dy_size, dy_offsets, rows, planes, channel_size, channels, offsets, depth,
    groups, partials, sums,
):  # fmt: skip
    vector = VECTOR_BYTES // sums.itemsize
    tile = DOT_ROWS * DOT_COLUMNS * vector
    row_blocks = -(-rows // (DOT_ROW_TILES * DOT_ROWS))
    column_blocks = -(-depth // (DOT_COLUMN_TILES * DOT_COLUMNS))
    split, rest = divmod(task, groups * row_blocks * column_blocks)
    group, rest = divmod(rest, row_blocks * column_blocks)
    row_block, column_block = divmod(rest, column_blocks)
    row_first = row_block * DOT_ROW_TILES * DOT_ROWS
    row_last = min(rows, row_first + DOT_ROW_TILES * DOT_ROWS)
    column_first = column_block * DOT_COLUMN_TILES * DOT_COLUMNS
    column_last = min(depth, column_first + DOT_COLUMN_TILES * DOT_COLUMNS)
    for index in range(sums.size):
        sums[index] = 0
    for image in range(split * images_at_once, min(images, (split + 1) * images_at_once)):
        dy_start = (image * groups + group) * rows * dy_size
        start = (image * groups + group) * channels * channel_size
        for q in range(0, dy_size, RUN):
            steps = min(RUN, dy_size - q) // vector
            at = 0
            for row in range(row_first, row_last, DOT_ROWS):
                for column in range(column_first, column_last, DOT_COLUMNS):
                    add_dot_products(
                        dy_planes, dy_start + q, dy_offsets, row, 0, planes, start + q, offsets, column, 0, steps, 1,
                        sums[at : at + tile],
                    )  # fmt: skip
                    at += tile
    at = 0
    for row in range(row_first, row_last, DOT_ROWS):
        for column in range(column_first, column_last, DOT_COLUMNS):
            start = ((split * groups + group) * rows + row) * depth + column
            count = min(DOT_COLUMNS, column_last - column)
            store_dots(sums, at, min(DOT_ROWS, row_last - row), count, partials, start, depth, 1)
            at += tile


@driver
def correlate_weights(
    images, images_at_once, dy_planes, dy_size, dy_offsets, rows, planes, channel_size, channels, offsets, depth,
    groups, partials, workspace, parallel,
):  # fmt: skip
    """partials[split, group, row, k] = sum over the split's images and q of dy[row, q] * planes[offsets[k] + q].

    dy_planes: (N, groups * rows, dy_size) in the width of ``planes``, zero where q is no output; dy_size: a multiple
    of ``lanes``. dy_offsets, offsets: of the rows and the ``depth`` weights k, see ``whole_tiles``. A split is a run of
    ``images_at_once`` images.
    """
    blocks = -(-rows // (DOT_ROW_TILES * DOT_ROWS)) * -(-depth // (DOT_COLUMN_TILES * DOT_COLUMNS))
    tasks = -(-images // images_at_once) * groups * blocks
    if parallel:
        for task in prange(tasks):
            _correlate_weights_task(
                int64(task), images, images_at_once, dy_planes, dy_size, dy_offsets, rows, planes, channel_size,
                channels, offsets, depth, groups, partials, workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _correlate_weights_task(
                task, images, images_at_once, dy_planes, dy_size, dy_offsets, rows, planes, channel_size, channels,
                offsets, depth, groups, partials, workspace[0],
            )  # fmt: skip
