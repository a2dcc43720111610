"""Convolution of few channels into many: the patch under a window is a pixel of a 1x1 convolution.

A task copies the rows of the image that it needs, padded, and from them the patch of every pixel into blocks as
``conv_point`` has them: k = (kernel row, kernel column, channel), of which a row's lie side by side.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import load, load_first, store, store_first
from fastbn.kernels.conv_point import fill_pixels, multiply_pixels
from fastbn.kernels.conv_point_backward import add_products


@body
def _pad_rows(x, origin, strides, shape, first_row, start_w, rows, columns, padded):
    """padded[guard + row, column, c] = x[c, first_row + row, start_w + column], zero outside the image.

    shape: (N, C, H, W) of x. guard: a vector, which patches may read before the first row.
    """
    channels = shape[1]
    left, right = min(columns, max(0, -start_w)), max(0, min(columns, shape[3] - start_w))
    side_by_side = strides[3] == channels and (channels == 1 or strides[1] == 1)
    lanes, zero = lanes_of(x), splat(x, 0.0)
    at = lanes
    for row in range(first_row, first_row + rows):
        inside = 0 <= row < shape[2]
        source = origin + row * strides[2] + start_w * strides[3]
        for i in range(at, at + (left if inside else columns) * channels):
            padded[i] = 0
        if inside and side_by_side:
            last = right * channels
            for i in range(left * channels, last, lanes):  # what is too much, the next elements overwrite
                store(padded, at + i, load_first(x, source + i, min(lanes, last - i), zero))
        elif inside:
            for c in range(channels):
                for column in range(left, right):
                    padded[at + column * channels + c] = x[source + c * strides[1] + column * strides[3]]
        for i in range(at + (right if inside else columns) * channels, at + columns * channels):
            padded[i] = 0
        at += columns * channels


@body
def _fill_patches(padded, rows, length, stride_row, stride_w, firsts, runs, counts, blocks, block):
    """blocks[b, p, lane] = what tap b lanes + lane of pixel p meets in ``padded``, zero past the last tap.

    rows, length: of pixels; stride_row, stride_w: from row to row and pixel to pixel of them, in ``padded``. The runs
    of block b are firsts[b] to firsts[b + 1]: what lies at runs[r] from the pixel's own place fills the first counts[r]
    lanes, the last runs first.
    """
    lanes = lanes_of(padded)
    zero = splat(padded, 0.0)
    for b in range(firsts.size - 1):
        last = firsts[b + 1] - 1
        for r in range(last, firsts[b] - 1, -1):
            count = counts[r]
            at = b * block
            for start in range(lanes + runs[r], lanes + runs[r] + rows * stride_row, stride_row):
                for place in range(start, start + length * stride_w, stride_w):
                    if r == last:
                        store(blocks, at, load_first(padded, place, count, zero))
                    else:
                        store_first(blocks, at, load(padded, place), count)
                    at += lanes


@body
def _patches_of(
    piece, x, x_shape, x_strides, out_shape, rows, window, columns, firsts, runs, counts, padded, blocks, block,
):  # fmt: skip
    """The patches of a piece, ``rows`` rows of the output; returns its first pixel and their number."""
    start_h, start_w, stride_h, stride_w, reach = window
    image, row_block = divmod(piece, -(-out_shape[2] // rows))
    first_row = row_block * rows
    count = min(rows, out_shape[2] - first_row)
    top = start_h + first_row * stride_h
    deep = (rows - 1) * stride_h + reach
    _pad_rows(x, image * x_strides[0], x_strides, x_shape, top, start_w, deep, columns, padded)
    across = x_shape[1]
    _fill_patches(
        padded, count, out_shape[3], stride_h * columns * across, stride_w * across, firsts, runs, counts, blocks, block
    )  # fmt: skip
    return (image * out_shape[2] + first_row) * out_shape[3], count * out_shape[3]


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, window, x, rows, columns, firsts, runs, counts, taps, room, panels, bias,
    residual, limits, out, streaming, shifts, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    block = rows * out_shape[3] * lanes
    padded, tile, blocks = work[:room], work[room:], work[room + TILE_ROWS * TILE_VECTORS * lanes :]
    first, pixels = _patches_of(
        task, x, x_shape, x_strides, out_shape, rows, window, columns, firsts, runs, counts, padded, blocks, block
    )  # fmt: skip
    multiply_pixels(
        blocks, block, pixels, taps, panels, out_shape[1], 0, out_shape[1], bias, residual, limits, out, first,
        streaming, shifts, None, None, None, partials, task, tile, None, 0, 0,
    )  # fmt: skip


@driver
def correlate_patches(
    x, x_shape, x_strides, out_shape, rows, window, columns, firsts, runs, counts, taps, room, panels, bias, residual,
    limits, out, streaming, shifts, partials, workspace, parallel,
):  # fmt: skip
    """out (pixels, outputs) = patches * panels + bias + residual, within ``limits``; ``rows`` rows of an image a task.

    x: flat. window: (first row, first column, stride of rows, of columns, rows that one reaches over). columns: of a
    padded row. firsts, runs, counts: where a patch lies, see ``_fill_patches``; taps: elements of it. room: for the
    padded rows. streaming, shifts, partials: as in ``correlate_points``. workspace: (threads, the padded rows, a tile,
    the blocks of a task and SLIM_ROWS vectors).
    """
    tasks = out_shape[0] * -(-out_shape[2] // rows)
    image = (x, rows, columns, firsts, runs, counts, taps, room, panels, bias, residual)
    target = (out, streaming, shifts, partials)
    if parallel:
        for task in prange(tasks):
            work = workspace[get_thread_id()]
            _correlate_task(int64(task), x_shape, x_strides, out_shape, window, *image, limits, *target, work)
    else:
        for task in range(tasks):
            _correlate_task(task, x_shape, x_strides, out_shape, window, *image, limits, *target, workspace[0])


@body
def _weights_task(
    task, x_shape, x_strides, out_shape, window, x, rows, columns, firsts, runs, counts, taps, room, dy, partner, relu,
    affine, slopes, floor, pieces_at_once, sums, work,
):  # fmt: skip
    lanes = lanes_of(x)
    block = rows * out_shape[3] * lanes
    padded, blocks = work[:room], work[room:]
    dy_blocks = blocks[(firsts.size - 1) * block :]
    total = sums[task]
    total[:] = 0
    outputs, filled = out_shape[1], -(-taps // lanes) * lanes
    pieces = out_shape[0] * -(-out_shape[2] // rows)
    for piece in range(task * pieces_at_once, min(pieces, (task + 1) * pieces_at_once)):
        first, pixels = _patches_of(
            piece, x, x_shape, x_strides, out_shape, rows, window, columns, firsts, runs, counts, padded, blocks, block
        )  # fmt: skip
        fill_pixels(
            dy, partner, relu, affine, slopes, floor, first, pixels, outputs, int64(0), outputs, dy_blocks, block
        )
        add_products(blocks, taps, dy_blocks, outputs, block, pixels, total, filled, None, None, 0, 0)


@driver
def correlate_weights_patches(
    x, x_shape, x_strides, out_shape, rows, window, columns, firsts, runs, counts, taps, room, dy, partner, relu,
    affine, slopes, floor, pieces_at_once, sums, workspace, parallel,
):  # fmt: skip
    """sums (tasks, panels) = the products of patches and dy over the pixels of ``pieces_at_once`` pieces.

    As ``correlate_patches``; dy: flat, channels-last; partner, relu, affine, slopes, floor: its prologue. workspace:
    (threads, the padded rows, the blocks of a piece of x and of dy and SLIM_ROWS vectors).
    """
    image = (x, rows, columns, firsts, runs, counts, taps, room)
    share = (dy, partner, relu, affine, slopes, floor, pieces_at_once, sums)
    if parallel:
        for task in prange(sums.shape[0]):
            _weights_task(
                int64(task), x_shape, x_strides, out_shape, window, *image, *share, workspace[get_thread_id()]
            )  # fmt: skip
    else:
        for task in range(sums.shape[0]):
            _weights_task(task, x_shape, x_strides, out_shape, window, *image, *share, workspace[0])
