"""Depthwise convolution: every channel by itself, rows of ``conv_rows`` of a vector of channels at a time.

weights (taps, C to a whole vector); y[q, c] = sum over taps t of plane[places[q] + offsets[t], c] * weights[t, c].
A plane stays in the first cache, what is read and written next comes into the second meanwhile.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd_depthwise import PIXELS, in_tile, tile_products
from fastbn.kernels._vector import bounds_of, finite_or_zero, fma, lanes_of, splat, widen, within
from fastbn.kernels._vector_apart import first_register, load_by_step, put_by_step, sum_of_registers
from fastbn.kernels._vector_memory import (
    add_to,
    fence,
    load,
    load_first,
    load_part,
    prefetch_to_write,
    store,
    store_part,
    stream,
)
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.conv_rows import ask_block, asked_for, clear, fill_rows, pixel_step


@inlined
def _finished(tile, q, residual, at, count):
    value = load(tile, q)
    return value if residual is None else value + load_part(residual, at, count, value)


@body
def _scatter_tile(tile, pixels, residual, bounds, out, i, count, stride, step):
    lanes = lanes_of(tile)
    for pixel in range(pixels):
        q = pixel * lanes
        if residual is not None:
            for lane in range(count):
                tile[q + lane] += residual[i + lane * stride]
        store(tile, q, within(load(tile, q), bounds))
        for lane in range(count):
            out[i + lane * stride] = tile[q + lane]
        i += step


@body
def _convolve_channels(
    plane, places, pixels, offsets, weights, c, count, bias, residual, limits, out, i, stride, step, asked, asked_step,
    streaming, shifts, partials, piece, starts, tile,
):  # fmt: skip
    """``pixels`` pixels of the output from i on, for the ``count`` channels from c on that ``plane`` has.

    starts: whether the piece begins here, and its first pixel gives the shifts.
    """
    lanes, zero, bounds = lanes_of(plane), splat(plane, 0.0), bounds_of(plane, limits)
    start = zero if bias is None else load_first(bias, c, count, zero)
    place = 0 if shifts is None else piece * partials.shape[2] + c
    d_sum = q_sum = near = zero
    if shifts is not None and not starts:
        near = load(shifts, place)
    for left in range(0, pixels, PIXELS):
        length = min(PIXELS, pixels - left)
        values = tile_products(plane, places, left, offsets, 0, offsets.size, weights, c, weights.shape[1], start)
        if stride != 1:
            store(tile, 0, values)
            _scatter_tile(tile, length, residual, bounds, out, i, count, stride, step)
            i += step * length
        elif length == PIXELS and count == lanes:
            if residual is not None:
                values = values + load_by_step(residual, i, step, values)
            if shifts is None:
                values = within(values, (in_tile(bounds[0]), in_tile(bounds[1])))
            else:
                if starts and left == 0:
                    near = finite_or_zero(first_register(plane, values))
                    store(shifts, place, near)
                far = values - in_tile(near)
                d_sum = d_sum + sum_of_registers(plane, far)
                q_sum = q_sum + sum_of_registers(plane, far * far)
            put_by_step(out, i, step, values, streaming)
            i += step * PIXELS
            if not streaming:
                for _ in range(PIXELS):
                    prefetch_to_write(out, asked)
                    asked += asked_step
        else:
            store(tile, 0, values)
            if shifts is not None and starts and left == 0:
                near = finite_or_zero(_finished(tile, 0, residual, i, count))
                store(shifts, place, near)
            for q in range(0, length * lanes, lanes):
                value = _finished(tile, q, residual, i, count)
                if shifts is None:
                    value = within(value, bounds)
                if streaming:
                    stream(out, i, value)
                else:
                    store_part(out, i, value, count)
                if shifts is not None:
                    d = value - near
                    d_sum, q_sum = d_sum + d, fma(d, d, q_sum)
                i += step
    if shifts is not None:
        add_to(partials, place, widen(d_sum))
        add_to(partials, partials[0].size + place, widen(q_sum))


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, out_strides, x, affine, relu, x_floor, stride_h, top, window, spots, size,
    places, offsets, weights, bias, residual, limits, out, images, rows, at_once, group, ahead, streaming, shifts,
    partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    x_step = pixel_step(x_strides, height, width)
    out_step = pixel_step(out_strides, out_shape[2], out_shape[3])
    tile, plane = work[: PIXELS * lanes], work[PIXELS * lanes :]
    piece, part = divmod(task, -(-channels // group))
    block, row_block = divmod(piece, -(-out_shape[2] // rows))
    first, last = part * group, min(channels, (part + 1) * group)
    first_image = block * images
    count_images = min(x_shape[0], first_image + images) - first_image
    first_row = row_block * rows
    last_row = min(out_shape[2], first_row + rows)
    if shifts is not None:
        partials[:, piece, first : whole_vectors(last, lanes)] = 0.0
    for begin in range(first_row, last_row, at_once):
        end = min(last_row, begin + at_once)
        clear(plane, images * size)
        above = top - begin * stride_h
        skipped = max(0, above)
        inside = max(0, min(height + above, (end - 1 - begin) * stride_h + window) - skipped)
        x_at = first_image * x_strides[0] + (skipped - above) * width * x_step
        at = first_image * out_strides[0] + begin * out_shape[3] * out_step
        x_pixels, pixels = count_images * inside * width, count_images * (end - begin) * out_shape[3]
        if ahead and begin == first_row:
            ask_block(x, x_at, x_pixels * x_step)
        for c in range(first, last, lanes):
            count = min(lanes, last - c)
            fill_rows(
                x, None, relu, affine, None, x_floor, count_images, x_at + c * x_strides[1], x_strides[0],
                x_strides[1], x_step, c, count, *asked_for(ahead, x_at, x_pixels, x_step, c, lanes), spots,
                skipped * width, inside * width, plane, size,
            )  # fmt: skip
            _convolve_channels(
                plane, places, pixels, offsets, weights, c, count, bias, residual, limits, out,
                at + c * out_strides[1], out_strides[1], out_step, *asked_for(ahead, at, pixels, out_step, c, lanes),
                streaming, shifts, partials, piece, begin == first_row, tile,
            )  # fmt: skip
    if streaming:
        fence()


@driver
def correlate_depthwise(
    x, x_shape, x_strides, affine, relu, x_floor, stride_h, top, window, spots, size, places, offsets, weights, bias,
    residual, limits, out, out_shape, out_strides, images, rows, at_once, group, ahead, streaming, shifts, partials,
    workspace, parallel,
):  # fmt: skip
    """out = bias + the sum over t of weights * plane, + residual; within ``limits``, where no sums are taken.

    A task has ``rows`` rows of ``images`` images and ``group`` channels, and takes ``at_once`` rows at a time: one
    image's, or, where they are all, all its images'. x: flat; affine, relu, x_floor: its prologue. ahead: see
    ``asked_for``.
    top: zeros above an image; window: rows of x that a row of the output meets. plane: ``size`` elements of each image;
    spots: places in it for the pixels of its rows, row by row; places: of the output's pixels, and offsets of the taps
    from there.
    bias, residual: flat, or None; residual lies as out. streaming: out is channels-last, in whole vectors on whole
    lines, and written past the caches.
    Sums of a dense channels-last output as in ``conv_blocks.correlate_blocks``, a piece for each task's rows.
    workspace: (threads, a tile and the planes of ``images`` images).
    """
    tasks = -(-out_shape[0] // images) * -(-out_shape[2] // rows) * -(-out_shape[1] // group)
    source = (x, affine, relu, x_floor, stride_h, top, window, spots, size, places, offsets, weights)
    share = (bias, residual)
    target = (out, images, rows, at_once, group, ahead, streaming, shifts, partials)
    if parallel:
        for task in prange(tasks):
            work = workspace[get_thread_id()]
            _correlate_task(
                int64(task), x_shape, x_strides, out_shape, out_strides, *source, *share, limits, *target, work
            )
    else:
        for task in range(tasks):
            work = workspace[0]
            _correlate_task(task, x_shape, x_strides, out_shape, out_strides, *source, *share, limits, *target, work)
