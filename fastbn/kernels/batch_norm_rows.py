"""Batch norm of (N, C, S) arrays whose rows (n, c) are long: one run of memory, one channel's constants.

A channel is read in chunks that the shape alone decides; sums of d = x - shift and d d are taken in float64, and chunks
are merged in order. A task that owns whole channels normalises them while they
are in its core's cache: ``forward_rows``, ``backward_rows``. Where channels are too few to go round, the chunks are
the tasks: ``moments_rows`` then ``normalize_rows``, ``products_rows`` then ``gradient_rows``.

n_block, s_block: images and positions of a chunk. lead: elements of every row before its first whole vector, so that
streamed vectors lie aligned. bits (N, C, words): a row's signs, one word a vector, for a ReLU whose sign cannot be
computed again. An operand that does not apply is an array of size 0.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import (
    at_least,
    element,
    fence,
    finite_or_zero,
    fma,
    lanes_of,
    load,
    load_first,
    mean,
    splat,
    store,
    store_first,
    store_signs,
    stream,
    total,
    where_bits,
    where_positive,
    widen,
)
from fastbn.kernels.channels import (
    NEAR_INV_STD,
    NEAR_MEAN,
    SCALE,
    SHIFT,
    A,
    B,
    K,
    finish_backward,
    finish_inference,
    finish_training,
    first_negative,
    merge,
    run_moments,
)


@inlined
def _chunk(chunk, x, n_block, s_block):
    """First and last image, first and last position."""
    i, j = divmod(chunk, -(-x.shape[2] // s_block))
    n_last, s_last = min(x.shape[0], (i + 1) * n_block), min(x.shape[2], (j + 1) * s_block)
    return i * n_block, n_last, j * s_block, s_last


@inlined
def _chunks(x, n_block, s_block):
    """Chunks of a channel."""
    return -(-x.shape[0] // n_block) * -(-x.shape[2] // s_block)


@inlined
def _row(x, n, c):
    """Offset of the first element of row (n, c)."""
    return (n * x.shape[1] + c) * x.shape[2]


@body
def _chunk_moments(chunk, c, x, n_block, s_block):
    """Count, mean and sum of squares about it of channel c in a chunk."""
    n_first, n_last, s_first, s_last = _chunk(chunk, x, n_block, s_block)
    lanes = lanes_of(x)
    near = finite_or_zero(splat(x, element(x, _row(x, n_first, c) + s_first)))
    shift = widen(near)
    d0 = d1 = q0 = q1 = widen(splat(x, 0.0))
    for n in range(n_first, n_last):
        first = _row(x, n, c) + s_first
        last = first + s_last - s_first
        twos = last - (last - first) % (2 * lanes)
        for i in range(first, twos, 2 * lanes):
            a, b = widen(load(x, i)) - shift, widen(load(x, i + lanes)) - shift
            d0, d1, q0, q1 = d0 + a, d1 + b, fma(a, a, q0), fma(b, b, q1)
        for i in range(twos, last, lanes):
            a = widen(load_first(x, i, min(lanes, last - i), near)) - shift
            d0, q0 = d0 + a, fma(a, a, q0)
    count = (n_last - n_first) * (s_last - s_first)
    about, squares = run_moments(mean(shift), total(d0 + d1), total(q0 + q1), count)
    return count, about, squares


@inlined
def _normalize_part(x, residual, bits, out, i, count, word, near, scale, shift, low):
    """The first or last elements of a row, too few for a vector."""
    v = fma(load_first(x, i, count, near) - near, scale, shift)
    if residual.size:
        v = v + load_first(residual, i, count, near)
    if bits.size:
        store_signs(bits, word, v)
    store_first(out, i, at_least(v, low), count)


@inlined
def _normalize_row(n, c, x, residual, bits, affine, floor, lead, streaming, out):
    lanes = lanes_of(x)
    near, scale = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c])
    shift, low = splat(x, affine[SHIFT, c]), splat(x, floor)
    row = _row(x, n, c)
    word = (n * x.shape[1] + c) * bits.shape[2]
    if lead:
        _normalize_part(x, residual, bits, out, row, lead, word, near, scale, shift, low)
        word += 1
    last = row + x.shape[2]
    whole = last - (x.shape[2] - lead) % lanes
    for i in range(row + lead, whole, lanes):
        v = fma(load(x, i) - near, scale, shift)
        if residual.size:
            v = v + load(residual, i)
        if bits.size:
            store_signs(bits, word, v)
            word += 1
        v = at_least(v, low)
        if streaming:
            stream(out, i, v)
        else:
            store(out, i, v)
    if whole < last:
        _normalize_part(x, residual, bits, out, whole, last - whole, word, near, scale, shift, low)


@body
def _forward_task(
    task,
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    momentum,
    eps,
    n_block,
    s_block,
    block,
    stats,
    affine,
    floor,
    lead,
    streaming,
    bits,
    out,
):
    first = task * block
    last = min(x.shape[1], first + block)
    for c in range(first, last):
        count = 0
        about = 0.0
        squares = 0.0
        for chunk in range(_chunks(x, n_block, s_block)):
            k, about_k, squares_k = _chunk_moments(chunk, c, x, n_block, s_block)
            about, squares = merge(count, about, squares, k, about_k, squares_k)
            count += k
        finish_training(c, count, about, squares, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    for n in range(x.shape[0]):
        for c in range(first, last):
            _normalize_row(n, c, x, residual, bits, affine, floor, lead, streaming, out)
    if streaming:
        fence()


@driver
def forward_rows(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    momentum,
    eps,
    n_block,
    s_block,
    block,
    stats,
    affine,
    floor,
    lead,
    streaming,
    bits,
    out,
    parallel,
):
    """Training, ``block`` channels a task: stats, affine and bits written, then ``out`` as by ``normalize_rows``.

    out may be x or residual.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[1] // block)
    parameters = (weight, bias, running_mean, running_var, momentum, eps)
    arguments = (x, residual, *parameters, n_block, s_block, block, stats, affine, floor, lead, streaming, bits, out)
    if parallel:
        for task in prange(tasks):
            _forward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _forward_task(task, *arguments)
    return negative


@inlined
def _moments_task(task, x, n_block, s_block, partials):
    chunk, c = divmod(task, x.shape[1])
    _, partials[0, chunk, c], partials[1, chunk, c] = _chunk_moments(chunk, c, x, n_block, s_block)


@driver
def moments_rows(
    x, weight, bias, running_mean, running_var, momentum, eps, n_block, s_block, partials, stats, affine, parallel
):
    """Training, a chunk of a channel a task: stats and affine written. partials: (2, chunks, C), a workspace."""
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    chunks = _chunks(x, n_block, s_block)
    if parallel:
        for task in prange(chunks * x.shape[1]):
            _moments_task(int64(task), x, n_block, s_block, partials)
    else:
        for task in range(chunks * x.shape[1]):
            _moments_task(task, x, n_block, s_block, partials)
    for c in range(x.shape[1]):
        count = 0
        about = 0.0
        squares = 0.0
        for chunk in range(chunks):
            n_first, n_last, s_first, s_last = _chunk(chunk, x, n_block, s_block)
            k = (n_last - n_first) * (s_last - s_first)
            about, squares = merge(count, about, squares, k, partials[0, chunk, c], partials[1, chunk, c])
            count += k
        finish_training(c, count, about, squares, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    return negative


@body
def _normalize_task(task, x, residual, block, affine, floor, lead, streaming, bits, out):
    for row in range(task * block, min(x.shape[0] * x.shape[1], (task + 1) * block)):
        n, c = divmod(row, x.shape[1])
        _normalize_row(n, c, x, residual, bits, affine, floor, lead, streaming, out)
    if streaming:
        fence()


@driver
def normalize_rows(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    eps,
    block,
    stats,
    affine,
    floor,
    lead,
    streaming,
    bits,
    out,
    parallel,
):
    """out = max((x - mean) * scale + shift + residual, floor), ``block`` rows a task; out may be x or residual.

    First, unless there are no running statistics, stats and affine are written by them. bits: written, where the sum
    is above 0.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    tasks = -(-x.shape[0] * x.shape[1] // block)
    arguments = (x, residual, block, affine, floor, lead, streaming, bits, out)
    if parallel:
        for task in prange(tasks):
            _normalize_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _normalize_task(task, *arguments)
    return negative


@inlined
def _masked(g, d, scale, shift, relu, bits, word):
    """g where the ReLU let pass: by the signs kept, or by (x - mean) * scale + shift."""
    if bits.size:
        g = where_bits(bits, word, g)
    elif relu:
        g = where_positive(fma(d, scale, shift), g)
    return g


@body
def _chunk_products(chunk, c, dy, x, bits, affine, relu, n_block, s_block):
    """Sums of g and of g (x - affine's mean) of channel c in a chunk."""
    n_first, n_last, s_first, s_last = _chunk(chunk, x, n_block, s_block)
    lanes = lanes_of(x)
    near, scale, shift = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c]), splat(x, affine[SHIFT, c])
    zero = splat(x, 0.0)
    about = widen(near)
    g0 = g1 = p0 = p1 = widen(zero)
    for n in range(n_first, n_last):
        first = _row(x, n, c) + s_first
        last = first + s_last - s_first
        word = (n * x.shape[1] + c) * bits.shape[2] + s_first // lanes
        twos = last - (last - first) % (2 * lanes)
        for i in range(first, twos, 2 * lanes):
            v = load(x, i)
            g = widen(_masked(load(dy, i), v - near, scale, shift, relu, bits, word))
            g0, p0 = g0 + g, fma(g, widen(v) - about, p0)
            v = load(x, i + lanes)
            g = widen(_masked(load(dy, i + lanes), v - near, scale, shift, relu, bits, word + 1))
            g1, p1 = g1 + g, fma(g, widen(v) - about, p1)
            word += 2
        for i in range(twos, last, lanes):
            count = min(lanes, last - i)
            v = load_first(x, i, count, near)
            g = widen(_masked(load_first(dy, i, count, zero), v - near, scale, shift, relu, bits, word))
            g0, p0 = g0 + g, fma(g, widen(v) - about, p0)
            word += 1
    return total(g0 + g1), total(p0 + p1)


@inlined
def _gradient_row(n, c, dy, x, bits, affine, slopes, relu, lead, streaming, dx, dresidual):
    lanes = lanes_of(x)
    near, scale, shift = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c]), splat(x, affine[SHIFT, c])
    a, b = splat(x, slopes[A, c]), splat(x, slopes[B, c])
    k, inv_std = splat(x, slopes[K, c]), splat(x, slopes[NEAR_INV_STD, c])
    row = _row(x, n, c)
    last = row + x.shape[2]
    word = (n * x.shape[1] + c) * bits.shape[2]
    whole = last - (x.shape[2] - lead) % lanes
    for i in range(row + lead, whole, lanes):
        d = load(x, i) - near
        g = _masked(load(dy, i), d, scale, shift, relu, bits, word)
        word += 1
        v = fma(g, a, fma(d * inv_std, b, k))
        if dresidual.size:
            store(dresidual, i, g)
        if streaming:
            stream(dx, i, v)
        else:
            store(dx, i, v)
    for part in range(2):  # the ends of the row; with bits there is no lead
        i, count = (row, lead) if part == 0 else (whole, last - whole)
        if count:
            d = load_first(x, i, count, near) - near
            g = _masked(load_first(dy, i, count, near), d, scale, shift, relu, bits, word)
            if dresidual.size:
                store_first(dresidual, i, g, count)
            store_first(dx, i, fma(g, a, fma(d * inv_std, b, k)), count)


@body
def _backward_task(
    task,
    dy,
    x,
    bits,
    stats,
    affine,
    relu,
    batch_stats,
    n_block,
    s_block,
    block,
    slopes,
    gradients,
    lead,
    streaming,
    dx,
    dresidual,
):
    first = task * block
    last = min(x.shape[1], first + block)
    for c in range(first, last):
        sum_g = 0.0
        product = 0.0
        for chunk in range(_chunks(x, n_block, s_block)):
            g, p = _chunk_products(chunk, c, dy, x, bits, affine, relu, n_block, s_block)
            sum_g += g
            product += p
        count = x.shape[0] * x.shape[2]
        finish_backward(c, count, sum_g, product, batch_stats, stats, affine, slopes, gradients)
    for n in range(x.shape[0]):
        for c in range(first, last):
            _gradient_row(n, c, dy, x, bits, affine, slopes, relu, lead, streaming, dx, dresidual)
    if streaming:
        fence()


@driver
def backward_rows(
    dy,
    x,
    bits,
    stats,
    affine,
    relu,
    batch_stats,
    n_block,
    s_block,
    block,
    slopes,
    gradients,
    lead,
    streaming,
    dx,
    dresidual,
    parallel,
):
    """``block`` channels a task: slopes and gradients written, then dx and dresidual as by ``gradient_rows``.

    gradients (2, C): dweight, dbias. dx may be dy.
    """
    tasks = -(-x.shape[1] // block)
    arguments = (
        dy,
        x,
        bits,
        stats,
        affine,
        relu,
        batch_stats,
        n_block,
        s_block,
        block,
        slopes,
        gradients,
        lead,
        streaming,
        dx,
        dresidual,
    )
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _backward_task(task, *arguments)


@inlined
def _products_task(task, dy, x, bits, affine, relu, n_block, s_block, partials):
    chunk, c = divmod(task, x.shape[1])
    partials[0, chunk, c], partials[1, chunk, c] = _chunk_products(
        chunk, c, dy, x, bits, affine, relu, n_block, s_block
    )


@driver
def products_rows(
    dy, x, bits, stats, affine, relu, batch_stats, n_block, s_block, partials, slopes, gradients, parallel
):
    """A chunk of a channel a task: slopes and gradients written. partials: (2, chunks, C), a workspace."""
    chunks = _chunks(x, n_block, s_block)
    if parallel:
        for task in prange(chunks * x.shape[1]):
            _products_task(int64(task), dy, x, bits, affine, relu, n_block, s_block, partials)
    else:
        for task in range(chunks * x.shape[1]):
            _products_task(task, dy, x, bits, affine, relu, n_block, s_block, partials)
    for c in range(x.shape[1]):
        sum_g = 0.0
        product = 0.0
        for chunk in range(chunks):
            sum_g += partials[0, chunk, c]
            product += partials[1, chunk, c]
        count = x.shape[0] * x.shape[2]
        finish_backward(c, count, sum_g, product, batch_stats, stats, affine, slopes, gradients)


@body
def _gradient_task(task, dy, x, bits, block, affine, slopes, relu, lead, streaming, dx, dresidual):
    for row in range(task * block, min(x.shape[0] * x.shape[1], (task + 1) * block)):
        n, c = divmod(row, x.shape[1])
        _gradient_row(n, c, dy, x, bits, affine, slopes, relu, lead, streaming, dx, dresidual)
    if streaming:
        fence()


@driver
def gradient_rows(dy, x, bits, block, affine, slopes, relu, lead, streaming, dx, dresidual, parallel):
    """dx = a g + b (x - mean) inv_std + k, dresidual = g; ``block`` rows a task. g is dy where the ReLU let pass.

    dx may be dy.
    """
    tasks = -(-x.shape[0] * x.shape[1] // block)
    arguments = (dy, x, bits, block, affine, slopes, relu, lead, streaming, dx, dresidual)
    if parallel:
        for task in prange(tasks):
            _gradient_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _gradient_task(task, *arguments)
