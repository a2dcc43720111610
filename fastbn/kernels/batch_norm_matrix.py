"""Batch norm of matrices (M, columns), whose rows hold the C channels once or more often: channels-last, and (M, C).

A channel's rows are everywhere, so the tasks are tiles of ``rows`` rows and all columns for the sums, which are then
added in order, and of ``tile`` rows for the map. Where ``lead`` is not 0 the map's rows begin ``lead`` elements late
and run on into the next row, its constants rotated with them, so that streamed vectors lie aligned in ``out``; never
with bits. Tiles, ``bits`` and operands that are None: see ``batch_norm_tiles``.
"""

import numpy as np
from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.batch_norm_tiles import (
    gradient_tile,
    normalize_tile,
    set_shift,
    tile_products,
    tile_sums,
    whole_vectors,
)
from fastbn.kernels.batch_norm_vectors import words_of
from fastbn.kernels.channels import (
    finish_backward,
    finish_inference,
    finish_training,
    first_negative,
    renormalize,
    run_moments,
)


@inlined
def _bounds(task, x, rows):
    """First row of a task, and the number of its rows."""
    first = task * rows
    return first, min(x.shape[0], first + rows) - first


@inlined
def _repeated(values, lead, columns):
    """Per-channel constants of the columns of rows that begin at ``lead``."""
    wide = np.empty((values.shape[0], columns), values.dtype)
    for k in range(values.shape[0]):
        for j in range(columns):
            wide[k, j] = values[k, (j + lead) % values.shape[1]]
    return wide


@inlined
def _add_partials(partials, columns):
    """The first of ``partials`` (2, tasks, columns or more) becomes their sum, in order."""
    for which in range(2):
        for task in range(1, partials.shape[1]):
            for j in range(columns):
                partials[which, 0, j] += partials[which, task, j]


@inlined
def _shift(x, affine):
    """The first value of each channel, for all columns, to a whole vector."""
    columns = x.shape[1]
    shift = np.empty(whole_vectors(columns, lanes_of(x)), affine.dtype)
    set_shift(x, 0, columns, 1, shift)
    for j in range(affine.shape[1], columns):
        shift[j] = shift[j - affine.shape[1]]
    return shift


@inlined
def _sums_task(task, x, rows, shift, partials):
    first, count = _bounds(task, x, rows)
    columns = x.shape[1]
    tile_sums(x, first * columns, count, columns, columns, shift, partials[0, task], partials[1, task])


@body
def _finish_sums(x, shift, partials, weight, bias, running_mean, running_var, momentum, eps, stats, affine):
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
    renormalize(0, c_count, weight, bias, stats, affine)


@inlined
def _part(part, task, x, rows, lead):
    """Of a task of the map: offset of the first element, rows, columns, and the constants' first column.

    Part 0: whole rows, from ``lead`` on. With a lead, part 1 is the rest of the last row, part 2 what lies before.
    """
    m, columns = x.shape
    first, count = _bounds(task, x, rows)
    start = first * columns + lead
    whole = count - 1 if lead and first + count == m else count
    if part == 0:
        return start, whole, columns, 0
    if part == 1:
        return start + whole * columns, count - whole, columns - lead, 0
    return 0, 1 if first == 0 else 0, lead, columns - lead


@inlined
def _normalize_task(task, x, residual, tile, affine, floor, lead, streaming, bits, out):
    word = task * tile * words_of(bits)
    for part in range(3 if lead else 1):
        first, rows, columns, column = _part(part, task, x, tile, lead)
        streamed = streaming and part == 0
        normalize_tile(x, residual, bits, out, first, rows, x.shape[1], columns, word, affine, column, floor, streamed)


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
    partials,
    floor,
    lead,
    streaming,
    stats,
    affine,
    bits,
    out,
    parallel,
):
    """Training: stats, affine and bits are written, then out as by ``normalize_matrix``.

    partials: (2, tasks, columns or more) float64, a workspace whose rows are whole vectors. out may be x or residual.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    sum_tasks, tasks = -(-x.shape[0] // rows), -(-x.shape[0] // tile)
    shift = _shift(x, affine)
    finish = (weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    if parallel:
        for task in prange(sum_tasks):
            _sums_task(int64(task), x, rows, shift, partials)
        _finish_sums(x, shift, partials, *finish)
        wide = _repeated(affine, lead, x.shape[1])
        for task in prange(tasks):
            _normalize_task(int64(task), x, residual, tile, wide, floor, lead, streaming, bits, out)
    else:
        for task in range(sum_tasks):
            _sums_task(task, x, rows, shift, partials)
        _finish_sums(x, shift, partials, *finish)
        wide = _repeated(affine, lead, x.shape[1])
        for task in range(tasks):
            _normalize_task(task, x, residual, tile, wide, floor, lead, streaming, bits, out)
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
    floor,
    lead,
    streaming,
    stats,
    affine,
    bits,
    out,
    parallel,
):
    """out = max((x - mean) * scale + shift + residual, floor); it may be x or residual.

    First stats and affine are written by the running statistics. bits: written, where the sum is above 0.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[0] // tile)
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    wide = _repeated(affine, lead, x.shape[1])
    if parallel:
        for task in prange(tasks):
            _normalize_task(int64(task), x, residual, tile, wide, floor, lead, streaming, bits, out)
    else:
        for task in range(tasks):
            _normalize_task(task, x, residual, tile, wide, floor, lead, streaming, bits, out)
    return negative


@inlined
def products_task(task, dy, x, bits, relu, rows, affine, partials, dresidual):
    """Partials of task's rows, whose signs begin with a word of their own; see ``tile_products``."""
    first, count = _bounds(task, x, rows)
    columns = x.shape[1]
    tile = (first * columns, count, columns, columns, first * words_of(bits))
    tile_products(dy, x, bits, relu, *tile, affine, 0, partials[0, task], partials[1, task], dresidual)


@body
def _finish_products(x, partials, batch_stats, stats, affine, slopes, gradients):
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


@inlined
def _gradient_task(task, dy, x, bits, relu, rows, affine, slopes, lead, streaming, dx, dresidual):
    word = task * rows * words_of(bits)
    for part in range(3 if lead else 1):
        first, count, columns, column = _part(part, task, x, rows, lead)
        tile, streamed = (first, count, x.shape[1], columns, word), streaming and part == 0
        gradient_tile(dy, x, bits, relu, *tile, affine, slopes, column, streamed, dx, dresidual)


@driver
def backward_matrix(
    dy,
    x,
    bits,
    relu,
    batch_stats,
    rows,
    tile,
    partials,
    lead,
    streaming,
    stats,
    affine,
    slopes,
    gradients,
    dx,
    dresidual,
    parallel,
):
    """Backward of ``forward_matrix``: slopes and gradients (2, C) written, then dx and dresidual. dx may be dy."""
    sum_tasks, tasks = -(-x.shape[0] // rows), -(-x.shape[0] // tile)
    columns = x.shape[1]
    wide_affine = _repeated(affine, 0, columns)
    finish = (batch_stats, stats, affine, slopes, gradients)
    if parallel:
        for task in prange(sum_tasks):
            products_task(int64(task), dy, x, bits, relu, rows, wide_affine, partials, None)
        _finish_products(x, partials, *finish)
        near, slope = _repeated(affine, lead, columns), _repeated(slopes, lead, columns)
        for task in prange(tasks):
            _gradient_task(int64(task), dy, x, bits, relu, tile, near, slope, lead, streaming, dx, dresidual)
    else:
        for task in range(sum_tasks):
            products_task(task, dy, x, bits, relu, rows, wide_affine, partials, None)
        _finish_products(x, partials, *finish)
        near, slope = _repeated(affine, lead, columns), _repeated(slopes, lead, columns)
        for task in range(tasks):
            _gradient_task(task, dy, x, bits, relu, tile, near, slope, lead, streaming, dx, dresidual)
