"""Batch norm of (N, C, S) arrays whose rows (n, c) are long: backward, in the chunks and tasks of ``batch_norm_rows``.

``backward_rows`` where a task owns channels; ``products_rows``, then ``gradient_rows`` where they are too few.
g, that is dy where a ReLU let pass, goes into ``dresidual`` with the sums: rows that begin and end anywhere are written
one array at a time, for a core joins stores to a line only where they follow each other.
Of a ReLU's operand the sign is kept in ``bits``, or computed again if ``relu`` is True; None where there was none.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import fence, load, load_first, prefetch, put, store_first
from fastbn.kernels.batch_norm_rows import ahead_of, row_offset, row_step
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, passed, words_of
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K
from fastbn.kernels.finish import finish_backward
from fastbn.kernels.sums import chunk_bounds, chunks_of


@inlined
def _chunk_products(bounds, c, dy, x, bits, relu, affine, streaming, dresidual):
    """Sums of g and of g (x - affine's mean) of channel c in a chunk of ``chunk_bounds``; g into dresidual."""
    n_first, n_last, s_first, s_last = bounds
    lanes = lanes_of(x)
    near, scale, shift = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c]), splat(x, affine[SHIFT, c])
    zero = splat(x, 0.0)
    about = widen(near)
    g0 = g1 = p0 = p1 = widen(zero)
    next_row = row_step(x)
    for n in range(n_first, n_last):
        first = row_offset(x, n, c) + s_first
        last = first + s_last - s_first
        word = (n * x.shape[1] + c) * words_of(bits) + s_first // lanes
        twos = last - (last - first) % (2 * lanes)
        for i in range(first, twos, 2 * lanes):
            ahead = ahead_of(i, first, last, next_row)
            prefetch(x, ahead)
            prefetch(x, ahead + lanes)
            prefetch(dy, ahead)
            prefetch(dy, ahead + lanes)
            v0, v1 = load(x, i), load(x, i + lanes)
            passed0 = passed(load(dy, i), v0 - near, bits, word, relu, scale, shift)
            passed1 = passed(load(dy, i + lanes), v1 - near, bits, word + 1, relu, scale, shift)
            if dresidual is not None:
                put(dresidual, i, passed0, streaming)
                put(dresidual, i + lanes, passed1, streaming)
            a, b = widen(passed0), widen(passed1)
            g0, g1 = g0 + a, g1 + b
            p0, p1 = fma(a, widen(v0) - about, p0), fma(b, widen(v1) - about, p1)
            word += 2
        for i in range(twos, last, lanes):
            count = min(lanes, last - i)
            v = load_first(x, i, count, near)
            narrow = passed(load_first(dy, i, count, zero), v - near, bits, word, relu, scale, shift)
            if dresidual is not None:
                store_first(dresidual, i, narrow, count)
            g = widen(narrow)
            g0, p0 = g0 + g, fma(g, widen(v) - about, p0)
            word += 1
    return total(g0 + g1), total(p0 + p1)


@body
def channel_products(c, dy, x, bits, relu, affine, n_block, s_block):
    """Sums of g and of g (x - affine's mean) of channel c, chunk by chunk."""
    sum_g = 0.0
    product = 0.0
    for chunk in range(chunks_of(x, n_block, s_block)):
        bounds = chunk_bounds(chunk, x, n_block, s_block)
        g, p = _chunk_products(bounds, c, dy, x, bits, relu, affine, False, None)
        sum_g += g
        product += p
    return sum_g, product


@inlined
def _add_chunk(chunk, first, last, dy, x, bits, relu, affine, n_block, s_block, sums, streaming, dresidual):
    """The chunk's sums added to those in sums (2, C), of g and of g (x - affine's mean); the first chunk sets them.

    Channels from first to last. g into dresidual.
    """
    bounds = chunk_bounds(chunk, x, n_block, s_block)
    for c in range(first, last):
        g, product = _chunk_products(bounds, c, dy, x, bits, relu, affine, streaming, dresidual)
        sums[0, c], sums[1, c] = (g + sums[0, c], product + sums[1, c]) if chunk else (g, product)


@inlined
def gradient_row(n, c, dy, x, bits, relu, affine, slopes, lead, streaming, dx):
    """Row (n, c) of dx, by column c of ``affine`` and ``slopes``."""
    lanes = lanes_of(x)
    near, scale, shift = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c]), splat(x, affine[SHIFT, c])
    a, b = splat(x, slopes[A, c]), splat(x, slopes[B, c])
    k, inv_std = splat(x, slopes[K, c]), splat(x, slopes[NEAR_INV_STD, c])
    row = row_offset(x, n, c)
    last = row + x.shape[2]
    word = (n * x.shape[1] + c) * words_of(bits)
    whole = last - (x.shape[2] - lead) % lanes
    for i in range(row + lead, whole, lanes):
        v = gradient(dy, x, bits, relu, i, word, streaming, near, scale, shift, a, b, k, inv_std, None)
        put(dx, i, v, streaming)
        word += 1
    for part in range(2):  # the ends of the row; with bits there is no lead
        i, count = (row, lead) if part == 0 else (whole, last - whole)
        if count:
            v = gradient_first(dy, x, bits, relu, i, count, word, near, scale, shift, a, b, k, inv_std, None)
            store_first(dx, i, v, count)


@body
def _backward_task(
    task,
    dy,
    x,
    bits,
    relu,
    batch_stats,
    n_block,
    s_block,
    block,
    lead,
    streaming,
    sums,
    stats,
    affine,
    slopes,
    gradients,
    dx,
    dresidual,
):
    first = task * block
    last = min(x.shape[1], first + block)
    for chunk in range(chunks_of(x, n_block, s_block)):
        _add_chunk(chunk, first, last, dy, x, bits, relu, affine, n_block, s_block, sums, streaming, dresidual)
    sum_g, products, count = sums[0, first:], sums[1, first:], x.shape[0] * x.shape[2]
    finish_backward(first, last, count, sum_g, products, batch_stats, stats, affine, slopes, gradients)
    for n in range(x.shape[0] - 1, -1, -1):  # the images read last are still in cache
        for c in range(first, last):
            gradient_row(n, c, dy, x, bits, relu, affine, slopes, lead, streaming, dx)
    if streaming:
        fence()


@driver
def backward_rows(
    dy,
    x,
    bits,
    relu,
    batch_stats,
    n_block,
    s_block,
    block,
    lead,
    streaming,
    sums,
    stats,
    affine,
    slopes,
    gradients,
    dx,
    dresidual,
    parallel,
):
    """``block`` channels a task: slopes and gradients written, then dx and dresidual as by ``gradient_rows``.

    gradients (2, C): dweight, dbias. sums: (2, C) float64, a workspace. dx may be dy.
    """
    tasks = -(-x.shape[1] // block)
    grid, outputs = (n_block, s_block, block, lead, streaming), (sums, stats, affine, slopes, gradients, dx, dresidual)
    arguments = (dy, x, bits, relu, batch_stats, *grid, *outputs)
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _backward_task(task, *arguments)


@inlined
def _products_task(task, dy, x, bits, relu, affine, n_block, s_block, streaming, partials, dresidual):
    chunk, c = divmod(task, x.shape[1])
    bounds = chunk_bounds(chunk, x, n_block, s_block)
    g, product = _chunk_products(bounds, c, dy, x, bits, relu, affine, streaming, dresidual)
    partials[chunk, 0, c], partials[chunk, 1, c] = g, product
    if streaming and dresidual is not None:
        fence()


@driver
def products_rows(
    dy,
    x,
    bits,
    relu,
    batch_stats,
    n_block,
    s_block,
    streaming,
    partials,
    stats,
    affine,
    slopes,
    gradients,
    dresidual,
    parallel,
):
    """A chunk of a channel a task: slopes, gradients and dresidual written. partials: (chunks, 2, C), a workspace."""
    chunks = chunks_of(x, n_block, s_block)
    if parallel:
        for task in prange(chunks * x.shape[1]):
            _products_task(int64(task), dy, x, bits, relu, affine, n_block, s_block, streaming, partials, dresidual)
    else:
        for task in range(chunks * x.shape[1]):
            _products_task(task, dy, x, bits, relu, affine, n_block, s_block, streaming, partials, dresidual)
    channels = x.shape[1]
    for chunk in range(1, chunks):
        for c in range(channels):
            partials[0, 0, c] += partials[chunk, 0, c]
            partials[0, 1, c] += partials[chunk, 1, c]
    sum_g, products, count = partials[0, 0], partials[0, 1], x.shape[0] * x.shape[2]
    finish_backward(0, channels, count, sum_g, products, batch_stats, stats, affine, slopes, gradients)


@body
def _gradient_task(task, dy, x, bits, relu, block, lead, streaming, affine, slopes, dx):
    n, c = divmod(task * block, x.shape[1])
    for _ in range(min(block, x.shape[0] * x.shape[1] - task * block)):
        gradient_row(n, c, dy, x, bits, relu, affine, slopes, lead, streaming, dx)
        c += 1
        if c == x.shape[1]:
            n, c = n + 1, 0
    if streaming:
        fence()


@driver
def gradient_rows(dy, x, bits, relu, block, lead, streaming, affine, slopes, dx, parallel):
    """dx = a g + b (x - mean) inv_std + k; ``block`` rows a task. g is dy where the ReLU let pass.

    dx may be dy.
    """
    tasks = -(-x.shape[0] * x.shape[1] // block)
    arguments = (dy, x, bits, relu, block, lead, streaming, affine, slopes, dx)
    if parallel:
        for task in prange(tasks):
            _gradient_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _gradient_task(task, *arguments)
