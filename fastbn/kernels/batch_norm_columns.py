"""Batch norm of (N, C, S) arrays whose rows (n, c) are short: N rows of C * S columns, S of them to a channel.

A task owns the columns of ``block`` channels, in all rows, and maps them while they are in its core's cache. Tiles,
``bits`` and operands that are None: see ``batch_norm_tiles``.
"""

import numpy as np
from numba import int64, prange

from fastbn.kernels._jit import allocating_body, driver, inlined
from fastbn.kernels._vector import lanes_of
from fastbn.kernels.batch_norm_tiles import (
    gradient_tile,
    normalize_tile,
    set_shift,
    tile_products,
    tile_sums,
    whole_vectors,
)
from fastbn.kernels.channels import first_negative
from fastbn.kernels.finish import finish_backward, finish_inference, finish_training, renormalize, set_moments


@inlined
def _bounds(task, x, block):
    """First channel of a task, and the number of its channels."""
    first = task * block
    return first, min(x.shape[1], first + block) - first


@inlined
def _first_word(task, x, block):
    return task * (-(-block * x.shape[2] // lanes_of(x)))


@inlined
def _spread(values, first, count, s):
    """Rows of per-channel ``values``, each entry repeated for its ``s`` columns, and the column of channel ``first``.

    Of ``count`` channels from that on, or ``values`` themselves.
    """
    if s == 1:
        return values, first
    spread = np.empty((values.shape[0], count * s), values.dtype)
    for k in range(values.shape[0]):
        for c in range(count):
            for j in range(c * s, (c + 1) * s):
                spread[k, j] = values[k, first + c]
    return spread, 0


@inlined
def _gather(sums, products, count, s):
    """Both begin with the sums of ``count`` channels of ``s`` columns."""
    for k in range(count if s > 1 else 0):
        sum_k = 0.0
        product = 0.0
        for j in range(k * s, (k + 1) * s):
            sum_k += sums[j]
            product += products[j]
        sums[k], products[k] = sum_k, product


@allocating_body
def _normalize_task(task, x, residual, block, affine, floor, streaming, bits, out):
    n, c, s = x.shape
    first, count = _bounds(task, x, block)
    word = _first_word(task, x, block)
    spread, column = _spread(affine, first, count, s)
    normalize_tile(x, residual, bits, out, first * s, n, c * s, count * s, word, spread, column, floor, streaming)


@allocating_body
def _moments_task(task, x, weight, bias, running_mean, running_var, momentum, eps, renorm, block, stats, affine):
    n, c, s = x.shape
    first, count = _bounds(task, x, block)
    wide = whole_vectors(count * s, lanes_of(x))
    sums, squares, shift = np.empty(wide), np.empty(wide), np.empty(wide, affine.dtype)
    set_shift(x, first * s, count * s, s, shift)
    tile_sums(x, first * s, n, c * s, count * s, shift, sums, squares)
    last = first + count
    _gather(sums, squares, count, s)
    for k in range(count):
        shift[k] = shift[k * s]
    set_moments(first, last, n * s, shift, sums, squares, stats)
    finish_training(first, last, n * s, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    if renorm is not None:
        renormalize(first, last, weight, bias, stats, affine)


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
    renorm,
    block,
    floor,
    lead,
    streaming,
    stats,
    affine,
    bits,
    out,
    parallel,
):
    """Training of x (N, C, S), ``block`` channels a task: stats, affine and bits written, then out.

    out = max((x - mean) * scale + shift + residual, floor); it may be x or residual. lead: 0.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[1] // block)
    moments = (x, weight, bias, running_mean, running_var, momentum, eps, renorm, block, stats, affine)
    normalize = (x, residual, block, affine, floor, streaming, bits, out)
    if parallel:
        for task in prange(tasks):
            _moments_task(int64(task), *moments)
            _normalize_task(int64(task), *normalize)
    else:
        for task in range(tasks):
            _moments_task(task, *moments)
            _normalize_task(task, *normalize)
    return negative


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
    floor,
    lead,
    streaming,
    stats,
    affine,
    bits,
    out,
    parallel,
):
    """out = max((x - mean) * scale + shift + residual, floor) of x (N, C, S), ``block`` channels a task.

    stats and affine are written by the running statistics first. lead: 0.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    tasks = -(-x.shape[1] // block)
    arguments = (x, residual, block, affine, floor, streaming, bits, out)
    if parallel:
        for task in prange(tasks):
            _normalize_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _normalize_task(task, *arguments)
    return negative


@allocating_body
def _backward_task(
    task, dy, x, bits, relu, batch_stats, block, streaming, stats, affine, slopes, gradients, dx, dresidual
):
    n, c, s = x.shape
    first, count = _bounds(task, x, block)
    word, wide = _first_word(task, x, block), whole_vectors(count * s, lanes_of(x))
    spread, column = _spread(affine, first, count, s)
    sums, products = np.empty(wide), np.empty(wide)
    tile_products(dy, x, bits, relu, first * s, n, c * s, count * s, word, spread, column, sums, products, None)
    _gather(sums, products, count, s)
    finish_backward(first, first + count, n * s, sums, products, batch_stats, stats, affine, slopes, gradients)
    spread_slopes, _ = _spread(slopes, first, count, s)
    tile, constants = (first * s, n, c * s, count * s, word), (spread, spread_slopes, column)
    gradient_tile(dy, x, bits, relu, *tile, *constants, streaming, dx, dresidual)


@driver
def backward_columns(
    dy, x, bits, relu, batch_stats, block, streaming, stats, affine, slopes, gradients, dx, dresidual, parallel
):
    """Backward of ``forward_columns``: slopes and gradients (2, C) written, then dx and dresidual. dx may be dy."""
    tasks = -(-x.shape[1] // block)
    arguments = (dy, x, bits, relu, batch_stats, block, streaming, stats, affine, slopes, gradients, dx, dresidual)
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _backward_task(task, *arguments)
