"""Sums and maps of tiles: some rows of a matrix, and columns that belong to channels.

Vectors run along the columns, so sums, in float64, need no crossing of lanes. ``first`` is the offset of a tile's
first element, ``stride`` that from row to row. bits (rows, words): signs, every row of a tile from a new word on,
``word`` the tile's first. An operand that does not apply is None.
"""

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._vector import (
    add_to,
    fence,
    finite_or_zero,
    fma,
    lanes_of,
    load,
    load_first,
    prefetch,
    put,
    splat,
    store,
    store_first,
    widen,
)
from fastbn.kernels.batch_norm_vectors import (
    gradient,
    gradient_first,
    normalized,
    normalized_first,
    passed,
    words_of,
)
from fastbn.kernels.channels import NEAR_INV_STD, SCALE, SHIFT, A, B, K

SUM_ROWS = 16  # summed side by side
MAP_ROWS = 4  # mapped side by side
# Elements from row to row, up to which the processor does not see that the next rows will be read: they share pages.
NARROW = 1024


@inlined
def whole_vectors(count, lanes):
    """``count`` filled up to whole vectors."""
    return -(-count // lanes) * lanes


@inlined
def set_shift(x, first, columns, s, shift):
    """The first value of each channel, for all its ``s`` columns; 0 where that is not finite."""
    lanes = lanes_of(x)
    for j in range(0, columns, lanes):
        store(shift, j, finite_or_zero(load_first(x, first + j, min(lanes, columns - j), splat(x, 0.0))))
    if s > 1:
        for j in range(columns):
            shift[j] = shift[j - j % s]


@body
def tile_sums(x, first, rows, stride, columns, shift, sums, squares):
    """Each column's sums of d = x - shift and of d d."""
    lanes = lanes_of(x)
    sums[:] = 0.0
    squares[:] = 0.0
    twos = columns - columns % (2 * lanes)
    for top in range(0, rows, SUM_ROWS):
        bottom = min(rows, top + SUM_ROWS)
        ahead = SUM_ROWS * stride if bottom < rows and stride <= NARROW else 0
        for j in range(0, twos, 2 * lanes):
            near0, near1 = widen(load(shift, j)), widen(load(shift, j + lanes))
            d0 = d1 = q0 = q1 = near0 - near0
            i = first + top * stride + j
            for _ in range(top, bottom):
                prefetch(x, i + ahead)
                prefetch(x, i + ahead + lanes)
                a, b = widen(load(x, i)) - near0, widen(load(x, i + lanes)) - near1
                d0, d1, q0, q1 = d0 + a, d1 + b, fma(a, a, q0), fma(b, b, q1)
                i += stride
            add_to(sums, j, d0)
            add_to(sums, j + lanes, d1)
            add_to(squares, j, q0)
            add_to(squares, j + lanes, q1)
        for j in range(twos, columns, lanes):
            narrow = load(shift, j)
            near = widen(narrow)
            d0 = q0 = near - near
            i = first + top * stride + j
            for _ in range(top, bottom):
                a = widen(load_first(x, i, min(lanes, columns - j), narrow)) - near
                d0, q0 = d0 + a, fma(a, a, q0)
                i += stride
            add_to(sums, j, d0)
            add_to(squares, j, q0)


@inlined
def _four(array, i):
    """Four vectors side by side."""
    lanes = lanes_of(array)
    return load(array, i), load(array, i + lanes), load(array, i + 2 * lanes), load(array, i + 3 * lanes)


@inlined
def _put_four(array, i, v0, v1, v2, v3, streaming):
    lanes = lanes_of(array)
    put(array, i, v0, streaming)
    put(array, i + lanes, v1, streaming)
    put(array, i + 2 * lanes, v2, streaming)
    put(array, i + 3 * lanes, v3, streaming)


@body
def normalize_tile(x, residual, bits, out, first, rows, stride, columns, word, affine, column, floor, streaming):
    """affine: (3, columns), the tile's from ``column`` on."""
    lanes = lanes_of(x)
    low, zero = splat(x, floor), splat(x, 0.0)
    words = words_of(bits)
    scales, shifts = SCALE * affine.shape[1] + column, SHIFT * affine.shape[1] + column
    fours = columns - columns % (4 * lanes)
    for top in range(0, rows, MAP_ROWS):
        bottom = min(rows, top + MAP_ROWS)
        for j in range(0, fours, 4 * lanes):
            n0, n1, n2, n3 = _four(affine, column + j)
            s0, s1, s2, s3 = _four(affine, scales + j)
            t0, t1, t2, t3 = _four(affine, shifts + j)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                v0 = normalized(x, residual, bits, i, w, n0, s0, t0, low)
                v1 = normalized(x, residual, bits, i + lanes, w + 1, n1, s1, t1, low)
                v2 = normalized(x, residual, bits, i + 2 * lanes, w + 2, n2, s2, t2, low)
                v3 = normalized(x, residual, bits, i + 3 * lanes, w + 3, n3, s3, t3, low)
                _put_four(out, i, v0, v1, v2, v3, streaming)
                i += stride
                w += words
        for j in range(fours, columns, lanes):
            count = min(lanes, columns - j)
            near = load_first(affine, column + j, count, zero)
            scale, shift = load_first(affine, scales + j, count, zero), load_first(affine, shifts + j, count, zero)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                v = normalized_first(x, residual, bits, i, count, w, near, scale, shift, low)
                store_first(out, i, v, count)
                i += stride
                w += words
    if streaming:
        fence()


@body
def tile_products(
    dy, x, bits, relu, first, rows, stride, columns, word, affine, column, sums, products, dresidual
):  # fmt: skip
    """Each column's sums of g and of g (x - mean); g into dresidual.

    affine: (3, columns), the tile's from ``column`` on.
    """
    lanes = lanes_of(x)
    scales, shifts = SCALE * affine.shape[1] + column, SHIFT * affine.shape[1] + column
    words = words_of(bits)
    zero = splat(x, 0.0)
    sums[:] = 0.0
    products[:] = 0.0
    twos = columns - columns % (2 * lanes)
    for top in range(0, rows, SUM_ROWS):
        bottom = min(rows, top + SUM_ROWS)
        ahead = SUM_ROWS * stride if bottom < rows and stride <= NARROW else 0
        for j in range(0, twos, 2 * lanes):
            near0, near1 = load(affine, column + j), load(affine, column + j + lanes)
            scale0, scale1 = load(affine, scales + j), load(affine, scales + j + lanes)
            shift0, shift1 = load(affine, shifts + j), load(affine, shifts + j + lanes)
            about0, about1 = widen(near0), widen(near1)
            g0 = g1 = p0 = p1 = widen(zero)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                prefetch(x, i + ahead)
                prefetch(x, i + ahead + lanes)
                prefetch(dy, i + ahead)
                prefetch(dy, i + ahead + lanes)
                v0, v1 = load(x, i), load(x, i + lanes)
                passed0 = passed(load(dy, i), v0 - near0, bits, w, relu, scale0, shift0)
                passed1 = passed(load(dy, i + lanes), v1 - near1, bits, w + 1, relu, scale1, shift1)
                if dresidual is not None:
                    store(dresidual, i, passed0)
                    store(dresidual, i + lanes, passed1)
                a, b = widen(passed0), widen(passed1)
                g0, g1 = g0 + a, g1 + b
                p0, p1 = fma(a, widen(v0) - about0, p0), fma(b, widen(v1) - about1, p1)
                i += stride
                w += words
            add_to(sums, j, g0)
            add_to(sums, j + lanes, g1)
            add_to(products, j, p0)
            add_to(products, j + lanes, p1)
        for j in range(twos, columns, lanes):
            count = min(lanes, columns - j)
            near = load_first(affine, column + j, count, zero)
            scale, shift = load_first(affine, scales + j, count, zero), load_first(affine, shifts + j, count, zero)
            about = widen(near)
            sum_g = product = widen(zero)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                v = load_first(x, i, count, near)
                narrow = passed(load_first(dy, i, count, zero), v - near, bits, w, relu, scale, shift)
                if dresidual is not None:
                    store_first(dresidual, i, narrow, count)
                g = widen(narrow)
                sum_g, product = sum_g + g, fma(g, widen(v) - about, product)
                i += stride
                w += words
            add_to(sums, j, sum_g)
            add_to(products, j, product)


@body
def gradient_tile(
    dy, x, bits, relu, first, rows, stride, columns, word, affine, slopes, column, streaming, dx, dresidual
):
    """affine (3, columns), slopes (4, columns): the tile's from ``column`` on."""
    lanes = lanes_of(x)
    zero = splat(x, 0.0)
    words, width = words_of(bits), affine.shape[1]
    fours = columns - columns % (4 * lanes)
    for top in range(0, rows, MAP_ROWS):
        bottom = min(rows, top + MAP_ROWS)
        for j in range(0, fours, 4 * lanes):
            m = column + j
            n0, n1, n2, n3 = _four(affine, m)
            s0, s1, s2, s3 = _four(affine, SCALE * width + m)
            t0, t1, t2, t3 = _four(affine, SHIFT * width + m)
            a0, a1, a2, a3 = _four(slopes, A * width + m)
            b0, b1, b2, b3 = _four(slopes, B * width + m)
            k0, k1, k2, k3 = _four(slopes, K * width + m)
            r0, r1, r2, r3 = _four(slopes, NEAR_INV_STD * width + m)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                i1, i2, i3 = i + lanes, i + 2 * lanes, i + 3 * lanes
                v0 = gradient(dy, x, bits, relu, i, w, streaming, n0, s0, t0, a0, b0, k0, r0, dresidual)
                v1 = gradient(dy, x, bits, relu, i1, w + 1, streaming, n1, s1, t1, a1, b1, k1, r1, dresidual)
                v2 = gradient(dy, x, bits, relu, i2, w + 2, streaming, n2, s2, t2, a2, b2, k2, r2, dresidual)
                v3 = gradient(dy, x, bits, relu, i3, w + 3, streaming, n3, s3, t3, a3, b3, k3, r3, dresidual)
                _put_four(dx, i, v0, v1, v2, v3, streaming)
                i += stride
                w += words
        for j in range(fours, columns, lanes):
            m, count = column + j, min(lanes, columns - j)
            near = load_first(affine, m, count, zero)
            scale = load_first(affine, SCALE * width + m, count, zero)
            shift = load_first(affine, SHIFT * width + m, count, zero)
            a, b = load_first(slopes, A * width + m, count, zero), load_first(slopes, B * width + m, count, zero)
            k = load_first(slopes, K * width + m, count, zero)
            inv_std = load_first(slopes, NEAR_INV_STD * width + m, count, zero)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                v = gradient_first(dy, x, bits, relu, i, count, w, near, scale, shift, a, b, k, inv_std, dresidual)
                store_first(dx, i, v, count)
                i += stride
                w += words
    if streaming:
        fence()
