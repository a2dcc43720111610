"""Rows of an image, a vector of channels at a time: pixels side by side, with zeros around them.

A convolution that walks down an image keeps the last rows that its window needs and fills each once. Prologues are
those of ``conv_fill``; their constants stay in registers along a row.
"""

from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import at_most, lanes_of, load_first, load_part, prefetch, splat, store
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K


@inlined
def _of(values, row, c, count, zero):
    return zero if values is None else load_first(values, row * values.shape[1] + c, count, zero)


@inlined
def affine_of(affine, c, count, zero):
    """Near, scale and shift of the ``count`` channels from c; zeros where ``affine`` is None."""
    near, scale = _of(affine, NEAR_MEAN, c, count, zero), _of(affine, SCALE, c, count, zero)
    return near, scale, _of(affine, SHIFT, c, count, zero)


@inlined
def slopes_of(slopes, c, count, zero):
    """A, b, k and 1 / std likewise."""
    a, b = _of(slopes, A, c, count, zero), _of(slopes, B, c, count, zero)
    return a, b, _of(slopes, K, c, count, zero), _of(slopes, NEAR_INV_STD, c, count, zero)


@inlined
def _value(x, partner, relu, affine, slopes, low, i, count, line, slope):
    """The first ``count`` elements of the vector at i, as the prologue makes them."""
    if affine is None:
        value = load_part(x, i, count, splat(x, 0.0))
    else:
        near, scale, shift = line
        whole = count == lanes_of(x)
        if slopes is None:
            if whole:
                value = at_most(normalized(x, None, None, i, 0, near, scale, shift, low), relu)
            else:
                value = at_most(normalized_first(x, None, None, i, count, 0, near, scale, shift, low), relu)
        else:
            a, b, k, inv_std = slope
            if whole:
                value = gradient(x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None)
            else:
                value = gradient_first(x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None)
    return value


@inlined
def fill_row(
    x, partner, relu, affine, slopes, low, line, slope, at, stride, step, count, left, right, columns, rows, target,
    ahead,
):  # fmt: skip
    """rows[target + column * lanes + lane] = the prologue of x[at + (column - left) * step + lane * stride].

    For columns from ``left`` up to ``right`` and lanes below ``count``; zeros in the others, up to ``columns``.
    line, slope: ``affine_of`` and ``slopes_of`` these channels. ahead: how far on to read for the cache, 0 for not.
    """
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for column in range(left):
        store(rows, target + column * lanes, zero)
    for column in range(right, columns):
        store(rows, target + column * lanes, zero)
    if stride == 1:
        i = at
        for column in range(left, right):
            prefetch(x, i + ahead)
            if partner is not None:
                prefetch(partner, i + ahead)
            store(rows, target + column * lanes, _value(x, partner, relu, affine, slopes, low, i, count, line, slope))
            i += step
    else:
        for column in range(left, right):
            i, place = at + (column - left) * step, target + column * lanes
            for lane in range(count):
                rows[place + lane] = x[i + lane * stride]
            for lane in range(count, lanes):
                rows[place + lane] = 0
