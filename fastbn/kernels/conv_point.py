"""Convolution of single pixels, 1x1: channels-last arrays as matrices (pixels, channels).

A task copies a run of pixels, as its prologue makes them, into blocks of as many channels as a vector has lanes, pixel
by pixel: what register tiles multiply then lies at constant distances in the second cache. Prologues are those of
``conv_fill``, weights lie in panels, see ``conv_panels``.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_point import SLIM_ROWS, point_tile, slim_point_tile
from fastbn.kernels._vector import (
    at_least,
    at_most,
    fence,
    finite_or_zero,
    fma,
    lanes_of,
    load,
    load_first,
    load_part,
    prefetch,
    put,
    set_to,
    splat,
    store,
    store_first,
    widen,
)
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first, passed
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K

FILL_ROWS = 16  # pixels that share the constants of a channel


@inlined
def _constant(values, row, c, count, zero):
    """Channels from c on of a row of constants, 0 where there are none."""
    return zero if values is None else load_first(values, row * values.shape[1] + c, count, zero)


@body
def fill_pixels(x, partner, relu, affine, slopes, floor, first, pixels, channels, blocks, block):
    """blocks[c, p, lane] = x[first + p, c lanes + lane] through its prologue, 0 past the last channel.

    block: elements from one c to the next.
    """
    lanes = lanes_of(x)
    zero, low = splat(x, 0.0), splat(x, floor)
    for top in range(0, pixels, FILL_ROWS):
        rows = min(FILL_ROWS, pixels - top)
        ahead = rows * channels
        for c in range(0, channels, lanes):
            count = min(lanes, channels - c)
            near, scale = _constant(affine, NEAR_MEAN, c, count, zero), _constant(affine, SCALE, c, count, zero)
            shift = _constant(affine, SHIFT, c, count, zero)
            a, b = _constant(slopes, A, c, count, zero), _constant(slopes, B, c, count, zero)
            k, inv_std = _constant(slopes, K, c, count, zero), _constant(slopes, NEAR_INV_STD, c, count, zero)
            i = (first + top) * channels + c
            target = c // lanes * block + top * lanes
            for _ in range(rows):
                prefetch(x, i + ahead)
                if slopes is not None:
                    prefetch(partner, i + ahead)
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
                i += channels
                target += lanes


@body
def _finish(
    products, start, step, pixels, count, bias, residual, floor, out, at, outputs, channel, streaming, shifts, source,
    source_relu, source_affine, partials, piece,
):  # fmt: skip
    """Pixels of ``out`` from products, ``step`` apart, which may be ``out`` itself; what of them is wanted is summed.

    count: of the channels, from ``channel`` on.
    """
    lanes = lanes_of(out)
    low, zero = splat(out, floor), splat(out, 0.0)
    for j in range(0, count, lanes):
        part, c = min(lanes, count - j), channel + j
        level = zero if bias is None else load_first(bias, c, part, zero)
        near, scale = _constant(source_affine, NEAR_MEAN, c, part, zero), _constant(source_affine, SCALE, c, part, zero)
        moved = _constant(source_affine, SHIFT, c, part, zero)
        if shifts is not None:
            near = load(products, start + j) + level
            if residual is not None:
                near = near + load_part(residual, at + j, part, zero)
            near = finite_or_zero(at_least(near, low))
            store(shifts, piece * shifts.shape[1] + c, near)
        about = widen(near)
        total = product = widen(zero)
        place = at + j
        i = start + j
        for _ in range(pixels):
            value = load(products, i)
            if bias is not None:
                value = value + level
            if residual is not None:
                value = value + load_part(residual, place, part, zero)
            value = at_least(value, low)
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
            set_to(partials, target, total)
            set_to(partials, partials.shape[1] * partials.shape[2] + target, product)


@body
def multiply_pixels(
    blocks, block, pixels, channels, panels, outputs, bias, residual, floor, out, first, streaming, shifts, source,
    source_relu, source_affine, partials, piece, panel,
):  # fmt: skip
    """out[first + p, o] = max(sum over channels c of blocks[c, p] * panels[c, o] + bias + residual, floor).

    The blocks have room for whole tiles of SLIM_ROWS pixels, and so has panel, of TILE_VECTORS vectors. streaming: past
    the caches. shifts, partials: sums as ``conv_blocks.correlate_blocks`` has them, of which ``piece`` is written, or
    None. residual may be ``out``.
    """
    lanes = lanes_of(out)
    breadth = TILE_VECTORS * lanes
    panel_size = -(-channels // lanes) * lanes * breadth
    for o in range(0, outputs, breadth):
        count, start = min(breadth, outputs - o), o // breadth * panel_size
        slim = count <= lanes
        height, width = (SLIM_ROWS, lanes) if slim else (TILE_ROWS, breadth)
        at = first * outputs + o
        direct = residual is None and not streaming and count == width and pixels % height == 0
        products, begin, step = (out, at, outputs) if direct else (panel, 0, width)
        for q in range(0, pixels, height):
            if slim:
                slim_point_tile(blocks, q * lanes, block, panels, start, channels, products, begin + q * step, step)
            else:
                point_tile(blocks, q * lanes, block, panels, start, channels, products, begin + q * step, step)
        if not direct or bias is not None or partials is not None or floor > -np.inf:
            _finish(
                products, begin, step, pixels, count, bias, residual, floor, out, at, outputs, o, streaming, shifts,
                source, source_relu, source_affine, partials, piece,
            )  # fmt: skip
    if streaming:
        fence()


@body
def _correlate_task(
    task, x, ceiling, affine, x_floor, pixels, channels, at_once, panels, outputs, bias, residual, floor, out,
    streaming, shifts, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    room = at_once * TILE_VECTORS * lanes
    panel, blocks = work[:room], work[room:]
    first = task * at_once
    count = min(at_once, pixels - first)
    block = at_once * lanes
    fill_pixels(x, None, ceiling, affine, None, x_floor, first, count, channels, blocks, block)
    multiply_pixels(
        blocks, block, count, channels, panels, outputs, bias, residual, floor, out, first, streaming, shifts, None,
        None, None, partials, task, panel,
    )  # fmt: skip


@driver
def correlate_points(
    x, ceiling, affine, x_floor, pixels, channels, at_once, panels, outputs, bias, residual, floor, out, streaming,
    shifts, partials, workspace, parallel,
):  # fmt: skip
    """out (pixels, outputs) = max(x (pixels, channels) * panels + bias + residual, floor), ``at_once`` pixels a task.

    All flat; ceiling, affine, x_floor: the prologue of x. streaming: out lies on whole vectors and is written past the
    caches. shifts, partials: moments, if not None, a task a piece, see ``conv_blocks.correlate_blocks``. at_once: whole
    tiles. workspace: (threads, a panel of ``at_once`` pixels and the blocks of a task).
    """
    tasks = -(-pixels // at_once)
    image = (x, ceiling, affine, x_floor, pixels, channels, at_once)
    share = (panels, outputs, bias, residual, floor, out, streaming, shifts, partials)
    if parallel:
        for task in prange(tasks):
            _correlate_task(int64(task), *image, *share, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _correlate_task(task, *image, *share, workspace[0])
