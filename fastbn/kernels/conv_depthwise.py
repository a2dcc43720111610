"""Depthwise convolution: every channel by itself, a vector of them at a time, down the rows of ``conv_rows``.

weights (taps, C to a whole vector); y[q, c] = sum over taps t of rows[offsets[t] + q, c] * weights[t, c].
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd_depthwise import PIXELS, row_products
from fastbn.kernels._vector import (
    add_to,
    at_least,
    finite_or_zero,
    fma,
    lanes_of,
    load,
    load_first,
    load_part,
    splat,
    store,
    store_part,
    widen,
)
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.conv_rows import fill_row

RUN = 64  # values summed in the dtype of the output, before they are added to sums in float64


@inlined
def _finished(line, i, start, residual, low, at, count):
    value = load(line, i) + start
    if residual is not None:
        value = value + load_part(residual, at, count, value)
    return at_least(value, low)


@body
def _rows_of_channels(
    begin, end, kept_rows, ring, stride_h, offsets, weights, bias, residual, floor, out, first, last, at,
    out_length, strides, shifts, partials, piece, starts, line,
):  # fmt: skip
    """Rows ``begin`` to ``end`` of the output, for channels ``first`` to ``last``, from what the ring has of them."""
    lanes, zero, low = lanes_of(ring), splat(ring, 0.0), splat(ring, floor)
    taps = offsets.shape[1]
    for c in range(first, last, lanes):
        count = min(lanes, last - c)
        start = zero if bias is None else load_first(bias, c, count, zero)
        place = 0 if shifts is None else piece * partials.shape[2] + c
        squares = 0 if shifts is None else partials[0].size
        for row in range(begin, end):
            slot = row * stride_h % offsets.shape[0]
            row_products(
                ring, (c - first) // lanes * kept_rows, offsets, slot * taps, taps, weights, c, weights.shape[1],
                out_length, line,
            )  # fmt: skip
            i = at + (c - first) * strides[1] + row * strides[2]
            if strides[1] != 1:
                for column in range(out_length):
                    q = column * lanes
                    store(line, q, load(line, q) + start)
                    if residual is not None:
                        for lane in range(count):
                            line[q + lane] += residual[i + column * strides[3] + lane * strides[1]]
                    store(line, q, at_least(load(line, q), low))
                    for lane in range(count):
                        out[i + column * strides[3] + lane * strides[1]] = line[q + lane]
            elif shifts is None:
                for column in range(out_length):
                    store_part(out, i, _finished(line, column * lanes, start, residual, low, i, count), count)
                    i += strides[3]
            else:
                if starts and row == begin:
                    store(shifts, place, finite_or_zero(_finished(line, 0, start, residual, low, i, count)))
                near = load(shifts, place)
                for left in range(0, out_length, RUN):
                    d_sum = q_sum = zero
                    for column in range(left, min(out_length, left + RUN)):
                        value = _finished(line, column * lanes, start, residual, low, i, count)
                        store_part(out, i, value, count)
                        d = value - near
                        d_sum, q_sum = d_sum + d, fma(d, d, q_sum)
                        i += strides[3]
                    add_to(partials, place, widen(d_sum))
                    add_to(partials, place + squares, widen(q_sum))


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, out_strides, x, affine, relu, x_floor, starts_w, stride_h, stride_w, top,
    window, columns, offsets, weights, bias, residual, floor, out, rows, at_once, group, shifts, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    row_size = starts_w.size * columns * lanes
    kept_rows = offsets.shape[0] * row_size
    room = (out_shape[3] + PIXELS) * lanes
    line, ring = work[:room], work[room:]
    piece, part = divmod(task, -(-channels // group))
    image, block = divmod(piece, -(-out_shape[2] // rows))
    first, last = part * group, min(channels, (part + 1) * group)
    first_row = block * rows
    last_row = min(out_shape[2], first_row + rows)
    origin = image * x_strides[0] + first * x_strides[1]
    filled = first_row * stride_h
    if shifts is not None:
        partials[:, piece, first : whole_vectors(last, lanes)] = 0.0
    for begin in range(first_row, last_row, at_once):
        end = min(last_row, begin + at_once)
        for v in range(max(filled, begin * stride_h), (end - 1) * stride_h + window):
            h = v - top
            inside = 0 <= h < height
            place = v % offsets.shape[0] * row_size
            for start_w in starts_w:
                # Columns whose pixel start_w + column * stride_w lies in the image.
                left = min(columns, max(0, -(start_w // stride_w))) if inside else columns
                right = max(left, min(columns, (width - 1 - start_w) // stride_w + 1)) if inside else columns
                at = origin + h * x_strides[2] + (start_w + left * stride_w) * x_strides[3]
                fill_row(
                    x, None, relu, affine, None, x_floor, at, x_strides[1], stride_w * x_strides[3], first, last,
                    left, right, columns, ring, place, kept_rows,
                )  # fmt: skip
                place += columns * lanes
        filled = (end - 1) * stride_h + window
        at = image * out_strides[0] + first * out_strides[1]
        _rows_of_channels(
            begin, end, kept_rows, ring, stride_h, offsets, weights, bias, residual, floor, out, first, last,
            at, out_shape[3], out_strides, shifts, partials, piece, begin == first_row, line,
        )  # fmt: skip


@driver
def correlate_depthwise(
    x, x_shape, x_strides, affine, relu, x_floor, starts_w, stride_h, stride_w, top, window, columns, offsets, weights,
    bias, residual, floor, out, out_shape, out_strides, rows, at_once, group, shifts, partials, workspace, parallel,
):  # fmt: skip
    """out = max(sum over t of weights * rows + bias + residual, floor).

    A task has ``rows`` rows of an image and ``group`` channels, and takes ``at_once`` rows at a time.
    x: flat; affine, relu, x_floor: its prologue. A row of x is kept as one run of ``columns`` pixels for each of
    ``starts_w``, with its pixels start_w + column * stride_w. top: zeros above the image; window: rows of x that a row
    of the output meets. offsets (kept rows, taps), in elements, by the place of a window's first row among the kept.
    bias, residual: flat, or None; residual lies as out.
    Sums of a dense channels-last output as in ``conv_blocks.correlate_blocks``, a piece for the rows of a task.
    workspace: (threads, a row of the output, the kept rows of ``group`` channels, and PIXELS behind both).
    """
    tasks = out_shape[0] * -(-out_shape[2] // rows) * -(-out_shape[1] // group)
    source = (x, affine, relu, x_floor, starts_w, stride_h, stride_w, top, window, columns)
    share = (offsets, weights, bias, residual, floor, out, rows, at_once, group, shifts, partials)
    if parallel:
        for task in prange(tasks):
            _correlate_task(
                int64(task), x_shape, x_strides, out_shape, out_strides, *source, *share, workspace[get_thread_id()]
            )
    else:
        for task in range(tasks):
            _correlate_task(task, x_shape, x_strides, out_shape, out_strides, *source, *share, workspace[0])
