"""Batch norm of matrices whose columns belong to channels: (M, C), and (N, C, S) whose rows (n, c) are short.

An (N, C, S) array is read as N rows of C * S columns, S of them to a channel; (M, C) is the case S = 1. Vectors run
along the columns, so sums, in float64, need no crossing of lanes.
A tile is some rows and the columns of whole channels, ``first`` the offset of its first element. A task that owns all
rows of its channels normalises them while they are in cache: ``forward_columns``, ``backward_columns``. Where a
channel's rows are too many for that, the tiles of ``rows`` rows and all columns are the tasks, twice:
``forward_matrix``, ``backward_matrix``.

``bits`` (rows, words): signs, every row of a tile from a new word on. ``lead``: as in batch_norm_rows.
"""

import numpy as np
from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import (
    add_to,
    at_least,
    fence,
    finite_or_zero,
    fma,
    lanes_of,
    load,
    load_first,
    splat,
    store,
    store_first,
    store_signs,
    stream,
    where_bits,
    where_positive,
    widen,
)
from fastbn.kernels.channels import (
    NEAR_INV_STD,
    SCALE,
    SHIFT,
    A,
    B,
    K,
    finish_backward,
    finish_inference,
    finish_training,
    first_negative,
    run_moments,
)

ROWS = 16  # summed side by side
MAP_ROWS = 4  # mapped side by side


@inlined
def _up(count, lanes):
    """``count`` filled up to whole vectors."""
    return -(-count // lanes) * lanes


@inlined
def _set_shift(x, first, columns, s, shift):
    """The first value of each channel, for all its columns; 0 where that is not finite."""
    lanes = lanes_of(x)
    for j in range(0, columns, lanes):
        store(shift, j, finite_or_zero(load_first(x, first + j, min(lanes, columns - j), splat(x, 0.0))))
    if s > 1:
        for j in range(columns):
            shift[j] = shift[j - j % s]


@body
def _tile_sums(x, first, rows, stride, columns, shift, sums, squares):
    """Each column's sums of d = x - shift and of d d."""
    lanes = lanes_of(x)
    sums[:] = 0.0
    squares[:] = 0.0
    twos = columns - columns % (2 * lanes)
    for top in range(0, rows, ROWS):
        bottom = min(rows, top + ROWS)
        for j in range(0, twos, 2 * lanes):
            near0, near1 = widen(load(shift, j)), widen(load(shift, j + lanes))
            d0 = d1 = q0 = q1 = near0 - near0
            i = first + top * stride + j
            for _ in range(top, bottom):
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
def _store_four(array, i, v0, v1, v2, v3, streaming):
    lanes = lanes_of(array)
    if streaming:
        stream(array, i, v0)
        stream(array, i + lanes, v1)
        stream(array, i + 2 * lanes, v2)
        stream(array, i + 3 * lanes, v3)
    else:
        store(array, i, v0)
        store(array, i + lanes, v1)
        store(array, i + 2 * lanes, v2)
        store(array, i + 3 * lanes, v3)


@body
def _normalize_tile(x, residual, bits, out, first, rows, stride, columns, word, affine, floor, lead, streaming):
    """affine: (3, columns) of the tile."""
    lanes = lanes_of(x)
    low, zero = splat(x, floor), splat(x, 0.0)
    width, words = affine.shape[1], bits.shape[1]
    whole = columns - (columns - lead) % lanes
    for top in range(0, rows, MAP_ROWS):
        bottom = min(rows, top + MAP_ROWS)
        begin = lead
        if residual.size == 0 and bits.size == 0:
            begin = whole - (whole - lead) % (4 * lanes)
            for j in range(lead, begin, 4 * lanes):
                k, p = j + SCALE * width, j + SHIFT * width
                n0, n1, n2, n3 = _four(affine, j)
                s0, s1, s2, s3 = _four(affine, k)
                t0, t1, t2, t3 = _four(affine, p)
                i = first + top * stride + j
                for _ in range(top, bottom):
                    v0, v1, v2, v3 = _four(x, i)
                    v0, v1 = at_least(fma(v0 - n0, s0, t0), low), at_least(fma(v1 - n1, s1, t1), low)
                    v2, v3 = at_least(fma(v2 - n2, s2, t2), low), at_least(fma(v3 - n3, s3, t3), low)
                    _store_four(out, i, v0, v1, v2, v3, streaming)
                    i += stride
        for j in range(begin, whole, lanes):
            near = load(affine, j)
            scale, shift = load(affine, SCALE * width + j), load(affine, SHIFT * width + j)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                v = fma(load(x, i) - near, scale, shift)
                if residual.size:
                    v = v + load(residual, i)
                if bits.size:
                    store_signs(bits, w, v)
                    w += words
                v = at_least(v, low)
                if streaming:
                    stream(out, i, v)
                else:
                    store(out, i, v)
                i += stride
        for end in range(2):  # with bits there is no lead
            j, count = (0, lead) if end == 0 else (whole, columns - whole)
            if count:
                near = load_first(affine, j, count, zero)
                scale = load_first(affine, SCALE * width + j, count, zero)
                shift = load_first(affine, SHIFT * width + j, count, zero)
                i = first + top * stride + j
                w = word + top * words + j // lanes
                for _ in range(top, bottom):
                    v = fma(load_first(x, i, count, near) - near, scale, shift)
                    if residual.size:
                        v = v + load_first(residual, i, count, near)
                    if bits.size:
                        store_signs(bits, w, v)
                        w += words
                    store_first(out, i, at_least(v, low), count)
                    i += stride
    if streaming:
        fence()


@inlined
def _spread(values, first, count, s, wanted):
    """Rows of per-channel ``values`` from channel ``first`` on, each entry repeated for its ``s`` columns."""
    for k in range(values.shape[0]):
        for c in range(count):
            for j in range(c * s, (c + 1) * s):
                wanted[k, j] = values[k, first + c]


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
    block,
    stats,
    affine,
    floor,
    streaming,
    bits,
    out,
):
    n, c, s = x.shape
    first = task * block
    count = min(c, first + block) - first
    columns = count * s
    lanes = lanes_of(x)
    sums, squares = np.empty(_up(columns, lanes)), np.empty(_up(columns, lanes))
    shift = np.empty(_up(columns, lanes), affine.dtype)
    _set_shift(x, first * s, columns, s, shift)
    _tile_sums(x, first * s, n, c * s, columns, shift, sums, squares)
    for k in range(count):
        sum_d = 0.0
        about = 0.0
        for j in range(k * s, (k + 1) * s):
            sum_d += sums[j]
            about += squares[j]
        mean, about = run_moments(shift[k * s], sum_d, about, n * s)
        finish_training(
            first + k, n * s, mean, about, weight, bias, running_mean, running_var, momentum, eps, stats, affine
        )
    tile_affine = np.empty((3, columns), affine.dtype)
    _spread(affine, first, count, s, tile_affine)
    word = task * (-(-block * s // lanes))
    _normalize_tile(x, residual, bits, out, first * s, n, c * s, columns, word, tile_affine, floor, 0, streaming)


@driver
def forward_columns(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    momentum,
    eps,
    block,
    stats,
    affine,
    floor,
    streaming,
    bits,
    out,
    parallel,
):
    """Training of x (N, C, S), ``block`` channels a task: stats, affine and bits written, then out.

    out = max((x - mean) * scale + shift + residual, floor); it may be x or residual.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[1] // block)
    arguments = (
        x,
        residual,
        weight,
        bias,
        running_mean,
        running_var,
        momentum,
        eps,
        block,
        stats,
        affine,
        floor,
        streaming,
        bits,
        out,
    )
    if parallel:
        for task in prange(tasks):
            _forward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _forward_task(task, *arguments)
    return negative


@inlined
def _normalize_columns_task(task, x, residual, block, affine, floor, streaming, bits, out):
    n, c, s = x.shape
    first = task * block
    count = min(c, first + block) - first
    tile_affine = np.empty((3, count * s), affine.dtype)
    _spread(affine, first, count, s, tile_affine)
    word = task * (-(-block * s // lanes_of(x)))
    _normalize_tile(x, residual, bits, out, first * s, n, c * s, count * s, word, tile_affine, floor, 0, streaming)


@driver
def normalize_columns(
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
    streaming,
    bits,
    out,
    parallel,
):
    """out = max((x - mean) * scale + shift + residual, floor) of x (N, C, S), ``block`` channels a task.

    stats and affine are written by the running statistics first.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    tasks = -(-x.shape[1] // block)
    if parallel:
        for task in prange(tasks):
            _normalize_columns_task(int64(task), x, residual, block, affine, floor, streaming, bits, out)
    else:
        for task in range(tasks):
            _normalize_columns_task(task, x, residual, block, affine, floor, streaming, bits, out)
    return negative


@inlined
def _sums_task(task, x, rows, shift, partials):
    m, columns = x.shape
    first = task * rows
    count = min(m, first + rows) - first
    _tile_sums(x, first * columns, count, columns, columns, shift, partials[0, task], partials[1, task])


@inlined
def _add_partials(partials, columns):
    """The first of ``partials`` (2, tasks, columns or more) becomes their sum, in order."""
    for which in range(2):
        for task in range(1, partials.shape[1]):
            for j in range(columns):
                partials[which, 0, j] += partials[which, task, j]


@inlined
def _copy_affine(affine, wide_affine):
    """Per-channel constants, repeated for every copy of the channels that a row holds."""
    c = affine.shape[1]
    for k in range(affine.shape[0]):
        for j in range(wide_affine.shape[1]):
            wide_affine[k, j] = affine[k, j % c]


@body
def _finish_matrix(
    x, shift, partials, weight, bias, running_mean, running_var, momentum, eps, stats, affine, wide_affine
):
    m, columns = x.shape
    c_count = affine.shape[1]
    _add_partials(partials, columns)
    count = m * (columns // c_count)
    for c in range(c_count):
        sum_d = 0.0
        squares = 0.0
        for j in range(c, columns, c_count):
            sum_d += partials[0, 0, j]
            squares += partials[1, 0, j]
        mean, squares = run_moments(shift[c], sum_d, squares, count)
        finish_training(c, count, mean, squares, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    _copy_affine(affine, wide_affine)


@inlined
def _set_matrix_shift(x, channels, shift):
    columns = x.shape[1]
    _set_shift(x, 0, columns, 1, shift)
    for j in range(channels, columns):
        shift[j] = shift[j - channels]


@inlined
def _normalize_rows_task(task, x, residual, rows, affine, floor, lead, streaming, bits, out):
    m, columns = x.shape
    first = task * rows
    count = min(m, first + rows) - first
    _normalize_tile(
        x,
        residual,
        bits,
        out,
        first * columns,
        count,
        columns,
        columns,
        first * bits.shape[1],
        affine,
        floor,
        lead,
        streaming,
    )


@driver
def forward_matrix(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    momentum,
    eps,
    rows,
    tile,
    shift,
    partials,
    stats,
    affine,
    wide_affine,
    floor,
    lead,
    streaming,
    bits,
    out,
    parallel,
):
    """Training of x (M, columns), a row of which holds the C channels once or more often.

    stats, affine and bits are written, then out = max((x - mean) * scale + shift + residual, floor), which may be x
    or residual. rows, tile: of a task in the sums and in the map. shift (columns or more), partials (2, tasks, columns
    or more) float64: workspaces that end on a whole vector. wide_affine: (3, columns), written.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    sum_tasks, tasks = -(-x.shape[0] // rows), -(-x.shape[0] // tile)
    _set_matrix_shift(x, affine.shape[1], shift)
    finish = (weight, bias, running_mean, running_var, momentum, eps, stats, affine, wide_affine)
    if parallel:
        for task in prange(sum_tasks):
            _sums_task(int64(task), x, rows, shift, partials)
        _finish_matrix(x, shift, partials, *finish)
        for task in prange(tasks):
            _normalize_rows_task(int64(task), x, residual, tile, wide_affine, floor, lead, streaming, bits, out)
    else:
        for task in range(sum_tasks):
            _sums_task(task, x, rows, shift, partials)
        _finish_matrix(x, shift, partials, *finish)
        for task in range(tasks):
            _normalize_rows_task(task, x, residual, tile, wide_affine, floor, lead, streaming, bits, out)
    return negative


@driver
def normalize_matrix(
    x,
    residual,
    weight,
    bias,
    running_mean,
    running_var,
    eps,
    tile,
    stats,
    affine,
    wide_affine,
    floor,
    lead,
    streaming,
    bits,
    out,
    parallel,
):
    """The map of ``forward_matrix`` alone; stats, affine and wide_affine are written by the running statistics."""
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[0] // tile)
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    _copy_affine(affine, wide_affine)
    if parallel:
        for task in prange(tasks):
            _normalize_rows_task(int64(task), x, residual, tile, wide_affine, floor, lead, streaming, bits, out)
    else:
        for task in range(tasks):
            _normalize_rows_task(task, x, residual, tile, wide_affine, floor, lead, streaming, bits, out)
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
def _tile_products(dy, x, bits, first, rows, stride, columns, word, affine, relu, sums, products):
    """Each column's sums of g and of g (x - mean)."""
    lanes = lanes_of(x)
    width = affine.shape[1]
    zero = splat(x, 0.0)
    sums[:] = 0.0
    products[:] = 0.0
    for top in range(0, rows, ROWS):
        bottom = min(rows, top + ROWS)
        begin = 0
        if not relu and bits.size == 0:
            begin = columns - columns % (2 * lanes)
            for j in range(0, begin, 2 * lanes):
                about0, about1 = widen(load(affine, j)), widen(load(affine, j + lanes))
                g0 = g1 = p0 = p1 = widen(zero)
                i = first + top * stride + j
                for _ in range(top, bottom):
                    a, b = widen(load(dy, i)), widen(load(dy, i + lanes))
                    p0, p1 = fma(a, widen(load(x, i)) - about0, p0), fma(b, widen(load(x, i + lanes)) - about1, p1)
                    g0, g1 = g0 + a, g1 + b
                    i += stride
                add_to(sums, j, g0)
                add_to(sums, j + lanes, g1)
                add_to(products, j, p0)
                add_to(products, j + lanes, p1)
        for j in range(begin, columns, lanes):
            count = min(lanes, columns - j)
            near = load_first(affine, j, count, zero)
            scale = load_first(affine, SCALE * width + j, count, zero)
            shift = load_first(affine, SHIFT * width + j, count, zero)
            about = widen(near)
            sum_g = product = widen(zero)
            i = first + top * stride + j
            w = word + top * bits.shape[1] + j // lanes
            if count == lanes:
                for _ in range(top, bottom):
                    v = load(x, i)
                    g = widen(_masked(load(dy, i), v - near, scale, shift, relu, bits, w))
                    sum_g, product = sum_g + g, fma(g, widen(v) - about, product)
                    i += stride
                    w += bits.shape[1]
            else:
                for _ in range(top, bottom):
                    v = load_first(x, i, count, near)
                    g = widen(_masked(load_first(dy, i, count, zero), v - near, scale, shift, relu, bits, w))
                    sum_g, product = sum_g + g, fma(g, widen(v) - about, product)
                    i += stride
                    w += bits.shape[1]
            add_to(sums, j, sum_g)
            add_to(products, j, product)


@body
def _gradient_tile(
    dy, x, bits, first, rows, stride, columns, word, affine, slopes, relu, lead, streaming, dx, dresidual
):
    """affine (3, columns), slopes (4, columns): of the tile."""
    lanes = lanes_of(x)
    zero = splat(x, 0.0)
    width, words = affine.shape[1], bits.shape[1]
    whole = columns - (columns - lead) % lanes
    for top in range(0, rows, MAP_ROWS):
        bottom = min(rows, top + MAP_ROWS)
        begin = lead
        if not relu and bits.size == 0 and dresidual.size == 0:
            begin = whole - (whole - lead) % (4 * lanes)
            for j in range(lead, begin, 4 * lanes):
                n0, n1, n2, n3 = _four(affine, j)
                a0, a1, a2, a3 = _four(slopes, A * width + j)
                b0, b1, b2, b3 = _four(slopes, B * width + j)
                k0, k1, k2, k3 = _four(slopes, K * width + j)
                r0, r1, r2, r3 = _four(slopes, NEAR_INV_STD * width + j)
                i = first + top * stride + j
                for _ in range(top, bottom):
                    d0, d1, d2, d3 = _four(x, i)
                    g0, g1, g2, g3 = _four(dy, i)
                    v0, v1 = fma(g0, a0, fma((d0 - n0) * r0, b0, k0)), fma(g1, a1, fma((d1 - n1) * r1, b1, k1))
                    v2, v3 = fma(g2, a2, fma((d2 - n2) * r2, b2, k2)), fma(g3, a3, fma((d3 - n3) * r3, b3, k3))
                    _store_four(dx, i, v0, v1, v2, v3, streaming)
                    i += stride
        for j in range(begin, whole, lanes):
            near = load(affine, j)
            scale, shift = load(affine, SCALE * width + j), load(affine, SHIFT * width + j)
            a, b = load(slopes, A * width + j), load(slopes, B * width + j)
            k, inv_std = load(slopes, K * width + j), load(slopes, NEAR_INV_STD * width + j)
            i = first + top * stride + j
            w = word + top * words + j // lanes
            for _ in range(top, bottom):
                d = load(x, i) - near
                g = _masked(load(dy, i), d, scale, shift, relu, bits, w)
                v = fma(g, a, fma(d * inv_std, b, k))
                if dresidual.size:
                    store(dresidual, i, g)
                if streaming:
                    stream(dx, i, v)
                else:
                    store(dx, i, v)
                i += stride
                w += words
        for end in range(2):  # with bits there is no lead
            j, count = (0, lead) if end == 0 else (whole, columns - whole)
            if count:
                near = load_first(affine, j, count, zero)
                scale = load_first(affine, SCALE * width + j, count, zero)
                shift = load_first(affine, SHIFT * width + j, count, zero)
                a = load_first(slopes, A * width + j, count, zero)
                b = load_first(slopes, B * width + j, count, zero)
                k = load_first(slopes, K * width + j, count, zero)
                inv_std = load_first(slopes, NEAR_INV_STD * width + j, count, zero)
                i = first + top * stride + j
                w = word + top * words + j // lanes
                for _ in range(top, bottom):
                    d = load_first(x, i, count, near) - near
                    g = _masked(load_first(dy, i, count, zero), d, scale, shift, relu, bits, w)
                    if dresidual.size:
                        store_first(dresidual, i, g, count)
                    store_first(dx, i, fma(g, a, fma(d * inv_std, b, k)), count)
                    i += stride
                    w += words
    if streaming:
        fence()


@body
def _backward_task(
    task, dy, x, bits, stats, affine, relu, batch_stats, block, slopes, gradients, streaming, dx, dresidual
):
    n, c, s = x.shape
    first = task * block
    count = min(c, first + block) - first
    columns = count * s
    lanes = lanes_of(x)
    word = task * (-(-block * s // lanes))
    tile_affine, tile_slopes = np.empty((3, columns), affine.dtype), np.empty((4, columns), affine.dtype)
    _spread(affine, first, count, s, tile_affine)
    sums, products = np.empty(_up(columns, lanes)), np.empty(_up(columns, lanes))
    _tile_products(dy, x, bits, first * s, n, c * s, columns, word, tile_affine, relu, sums, products)
    for k in range(count):
        sum_g = 0.0
        product = 0.0
        for j in range(k * s, (k + 1) * s):
            sum_g += sums[j]
            product += products[j]
        finish_backward(first + k, n * s, sum_g, product, batch_stats, stats, affine, slopes, gradients)
    _spread(slopes, first, count, s, tile_slopes)
    _gradient_tile(
        dy,
        x,
        bits,
        first * s,
        n,
        c * s,
        columns,
        word,
        tile_affine,
        tile_slopes,
        relu,
        0,
        streaming,
        dx,
        dresidual,
    )


@driver
def backward_columns(
    dy, x, bits, stats, affine, relu, batch_stats, block, slopes, gradients, streaming, dx, dresidual, parallel
):
    """Backward of ``forward_columns``: slopes and gradients (2, C) written, then dx and dresidual. dx may be dy."""
    tasks = -(-x.shape[1] // block)
    arguments = (dy, x, bits, stats, affine, relu, batch_stats, block, slopes, gradients, streaming, dx, dresidual)
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _backward_task(task, *arguments)


@inlined
def _products_task(task, dy, x, bits, rows, affine, relu, partials):
    m, columns = x.shape
    first = task * rows
    count = min(m, first + rows) - first
    _tile_products(
        dy,
        x,
        bits,
        first * columns,
        count,
        columns,
        columns,
        first * bits.shape[1],
        affine,
        relu,
        partials[0, task],
        partials[1, task],
    )


@body
def _finish_products(x, partials, batch_stats, stats, affine, slopes, wide_slopes, gradients):
    m, columns = x.shape
    c_count = affine.shape[1]
    _add_partials(partials, columns)
    count = m * (columns // c_count)
    for c in range(c_count):
        sum_g = 0.0
        product = 0.0
        for j in range(c, columns, c_count):
            sum_g += partials[0, 0, j]
            product += partials[1, 0, j]
        finish_backward(c, count, sum_g, product, batch_stats, stats, affine, slopes, gradients)
    _copy_affine(slopes, wide_slopes)


@inlined
def _gradient_rows_task(task, dy, x, bits, rows, affine, slopes, relu, lead, streaming, dx, dresidual):
    m, columns = x.shape
    first = task * rows
    count = min(m, first + rows) - first
    _gradient_tile(
        dy,
        x,
        bits,
        first * columns,
        count,
        columns,
        columns,
        first * bits.shape[1],
        affine,
        slopes,
        relu,
        lead,
        streaming,
        dx,
        dresidual,
    )


@driver
def backward_matrix(
    dy,
    x,
    bits,
    stats,
    affine,
    wide_affine,
    relu,
    batch_stats,
    rows,
    tile,
    partials,
    slopes,
    wide_slopes,
    gradients,
    lead,
    streaming,
    dx,
    dresidual,
    parallel,
):
    """Backward of ``forward_matrix``: slopes and gradients (2, C) written, then dx and dresidual. dx may be dy.

    wide_affine (3, columns), wide_slopes (4, columns): written; rows, tile, partials: as there.
    """
    sum_tasks, tasks = -(-x.shape[0] // rows), -(-x.shape[0] // tile)
    _copy_affine(affine, wide_affine)
    finish = (batch_stats, stats, affine, slopes, wide_slopes, gradients)
    if parallel:
        for task in prange(sum_tasks):
            _products_task(int64(task), dy, x, bits, rows, wide_affine, relu, partials)
        _finish_products(x, partials, *finish)
        for task in prange(tasks):
            _gradient_rows_task(
                int64(task), dy, x, bits, tile, wide_affine, wide_slopes, relu, lead, streaming, dx, dresidual
            )
    else:
        for task in range(sum_tasks):
            _products_task(task, dy, x, bits, rows, wide_affine, relu, partials)
        _finish_products(x, partials, *finish)
        for task in range(tasks):
            _gradient_rows_task(task, dy, x, bits, tile, wide_affine, wide_slopes, relu, lead, streaming, dx, dresidual)
