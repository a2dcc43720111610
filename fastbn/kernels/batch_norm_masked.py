"""Batch norm over what a mask keeps: sums of both directions, and the maps.

Of (N, C, S) arrays ("rows") with mask (N, S), and of matrices (M, C) with mask (M,): weights, in the dtype that x is
computed in. Where a weight is 0, x does not matter, whatever it holds, and 0 is written. With d = x - near, near being
row NEAR_MEAN of ``affine``; see ``channels``:

                sums over the kept                  map of the kept
    forward     weight d and weight d d             d scale + shift
    backward    dy and dy d                         a dy + weight (b d inv_std + k)

Forward is where dy is None. partials: (2, pieces, C to a whole vector) float64; a piece is decided by the shape alone.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_choice import where_positive
from fastbn.kernels._vector_memory import add_to, load_part, store_part
from fastbn.kernels.batch_norm_rows import row_offset
from fastbn.kernels.batch_norm_tiles import SUM_ROWS
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K
from fastbn.kernels.sums import chunk_bounds


@inlined
def _terms(dy, x, i, count, weight, near):
    """What is summed at offset i, and d."""
    wide = widen(weight)
    d = where_positive(wide, widen(load_part(x, i, count, near)) - widen(near))
    if dy is None:
        return wide * d, d
    return widen(where_positive(weight, load_part(dy, i, count, near))), d


@inlined
def _mapped(dy, x, i, count, weight, near, scale, shift, a, b, k, inv_std):
    """What is written at offset i."""
    d = load_part(x, i, count, near) - near
    if dy is None:
        return where_positive(weight, fma(d, scale, shift))
    return where_positive(weight, fma(load_part(dy, i, count, near), a, weight * fma(d * inv_std, b, k)))


@body
def _rows_sums_task(task, dy, x, mask, affine, n_block, s_block, partials):
    chunk, c = divmod(task, x.shape[1])
    n_first, n_last, s_first, s_last = chunk_bounds(chunk, x, n_block, s_block)
    lanes, zero, near = lanes_of(x), splat(x, 0.0), splat(x, affine[NEAR_MEAN, c])
    sums = products = widen(zero)
    for n in range(n_first, n_last):
        row, at = row_offset(x, n, c), n * x.shape[2]
        for s in range(s_first, s_last, lanes):
            count = min(lanes, s_last - s)
            v, d = _terms(dy, x, row + s, count, load_part(mask, at + s, count, zero), near)
            sums, products = sums + v, fma(v, d, products)
    partials[0, chunk, c], partials[1, chunk, c] = total(sums), total(products)


@driver
def masked_sums_rows(dy, x, mask, affine, n_block, s_block, partials, parallel):
    """partials of x (N, C, S), a chunk of ``sums.chunk_bounds`` a piece."""
    tasks = partials.shape[1] * x.shape[1]
    if parallel:
        for task in prange(tasks):
            _rows_sums_task(int64(task), dy, x, mask, affine, n_block, s_block, partials)
    else:
        for task in range(tasks):
            _rows_sums_task(task, dy, x, mask, affine, n_block, s_block, partials)


@body
def _matrix_sums_task(task, dy, x, mask, affine, rows, partials):
    last, columns = min(x.shape[0], (task + 1) * rows), x.shape[1]
    lanes, zero = lanes_of(x), splat(x, 0.0)
    sums, products = partials[0, task], partials[1, task]
    sums[:] = 0.0
    products[:] = 0.0
    for top in range(task * rows, last, SUM_ROWS):
        for j in range(0, columns, lanes):
            count = min(lanes, columns - j)
            near = load_part(affine, NEAR_MEAN * columns + j, count, zero)
            g = p = widen(zero)
            for m in range(top, min(last, top + SUM_ROWS)):
                v, d = _terms(dy, x, m * columns + j, count, splat(x, mask[m]), near)
                g, p = g + v, fma(v, d, p)
            add_to(sums, j, g)
            add_to(products, j, p)


@driver
def masked_sums_matrix(dy, x, mask, affine, rows, partials, parallel):
    """partials of x (M, C), ``rows`` rows a piece."""
    tasks = partials.shape[1]
    if parallel:
        for task in prange(tasks):
            _matrix_sums_task(int64(task), dy, x, mask, affine, rows, partials)
    else:
        for task in range(tasks):
            _matrix_sums_task(task, dy, x, mask, affine, rows, partials)


@body
def _rows_map_task(task, dy, x, mask, affine, slopes, block, out):
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for row in range(task * block, min(x.shape[0] * x.shape[1], (task + 1) * block)):
        n, c = divmod(row, x.shape[1])
        near, scale, shift = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c]), splat(x, affine[SHIFT, c])
        a, b = splat(x, slopes[A, c]), splat(x, slopes[B, c])
        k, inv_std = splat(x, slopes[K, c]), splat(x, slopes[NEAR_INV_STD, c])
        for s in range(0, x.shape[2], lanes):
            i, count = row * x.shape[2] + s, min(lanes, x.shape[2] - s)
            weight = load_part(mask, n * x.shape[2] + s, count, zero)
            store_part(out, i, _mapped(dy, x, i, count, weight, near, scale, shift, a, b, k, inv_std), count)


@driver
def masked_map_rows(dy, x, mask, affine, slopes, block, out, parallel):
    """The map of x (N, C, S), ``block`` rows (n, c) a task; out may be x in forward and dy in backward."""
    tasks = -(-x.shape[0] * x.shape[1] // block)
    if parallel:
        for task in prange(tasks):
            _rows_map_task(int64(task), dy, x, mask, affine, slopes, block, out)
    else:
        for task in range(tasks):
            _rows_map_task(task, dy, x, mask, affine, slopes, block, out)


@body
def _matrix_map_task(task, dy, x, mask, affine, slopes, block, out):
    first, last, columns = task * block, min(x.shape[0], (task + 1) * block), x.shape[1]
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for j in range(0, columns, lanes):
        count = min(lanes, columns - j)
        near = load_part(affine, NEAR_MEAN * columns + j, count, zero)
        scale = load_part(affine, SCALE * columns + j, count, zero)
        shift = load_part(affine, SHIFT * columns + j, count, zero)
        a, b = load_part(slopes, A * columns + j, count, zero), load_part(slopes, B * columns + j, count, zero)
        k = load_part(slopes, K * columns + j, count, zero)
        inv_std = load_part(slopes, NEAR_INV_STD * columns + j, count, zero)
        for m in range(first, last):
            i, weight = m * columns + j, splat(x, mask[m])
            store_part(out, i, _mapped(dy, x, i, count, weight, near, scale, shift, a, b, k, inv_std), count)


@driver
def masked_map_matrix(dy, x, mask, affine, slopes, block, out, parallel):
    """The map of x (M, C), ``block`` rows a task; out may be x in forward and dy in backward."""
    tasks = -(-x.shape[0] // block)
    if parallel:
        for task in prange(tasks):
            _matrix_map_task(int64(task), dy, x, mask, affine, slopes, block, out)
    else:
        for task in range(tasks):
            _matrix_map_task(task, dy, x, mask, affine, slopes, block, out)
