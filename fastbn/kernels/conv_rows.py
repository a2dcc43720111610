"""Rows of an image, a vector of channels at a time: pixels side by side, with zeros around them.

A convolution that walks down an image keeps the last rows that its window needs and fills each once. Prologues are
those of ``conv_fill``; their constants stay in registers along a row.
"""

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._vector import at_most, lanes_of, load_part, splat, store
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K


@inlined
def _of(values, row, c, count, zero):
    return zero if values is None else load_part(values, row * values.shape[1] + c, count, zero)


@inlined
def affine_of(affine, c, count, zero):
    """Near, scale and shift of the ``count`` channels from c; zeros where ``affine`` is None."""
    near, scale = _of(affine, NEAR_MEAN, c, count, zero), _of(affine, SCALE, c, count, zero)
    return near, scale, _of(affine, SHIFT, c, count, zero)


@inlined
def _value(x, partner, relu, affine, slopes, low, i, c, count, zero):
    """The first ``count`` elements of the vector at i, whose channels begin with c, as the prologue makes them."""
    if affine is None:
        value = load_part(x, i, count, zero)
    else:
        near, scale, shift = affine_of(affine, c, count, zero)
        whole = count == lanes_of(x)
        if slopes is None:
            if whole:
                value = at_most(normalized(x, None, None, i, 0, near, scale, shift, low), relu)
            else:
                value = at_most(normalized_first(x, None, None, i, count, 0, near, scale, shift, low), relu)
        else:
            a, b = _of(slopes, A, c, count, zero), _of(slopes, B, c, count, zero)
            k, inv_std = _of(slopes, K, c, count, zero), _of(slopes, NEAR_INV_STD, c, count, zero)
            if whole:
                value = gradient(x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None)
            else:
                value = gradient_first(x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None)
    return value


@body
def fill_row(
    x, partner, relu, affine, slopes, floor, at, stride, step, first, last, left, right, columns, rows, target, block
):  # fmt: skip
    """rows[target + c * block + column * lanes + lane] = the prologue of x, of channel first + c * lanes + lane.

    That of column ``left`` lies at ``at``, those of the next ``step`` further, the next channels' ``stride``. Zeros in
    columns outside ``left`` to ``right``, up to ``columns``, and in lanes of channels from ``last`` on.
    """
    lanes, zero, low = lanes_of(x), splat(x, 0.0), splat(x, floor)
    vectors, whole = -(-(last - first) // lanes), (last - first) // lanes
    for vector in range(vectors):
        place = target + vector * block
        for column in range(left):
            store(rows, place + column * lanes, zero)
        for column in range(right, columns):
            store(rows, place + column * lanes, zero)
    if stride == 1:
        for column in range(left, right):
            i, place = at + (column - left) * step, target + column * lanes
            for c in range(whole):
                store(
                    rows, place + c * block,
                    _value(x, partner, relu, affine, slopes, low, i + c * lanes, first + c * lanes, lanes, zero),
                )  # fmt: skip
            if whole < vectors:
                c, count = first + whole * lanes, last - first - whole * lanes
                rest = _value(x, partner, relu, affine, slopes, low, i + whole * lanes, c, count, zero)
                store(rows, place + whole * block, rest)
    else:
        for c in range(vectors * lanes):
            vector, lane = divmod(c, lanes)
            i, place = at + c * stride, target + vector * block + lane
            for column in range(left, right):
                rows[place + column * lanes] = x[i + (column - left) * step] if c < last - first else 0
