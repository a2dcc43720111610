"""Batch norm of matrices (M, columns), whose rows hold the C channels once or more often: channels-last, and (M, C).

A channel's rows are everywhere, so the tasks are tiles of ``rows`` rows and all columns for the sums, which are then
added in order, and of ``tile`` rows for the map. Where ``lead`` is not 0 the map's rows begin ``lead`` elements late
and run on into the next row, its constants rotated with them, so that streamed vectors lie aligned in ``out``; never
with bits. Tiles, ``bits`` and operands that are None: see ``batch_norm_tiles``.
"""

from numba import int64, prange

from fastbn.kernels._doubles import add_run
from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import load_first, store_first
from fastbn.kernels.batch_norm_tiles import gradient_tile, normalize_tile, set_shift, tile_products, tile_sums
from fastbn.kernels.batch_norm_vectors import gradient_first, normalized_first, words_of
from fastbn.kernels.channels import NEAR_INV_STD, SCALE, SHIFT, A, B, K, first_negative
from fastbn.kernels.finish import finish_backward, finish_inference, finish_training, renormalize, set_moments


@inlined
def _bounds(task, x, rows):
    """First row of a task, and the number of its rows."""
    first = task * rows
    return first, min(x.shape[0], first + rows) - first


@body
def _by_column(values, lead, wide):
    """Per-channel constants of the columns of rows that begin at ``lead``: in ``wide``, unless they are ``values``."""
    channels, columns = values.shape[1], wide.shape[1]
    if lead == 0 and columns == channels:
        return values
    for k in range(values.shape[0]):
        c = lead % channels
        for j in range(columns):
            wide[k, j] = values[k, c]
            c = c + 1 if c + 1 < channels else 0
    return wide


@inlined
def add_partials(partials, columns, channels):
    """The first of ``partials`` (2, tasks, columns or more) begins with the sums of every channel, in order."""
    _, tasks, width = partials.shape
    for first in range(0, 2 * tasks * width, tasks * width):
        for start in range(first + width, first + tasks * width, width):
            add_run(partials, first, start, columns)
        for start in range(first + channels, first + columns, channels):
            add_run(partials, first, start, channels)


@body
def _set_shift(x, channels, shift):
    """The first value of each channel, for all columns."""
    set_shift(x, 0, x.shape[1], 1, shift)
    for j in range(channels, x.shape[1]):
        shift[j] = shift[j - channels]


@body
def _sums_task(task, x, rows, shift, partials):
    first, count = _bounds(task, x, rows)
    columns = x.shape[1]
    tile_sums(x, first * columns, count, columns, columns, shift, partials[0, task], partials[1, task])


@body
def _finish_sums(x, shift, partials, weight, bias, running_mean, running_var, momentum, eps, renorm, stats, affine):
    m, columns = x.shape
    channels = affine.shape[1]
    add_partials(partials, columns, channels)
    count = m * (columns // channels)
    set_moments(0, channels, count, shift, partials[0, 0], partials[1, 0], stats)
    finish_training(0, channels, count, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    if renorm is not None:
        renormalize(0, channels, weight, bias, stats, affine)


@inlined
def _map_bounds(task, x, rows, lead):
    """Of a task of the map: the offset of its first element, and its whole rows; see ``_end``."""
    first, count = _bounds(task, x, rows)
    return first * x.shape[1] + lead, count - 1 if lead and first + count == x.shape[0] else count


@inlined
def _end(part, x, lead):
    """Of what tasks leave where there is a lead, the end of the last row and the beginning of the first.

    Offset, elements, and the constants' column.
    """
    rest = x.shape[1] - lead
    return (x.size - rest, rest, 0) if part == 0 else (0, lead, rest)


@body
def _normalize_task(task, x, residual, tile, affine, floor, lead, streaming, bits, out):
    first, rows = _map_bounds(task, x, tile, lead)
    columns, word = x.shape[1], task * tile * words_of(bits)
    normalize_tile(x, residual, bits, out, first, rows, columns, columns, word, affine, 0, floor, streaming)


@body
def _normalize_ends(x, residual, affine, floor, lead, out):
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for part in range(2 if lead else 0):
        first, columns, column = _end(part, x, lead)
        for j in range(0, columns, lanes):
            count = min(lanes, columns - j)
            near = load_first(affine, column + j, count, zero)
            scale = load_first(affine, SCALE * affine.shape[1] + column + j, count, zero)
            shift = load_first(affine, SHIFT * affine.shape[1] + column + j, count, zero)
            v = normalized_first(x, residual, None, first + j, count, 0, near, scale, shift, floor)
            store_first(out, first + j, v, count)


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
    renorm,
    rows,
    tile,
    partials,
    shift,
    wide,
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

    partials (2, tasks, columns or more) float64, shift (columns or more), wide (3, columns): workspaces, the rows of
    the first two whole vectors; wide may be affine where rows hold the channels once and begin with the first. out may
    be x or residual.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    sum_tasks, tasks = -(-x.shape[0] // rows), -(-x.shape[0] // tile)
    _set_shift(x, affine.shape[1], shift)
    finish = (weight, bias, running_mean, running_var, momentum, eps, renorm, stats, affine)
    if parallel:
        for task in prange(sum_tasks):
            _sums_task(int64(task), x, rows, shift, partials)
        _finish_sums(x, shift, partials, *finish)
        constants = _by_column(affine, lead, wide)
        for task in prange(tasks):
            _normalize_task(int64(task), x, residual, tile, constants, floor, lead, streaming, bits, out)
    else:
        for task in range(sum_tasks):
            _sums_task(task, x, rows, shift, partials)
        _finish_sums(x, shift, partials, *finish)
        constants = _by_column(affine, lead, wide)
        for task in range(tasks - 1, -1, -1):  # the rows read last are still in cache
            _normalize_task(task, x, residual, tile, constants, floor, lead, streaming, bits, out)
    _normalize_ends(x, residual, constants, floor, lead, out)
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
    wide,
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

    First stats and affine are written by the running statistics. wide: see ``forward_matrix``. bits: written, where
    the sum is above 0.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[0] // tile)
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    constants = _by_column(affine, lead, wide)
    if parallel:
        for task in prange(tasks):
            _normalize_task(int64(task), x, residual, tile, constants, floor, lead, streaming, bits, out)
    else:
        for task in range(tasks):
            _normalize_task(task, x, residual, tile, constants, floor, lead, streaming, bits, out)
    _normalize_ends(x, residual, constants, floor, lead, out)
    return negative


@body
def products_task(task, dy, x, bits, relu, rows, affine, partials, dresidual):
    """Partials of task's rows, whose signs begin with a word of their own; see ``tile_products``."""
    first, count = _bounds(task, x, rows)
    columns = x.shape[1]
    tile = (first * columns, count, columns, columns, first * words_of(bits))
    tile_products(dy, x, bits, relu, *tile, affine, 0, partials[0, task], partials[1, task], dresidual)


@body
def _finish_products(x, partials, batch_stats, stats, affine, slopes, gradients):
    m, columns = x.shape
    channels = affine.shape[1]
    add_partials(partials, columns, channels)
    sum_g, products, count = partials[0, 0], partials[1, 0], m * (columns // channels)
    finish_backward(0, channels, count, sum_g, products, batch_stats, stats, affine, slopes, gradients)


@body
def _gradient_task(task, dy, x, bits, relu, rows, affine, slopes, lead, streaming, dx, dresidual):
    first, count = _map_bounds(task, x, rows, lead)
    tile = (first, count, x.shape[1], x.shape[1], task * rows * words_of(bits))
    gradient_tile(dy, x, bits, relu, *tile, affine, slopes, 0, streaming, dx, dresidual)


@body
def _gradient_ends(dy, x, relu, affine, slopes, lead, dx):
    lanes, zero, width = lanes_of(x), splat(x, 0.0), x.shape[1]
    for part in range(2 if lead else 0):
        first, columns, column = _end(part, x, lead)
        for j in range(0, columns, lanes):
            m, count = column + j, min(lanes, columns - j)
            near = load_first(affine, m, count, zero)
            scale = load_first(affine, SCALE * width + m, count, zero)
            shift = load_first(affine, SHIFT * width + m, count, zero)
            a, b = load_first(slopes, A * width + m, count, zero), load_first(slopes, B * width + m, count, zero)
            k = load_first(slopes, K * width + m, count, zero)
            inv_std = load_first(slopes, NEAR_INV_STD * width + m, count, zero)
            v = gradient_first(dy, x, None, relu, first + j, count, 0, near, scale, shift, a, b, k, inv_std, None)
            store_first(dx, first + j, v, count)


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
    wide,
    wide_slopes,
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
    """Backward of ``forward_matrix``: slopes and gradients (2, C) written, then dx and dresidual. dx may be dy.

    wide_slopes: (4, columns), to ``slopes`` what wide is to affine.
    """
    sum_tasks, tasks = -(-x.shape[0] // rows), -(-x.shape[0] // tile)
    whole = _by_column(affine, int64(0), wide)  # a literal 0 would be a version of its own
    finish = (batch_stats, stats, affine, slopes, gradients)
    if parallel:
        for task in prange(sum_tasks):
            products_task(int64(task), dy, x, bits, relu, rows, whole, partials, None)
        _finish_products(x, partials, *finish)
        near, slope = _by_column(affine, lead, wide), _by_column(slopes, lead, wide_slopes)
        for task in prange(tasks):
            _gradient_task(int64(task), dy, x, bits, relu, tile, near, slope, lead, streaming, dx, dresidual)
    else:
        for task in range(sum_tasks):
            products_task(task, dy, x, bits, relu, rows, whole, partials, None)
        _finish_products(x, partials, *finish)
        near, slope = _by_column(affine, lead, wide), _by_column(slopes, lead, wide_slopes)
        for task in range(tasks - 1, -1, -1):  # the rows read last are still in cache
            _gradient_task(task, dy, x, bits, relu, tile, near, slope, lead, streaming, dx, dresidual)
    _gradient_ends(dy, x, relu, near, slope, lead, dx)
