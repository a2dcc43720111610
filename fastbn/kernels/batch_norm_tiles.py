"""Sums and maps of tiles: some rows of a matrix, and columns that belong to channels.

Vectors run along the columns, so sums, in float64, need no crossing of lanes. ``first`` is the offset of a tile's
first element, ``stride`` that from row to row. bits (rows, words): signs, every row of a tile from a new word on,
``word`` the tile's first. An operand that does not apply is None.
"""

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._vector import finite_or_zero, fma, lanes_of, splat, widen
from fastbn.kernels._vector_memory import add_to, fence, load, load_first, load_four, load_two, put, store, store_first
from fastbn.kernels.batch_norm_vectors import (
    FAR,
    ask,
    gradient,
    gradient_first,
    normalized,
    normalized_first,
    passed,
    words_of,
)
from fastbn.kernels.channels import NEAR_INV_STD, SCALE, SHIFT, A, B, K

# Rows that are read side by side, a vector of each, in sums of one array, and in sums of products and maps. The
# processor hardly sees what will be read next, and has to be asked.
SUM_ROWS = 16
ROWS = 4
NEAR = 1024  # elements, at least, that sums of products ask ahead


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
        ahead = SUM_ROWS * stride if bottom < rows else 0
        for j in range(0, twos, 2 * lanes):
            near = widen(load_two(shift, j))
            total = square = near - near
            i = first + top * stride + j
            for _ in range(top, bottom):
                ask(x, None, i + ahead, near)
                d = widen(load_two(x, i)) - near
                total, square = total + d, fma(d, d, square)
                i += stride
            add_to(sums, j, total)
            add_to(squares, j, square)
        for j in range(twos, columns, lanes):
            narrow = load(shift, j)
            near = widen(narrow)
            total = square = near - near
            i = first + top * stride + j
            for _ in range(top, bottom):
                d = widen(load_first(x, i, min(lanes, columns - j), narrow)) - near
                total, square = total + d, fma(d, d, square)
                i += stride
            add_to(sums, j, total)
            add_to(squares, j, square)


@body
def normalize_tile(x, residual, bits, out, first, rows, stride, columns, word, affine, column, floor, streaming):
    """affine: (3, columns), the tile's from ``column`` on."""
    lanes = lanes_of(x)
    zero = splat(x, 0.0)
    words = words_of(bits)
    scales, shifts = SCALE * affine.shape[1] + column, SHIFT * affine.shape[1] + column
    fours = columns - columns % (4 * lanes)
    ahead = max(FAR, ROWS * stride)
    for top in range(0, rows, ROWS):
        bottom = min(rows, top + ROWS)
        for j in range(0, fours, 4 * lanes):
            near, scale, shift = (
                load_four(affine, column + j),
                load_four(affine, scales + j),
                load_four(affine, shifts + j),
            )
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                if streaming:
                    ask(x, residual, i + ahead, near)
                put(out, i, normalized(x, residual, bits, i, w, near, scale, shift, floor), streaming)
                i += stride
                w += words
        for j in range(fours, columns, lanes):
            count = min(lanes, columns - j)
            near = load_first(affine, column + j, count, zero)
            scale, shift = load_first(affine, scales + j, count, zero), load_first(affine, shifts + j, count, zero)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                v = normalized_first(x, residual, bits, i, count, w, near, scale, shift, floor)
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
    fours = columns - columns % (4 * lanes)
    ahead = max(NEAR, ROWS * stride)
    for top in range(0, rows, ROWS):
        bottom = min(rows, top + ROWS)
        for j in range(0, fours, 4 * lanes):
            near, scale, shift = (
                load_four(affine, column + j),
                load_four(affine, scales + j),
                load_four(affine, shifts + j),
            )
            about = widen(near)
            sum_g = product = about - about
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                ask(x, dy, i + ahead, near)
                v = load_four(x, i)
                narrow = passed(load_four(dy, i), v - near, bits, w, relu, scale, shift)
                if dresidual is not None:
                    store(dresidual, i, narrow)
                g = widen(narrow)
                sum_g, product = sum_g + g, fma(g, widen(v) - about, product)
                i += stride
                w += words
            add_to(sums, j, sum_g)
            add_to(products, j, product)
        for j in range(fours, columns, lanes):
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
    ahead = max(FAR, ROWS * stride)
    for top in range(0, rows, ROWS):
        bottom = min(rows, top + ROWS)
        for j in range(0, fours, 4 * lanes):
            m = column + j
            near = load_four(affine, m)
            scale, shift = load_four(affine, SCALE * width + m), load_four(affine, SHIFT * width + m)
            a, b = load_four(slopes, A * width + m), load_four(slopes, B * width + m)
            k, inv_std = load_four(slopes, K * width + m), load_four(slopes, NEAR_INV_STD * width + m)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                if streaming:
                    ask(x, dy, i + ahead, near)
                v = gradient(dy, x, bits, relu, i, w, streaming, near, scale, shift, a, b, k, inv_std, dresidual)
                put(dx, i, v, streaming)
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
