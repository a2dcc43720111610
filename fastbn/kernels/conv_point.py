"""Convolution of single pixels, 1x1: channels-last arrays as matrices (pixels, channels).

A task copies a run of pixels, as its prologue makes them, into blocks of as many channels as a vector has lanes, pixel
by pixel: what register tiles multiply then lies at constant distances in the second cache. Prologues are those of
``conv_fill``, weights lie in panels, see ``conv_panels``.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_point import ASKING, SLIM_ROWS, point_tile, slim_point_tile
from fastbn.kernels._vector import at_most, bounds_of, finite_or_zero, fma, lanes_of, splat, widen, within
from fastbn.kernels._vector_memory import (
    add_to,
    fence,
    load,
    load_first,
    load_part,
    prefetch,
    put,
    set_to,
    store,
    store_first,
)
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first, passed
from fastbn.kernels.channels import FLOOR, NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K

FILL_ROWS = 16  # pixels that share the constants of a channel


@inlined
def _constant(values, row, c, count, zero):
    """Channels from c on of a row of constants, 0 where there are none."""
    return zero if values is None else load_first(values, row * values.shape[1] + c, count, zero)


@inlined
def _least(affine, floor, x, c, count, zero):
    """What is cut below: the row FLOOR of the constants, if there is one."""
    low = splat(x, floor)
    if affine is not None and affine.shape[0] > FLOOR:
        low = _constant(affine, FLOOR, c, count, zero)
    return low


@inlined
def pace_of(due, asks, lanes):
    """Elements from one of so many requests for the next operand to the next, which together ask for ``due``."""
    return min(lanes, -(-due // max(1, asks)))


@body
def fill_pixels(
    x, partner, relu, affine, slopes, floor, first, pixels, width, channel, channels, blocks, block,
):  # fmt: skip
    """blocks[c, p, lane] = x[first + p, channel + c lanes + lane] through its prologue, 0 past the last channel.

    width: channels of a pixel, of which ``channels`` are taken. block: elements from one c to the next.
    A literal ``channel`` would be compiled by itself: callers say int64(0).
    """
    lanes = lanes_of(x)
    zero = splat(x, 0.0)
    for top in range(0, pixels, FILL_ROWS):
        rows = min(FILL_ROWS, pixels - top)
        for c in range(0, channels, lanes):
            count, at = min(lanes, channels - c), channel + c
            near, scale = _constant(affine, NEAR_MEAN, at, count, zero), _constant(affine, SCALE, at, count, zero)
            shift, low = _constant(affine, SHIFT, at, count, zero), _least(affine, floor, x, at, count, zero)
            a, b = _constant(slopes, A, at, count, zero), _constant(slopes, B, at, count, zero)
            k, inv_std = _constant(slopes, K, at, count, zero), _constant(slopes, NEAR_INV_STD, at, count, zero)
            i = (first + top) * width + at
            target = c // lanes * block + top * lanes
            for _ in range(rows):
                if count == lanes:
                    if affine is None:
                        value = load(x, i)
                    elif slopes is None:
                        value = at_most(normalized(x, None, None, i, 0, near, scale, shift, low), relu)
                    else:
                        value = gradient(
                            x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None
                        )
                elif affine is None:
                    value = load_first(x, i, count, zero)
                elif slopes is None:
                    value = at_most(normalized_first(x, None, None, i, count, 0, near, scale, shift, low), relu)
                else:
                    value = gradient_first(
                        x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None
                    )
                store(blocks, target, value)
                i += width
                target += lanes


@body
def _finish(
    tile, step, pixels, count, first, bias, residual, limits, out, at, outputs, channel, streaming, shifts, source,
    source_relu, source_affine, partials, piece,
):  # fmt: skip
    """Pixels of ``out``, from ``at`` on, from a tile's, ``step`` apart; what of them is wanted is summed.

    count: of the channels, from ``channel`` on. first: whether they are the first of their piece.
    """
    lanes = lanes_of(out)
    zero = splat(out, 0.0)
    for j in range(0, count, lanes):
        part, c = min(lanes, count - j), channel + j
        level = zero if bias is None else load_first(bias, c, part, zero)
        near, scale = _constant(source_affine, NEAR_MEAN, c, part, zero), _constant(source_affine, SCALE, c, part, zero)
        moved = _constant(source_affine, SHIFT, c, part, zero)
        if shifts is not None:
            if first:
                near = load(tile, j) + level
                if residual is not None:
                    near = near + load_part(residual, at + j, part, zero)
                if limits is not None:
                    near = within(near, bounds_of(out, limits))
                store(shifts, piece * shifts.shape[1] + c, finite_or_zero(near))
            near = load(shifts, piece * shifts.shape[1] + c)
        about = widen(near)
        total = product = widen(zero)
        place = at + j
        i = j
        for _ in range(pixels):
            value = load(tile, i)
            if bias is not None:
                value = value + level
            if residual is not None:
                value = value + load_part(residual, place, part, zero)
            if limits is not None:
                value = within(value, bounds_of(out, limits))
            if part == lanes:
                put(out, place, value, streaming)
            else:
                store_first(out, place, value, part)
            if shifts is not None:
                d = widen(value) - about
                total, product = total + d, fma(d, d, product)
            if source is not None:
                x = load_part(source, place, part, near)
                g = widen(passed(value, x - near, None, 0, source_relu, scale, moved))
                total, product = total + g, fma(g, widen(x) - about, product)
            i += step
            place += outputs
        if partials is not None:
            target = piece * partials.shape[2] + c
            behind = partials.shape[1] * partials.shape[2] + target
            if first:
                set_to(partials, target, total)
                set_to(partials, behind, product)
            else:
                add_to(partials, target, total)
                add_to(partials, behind, product)


@body
def multiply_pixels(
    blocks, block, pixels, channels, panels, outputs, begin, end, bias, residual, limits, out, first, streaming, shifts,
    source, source_relu, source_affine, partials, piece, tile, ahead, place, due,
):  # fmt: skip
    """out[first + p, o] = the sum over channels c of blocks[c, p] * panels[c, o], + bias + residual, within ``limits``.

    limits: a least and a greatest number, or None.
    begin <= o < end, of ``outputs``; begin is that of a panel. The blocks have room for whole tiles of SLIM_ROWS
    pixels; tile: a register tile's memory. streaming: past the caches. shifts, partials: sums as
    ``conv_blocks.correlate_blocks`` has them, of which ``piece`` is written, or None. residual may be ``out``.
    ahead: ``due`` elements of it from ``place`` on, or about as many, come into the second cache meanwhile, unless it
    is None.
    """
    lanes = lanes_of(out)
    breadth = TILE_VECTORS * lanes
    panel_size = -(-channels // lanes) * lanes * breadth
    asks = channels // ASKING
    pace = pace_of(due, -(-pixels // TILE_ROWS) * -(-(end - begin) // breadth) * asks, lanes)
    for o in range(begin, end, breadth):
        count, start = min(breadth, end - o), o // breadth * panel_size
        slim = count <= lanes
        height, width = (SLIM_ROWS, lanes) if slim else (TILE_ROWS, breadth)
        for q in range(0, pixels, height):
            used = min(height, pixels - q)
            at = (first + q) * outputs + o
            direct = partials is None and used == height and count == width
            target, goal, step = (out, at, outputs) if direct else (tile, 0, width)
            if residual is not None or source is not None:
                for p in range(used):
                    for j in range(0, count, lanes):
                        if residual is not None:
                            prefetch(residual, at + p * outputs + j)
                        if source is not None:
                            prefetch(source, at + p * outputs + j)
            if slim:
                slim_point_tile(
                    blocks, q * lanes, block, panels, start, channels, target, goal, step, direct, bias, o, residual,
                    at, limits, streaming, ahead, place, pace,
                )  # fmt: skip
            else:
                point_tile(
                    blocks, q * lanes, block, panels, start, channels, target, goal, step, direct, bias, o, residual,
                    at, limits, streaming, ahead, place, pace,
                )  # fmt: skip
            place += asks * pace
            if not direct:
                _finish(
                    tile, step, used, count, q == 0, bias, residual, limits, out, at, outputs, o, streaming, shifts,
                    source, source_relu, source_affine, partials, piece,
                )  # fmt: skip
    if streaming:
        fence()


@inlined
def next_run(first, count, pixels):
    """(first pixel, number) of the run behind this one; nothing of this one if there is none."""
    soon = min(count, pixels - first - count)
    return (first + count, soon) if soon > 0 else (first, 0)


@body
def _correlate_task(
    task, x, ceiling, affine, x_floor, pixels, channels, at_once, wide, panels, outputs, bias, residual, limits, out,
    streaming, shifts, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    room = TILE_ROWS * TILE_VECTORS * lanes
    tile, blocks = work[:room], work[room:]
    part, run = divmod(task, -(-pixels // at_once))
    first, begin = run * at_once, part * wide
    count = min(at_once, pixels - first)
    block = at_once * lanes
    fill_pixels(x, None, ceiling, affine, None, x_floor, first, count, channels, int64(0), channels, blocks, block)
    following, soon = next_run(first, count, pixels)
    multiply_pixels(
        blocks, block, count, channels, panels, outputs, begin, min(outputs, begin + wide), bias, residual, limits, out,
        first, streaming, shifts, None, None, None, partials, run, tile, x, following * channels, soon * channels,
    )  # fmt: skip


@driver
def correlate_points(
    x, ceiling, affine, x_floor, pixels, channels, at_once, wide, panels, outputs, bias, residual, limits, out,
    streaming, shifts, partials, workspace, parallel,
):  # fmt: skip
    """out (pixels, outputs) = x (pixels, channels) * panels + bias + residual, within ``limits``.

    A task has a run of ``at_once`` pixels, in whole tiles, and ``wide`` outputs, in whole panels.
    All flat; ceiling, affine, x_floor: the prologue of x. streaming: out lies on whole vectors and is written past the
    caches. shifts, partials: moments, if not None, a run a piece, see ``conv_blocks.correlate_blocks``.
    workspace: (threads, a tile and the blocks of a run).
    """
    tasks = -(-pixels // at_once) * -(-outputs // wide)
    image = (x, ceiling, affine, x_floor, pixels, channels, at_once, wide)
    share = (panels, outputs, bias, residual)
    target = (out, streaming, shifts, partials)
    if parallel:
        for task in prange(tasks):
            _correlate_task(int64(task), *image, *share, limits, *target, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _correlate_task(task, *image, *share, limits, *target, workspace[0])
