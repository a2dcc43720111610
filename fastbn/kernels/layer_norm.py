"""Layer norm of rows (1, R, L), whose weights and biases differ from element to element: (P, L), row r by r % P.

P is 1 for layer norm and RMS norm, and the number of groups for a group norm whose channels are too short to be mapped
one by one. A row's moments are a channel's of a single image, see ``batch_norm_rows``; where ``centred`` is False the
mean is taken as 0 and the variance as the mean square (RMS norm). Columns of ``stats`` and of ``affine``, which makes
xhat of x, are rows.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import add_to, fence, load, load_first, prefetch, put, store_first
from fastbn.kernels.batch_norm_rows import channel_moments
from fastbn.kernels.channels import INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K, set_affine, set_stats

ROOM = 1 << 16  # elements: of an array, in a core's second cache, beside those of others and of the next tile


@inlined
def next_tile(rows, length):
    """Elements from one of ``rows`` rows to that of the next tile, if both tiles find room in the cache; else 0."""
    return rows * length if rows * length <= ROOM else 0


@inlined
def _normalize_row(r, x, weight, bias, affine, lead, streaming, out):
    lanes, length = lanes_of(x), x.shape[2]
    near, scale, shift = splat(x, affine[NEAR_MEAN, r]), splat(x, affine[SCALE, r]), splat(x, affine[SHIFT, r])
    row, last = r * length, (r + 1) * length
    over = r % (weight.size // length) * length - row  # from an element to its weight
    whole = last - (length - lead) % lanes
    for i in range(row + lead, whole, lanes):
        xhat = fma(load(x, i) - near, scale, shift)
        put(out, i, fma(xhat, load(weight, i + over), load(bias, i + over)), streaming)
    for part in range(2):  # the ends of the row
        i, count = (row, lead) if part == 0 else (whole, last - whole)
        if count:
            xhat = fma(load_first(x, i, count, near) - near, scale, shift)
            w, b = load_first(weight, i + over, count, near), load_first(bias, i + over, count, near)
            store_first(out, i, fma(xhat, w, b), count)


@body
def _forward_task(
    task, x, weight, bias, centred, eps, chunk, block, tile, lead, streaming, stats, affine, out
):  # fmt: skip
    last = min(x.shape[1], (task + 1) * block)
    for first in range(task * block, last, tile):
        end = min(last, first + tile)
        for r in range(first, end):
            count, mean, squares = channel_moments(r, x, 1, chunk)
            var = squares / count
            if not centred:
                mean, var = 0.0, var + mean * mean
            set_affine(r, mean, set_stats(r, mean, var, eps, stats), 0.0, affine)
        for r in range(first, end):
            _normalize_row(r, x, weight, bias, affine, lead, streaming, out)
    if streaming:
        fence()


@driver
def forward_layers(
    x, weight, bias, centred, eps, chunk, block, tile, lead, streaming, stats, affine, out, parallel
):  # fmt: skip
    """stats, affine and out written; out may be x.

    A task has ``block`` rows, ``tile`` of them at a time: the constants of one row are made while the next is summed.
    chunk: elements of a row that are summed together.
    """
    tasks = -(-x.shape[1] // block)
    arguments = (x, weight, bias, centred, eps, chunk, block, tile, lead, streaming, stats, affine, out)
    if parallel:
        for task in prange(tasks):
            _forward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _forward_task(task, *arguments)


@body
def _set_slopes(r, dy, x, weight, centred, stats, affine, slopes):
    """Row r of slopes: dx = A g + B xhat + K, where g = dy weight."""
    lanes, length = lanes_of(x), x.shape[2]
    near, scale, shift = splat(x, affine[NEAR_MEAN, r]), splat(x, affine[SCALE, r]), splat(x, affine[SHIFT, r])
    zero = splat(x, 0.0)
    g0 = g1 = p0 = p1 = widen(zero)
    row, pattern = r * length, r % (weight.size // length) * length
    twos = length - length % (2 * lanes)
    for i in range(0, twos, 2 * lanes):
        g = widen(load(dy, row + i) * load(weight, pattern + i))
        g0, p0 = g0 + g, fma(g, widen(fma(load(x, row + i) - near, scale, shift)), p0)
        j = i + lanes
        g = widen(load(dy, row + j) * load(weight, pattern + j))
        g1, p1 = g1 + g, fma(g, widen(fma(load(x, row + j) - near, scale, shift)), p1)
    for i in range(twos, length, lanes):
        count = min(lanes, length - i)
        g = widen(load_first(dy, row + i, count, zero) * load_first(weight, pattern + i, count, zero))
        xhat = fma(load_first(x, row + i, count, near) - near, scale, shift)
        g0, p0 = g0 + g, fma(g, widen(xhat), p0)
    inv_std = stats[INV_STD, r]
    slopes[A, r] = inv_std
    slopes[B, r] = -inv_std * total(p0 + p1) / length
    slopes[K, r] = -inv_std * total(g0 + g1) / length if centred else 0.0


@inlined
def _gradient(r, g, d, w, x, affine, slopes):
    """dx and xhat, from dy, x - near and weight."""
    xhat = fma(d, splat(x, affine[SCALE, r]), splat(x, affine[SHIFT, r]))
    rest = fma(xhat, splat(x, slopes[B, r]), splat(x, slopes[K, r]))
    return fma(g * w, splat(x, slopes[A, r]), rest), xhat


@body
def _gradient_rows(first, last, step, dy, x, weight, affine, slopes, lead, streaming, sums, dx):
    """dx of rows first, first + step and so on; their g xhat and g are added to ``sums`` (2, L to a whole vector)."""
    lanes, length = lanes_of(x), x.shape[2]
    zero, columns = splat(x, 0.0), sums.shape[1]
    pattern = first % (weight.size // length) * length
    whole = length - (length - lead) % lanes
    ahead = next_tile(last - first, length)
    for j in range(lead, whole, lanes):
        w = load(weight, pattern + j)
        products = sum_g = widen(zero)
        for r in range(first, last, step):
            i = r * length + j
            prefetch(x, i + ahead)
            prefetch(dy, i + ahead)
            g = load(dy, i)
            v, xhat = _gradient(r, g, load(x, i) - splat(x, affine[NEAR_MEAN, r]), w, x, affine, slopes)
            put(dx, i, v, streaming)
            products, sum_g = fma(widen(g), widen(xhat), products), sum_g + widen(g)
        add_to(sums, j, products)
        add_to(sums, columns + j, sum_g)
    for part in range(2):  # the ends of the rows
        j, count = (0, lead) if part == 0 else (whole, length - whole)
        if count:
            w = load_first(weight, pattern + j, count, zero)
            products = sum_g = widen(zero)
            for r in range(first, last, step):
                i = r * length + j
                near = splat(x, affine[NEAR_MEAN, r])
                g = load_first(dy, i, count, zero)
                v, xhat = _gradient(r, g, load_first(x, i, count, near) - near, w, x, affine, slopes)
                store_first(dx, i, v, count)
                products, sum_g = fma(widen(g), widen(xhat), products), sum_g + widen(g)
            add_to(sums, j, products)
            add_to(sums, columns + j, sum_g)


@body
def _backward_task(
    task, dy, x, weight, centred, images, tile, lead, streaming, stats, affine, slopes, partials, dx
):  # fmt: skip
    patterns = weight.size // x.shape[2]
    block, pattern = divmod(task, patterns)
    sums = partials[block, pattern]
    sums[:] = 0.0
    last = min(x.shape[1], (block + 1) * images * patterns)
    for first in range(block * images * patterns + pattern, last, tile * patterns):
        end = min(last, first + tile * patterns)
        for r in range(first, end, patterns):
            _set_slopes(r, dy, x, weight, centred, stats, affine, slopes)
        _gradient_rows(first, end, patterns, dy, x, weight, affine, slopes, lead, streaming, sums, dx)
    if streaming:
        fence()


@driver
def backward_layers(
    dy, x, weight, centred, images, tile, lead, streaming, stats, affine, slopes, partials, dx, parallel
):  # fmt: skip
    """slopes (3, R), partials and dx written; dx may be dy.

    A task has the rows of one pattern in ``images`` runs of P rows, ``tile`` of them at a time.
    partials (tasks / P, P, 2, L to a whole vector): its sums of g xhat and of g.
    """
    tasks = partials.shape[0] * partials.shape[1]
    arguments = (dy, x, weight, centred, images, tile, lead, streaming, stats, affine, slopes, partials, dx)
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _backward_task(task, *arguments)
