"""Pixels of channels-last arrays, read into blocks and written from tiles; see ``conv_point``.

Prologues are those of ``conv_fill``.
"""

from fastbn.kernels._jit import body, inlined, part
from fastbn.kernels._vector import at_most, bounds_of, finite_or_zero, fma, lanes_of, splat, widen, within
from fastbn.kernels._vector_memory import (
    add_to,
    load,
    load_first,
    load_part,
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
    return zero if values is None else load_part(values, row * values.shape[1] + c, count, zero)


@inlined
def _least(affine, floor, x, c, count, zero):
    """What is cut below: the row FLOOR of the constants, if there is one."""
    low = splat(x, floor)
    if affine is not None and affine.shape[0] > FLOOR:
        low = _constant(affine, FLOOR, c, count, zero)
    return low


@inlined
def _constants(affine, slopes, x, floor, c, count, zero):
    """Of a prologue, for channels from c on."""
    return (
        _constant(affine, NEAR_MEAN, c, count, zero),
        _constant(affine, SCALE, c, count, zero),
        _constant(affine, SHIFT, c, count, zero),
        _least(affine, floor, x, c, count, zero),
        _constant(slopes, A, c, count, zero),
        _constant(slopes, B, c, count, zero),
        _constant(slopes, K, c, count, zero),
        _constant(slopes, NEAR_INV_STD, c, count, zero),
    )


@part
def _through(x, partner, relu, affine, slopes, i, count, zero, constants):
    """The first ``count`` elements at i, through a prologue; 0 behind them."""
    near, scale, shift, low, a, b, k, inv_std = constants
    if affine is None:
        value = load_part(x, i, count, zero)
    elif slopes is None:
        if count == lanes_of(x):
            value = at_most(normalized(x, None, None, i, 0, near, scale, shift, low), relu)
        else:
            value = at_most(normalized_first(x, None, None, i, count, 0, near, scale, shift, low), relu)
    elif count == lanes_of(x):
        value = gradient(x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None)
    else:
        value = gradient_first(x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None)
    return value


@part
def behind_prologue(x, partner, relu, affine, slopes, floor, i, c, count, zero):
    """The first ``count`` elements at i, of channels from c on, through their prologue; 0 behind them."""
    constants = _constants(affine, slopes, x, floor, c, count, zero)
    return _through(x, partner, relu, affine, slopes, i, count, zero, constants)


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
            constants = _constants(affine, slopes, x, floor, at, count, zero)
            i = (first + top) * width + at
            target = c // lanes * block + top * lanes
            for _ in range(rows):
                store(blocks, target, _through(x, partner, relu, affine, slopes, i, count, zero, constants))
                i += width
                target += lanes


@body
def finish_pixels(
    tile, step, pixels, count, first, bias, residual, limits, out, at, outputs, channel, streaming, shifts, source,
    source_relu, source_affine, partials, piece,
):  # fmt: skip
    """Pixels of ``out``, from ``at`` on, from a tile's, ``step`` apart; what of them is wanted is summed, in ``out``'s
    dtype, and added to ``partials`` in float64.

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
        total = product = zero
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
                d = value - near
                total, product = total + d, fma(d, d, product)
            if source is not None:
                d = load_part(source, place, part, near) - near
                g = passed(value, d, None, 0, source_relu, scale, moved)
                total, product = total + g, fma(g, d, product)
            i += step
            place += outputs
        if partials is not None:
            target = piece * partials.shape[2] + c
            behind = partials.shape[1] * partials.shape[2] + target
            if first:
                set_to(partials, target, widen(total))
                set_to(partials, behind, widen(product))
            else:
                add_to(partials, target, widen(total))
                add_to(partials, behind, widen(product))
