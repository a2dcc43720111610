"""Group norm of channels-last arrays (N, S, C): a group is some columns of an image's S rows.

A task owns ``block`` groups of an image, and maps their columns while they are in its core's cache. Tiles: see
``batch_norm_tiles``; columns of ``stats``, ``affine``, ``slopes`` and ``sums``, weight and bias: see
``group_norm_rows``.
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
from fastbn.kernels.channels import merge, run_moments
from fastbn.kernels.group_norm_rows import finish_group, set_group


@inlined
def _tasks(x, stats, block):
    return x.shape[0] * -(-stats.shape[1] // x.shape[0] // block)


@inlined
def _bounds(task, x, stats, block):
    """Of a task: its first group and the one behind its last, channels of a group, its first element in ``x``."""
    num_groups = stats.shape[1] // x.shape[0]
    n, part = divmod(task, -(-num_groups // block))
    channels = x.shape[2] // num_groups
    first, last = n * num_groups + part * block, n * num_groups + min(num_groups, (part + 1) * block)
    return first, last, channels, n * x.shape[1] * x.shape[2] + part * block * channels


@inlined
def _copied(values, first, last):
    """Columns of ``values`` by themselves."""
    some = np.empty((values.shape[0], last - first), values.dtype)
    for k in range(values.shape[0]):
        for j in range(first, last):
            some[k, j - first] = values[k, j]
    return some


@allocating_body
def _moments_task(task, x, weight, bias, eps, block, stats, affine):
    first, last, channels, start = _bounds(task, x, stats, block)
    s, columns = x.shape[1], (last - first) * channels
    wide = whole_vectors(columns, lanes_of(x))
    sums, squares, shift = np.empty(wide), np.empty(wide), np.empty(wide, affine.dtype)
    set_shift(x, start, columns, 1, shift)
    tile_sums(x, start, s, x.shape[2], columns, shift, sums, squares)
    for r in range(first, last):
        count = 0
        mean = 0.0
        about = 0.0
        for j in range((r - first) * channels, (r - first + 1) * channels):
            mean_j, about_j = run_moments(np.float64(shift[j]), sums[j], squares[j], s)
            mean, about = merge(count, mean, about, s, mean_j, about_j)
            count += s
        set_group(r, channels, mean, about / count, eps, weight, bias, stats, affine)


@allocating_body
def _normalize_task(task, x, block, streaming, stats, affine, out):
    first, last, channels, start = _bounds(task, x, stats, block)
    constants, columns = _copied(affine, first * channels, last * channels), (last - first) * channels
    normalize_tile(x, None, None, out, start, x.shape[1], x.shape[2], columns, 0, constants, 0, -np.inf, streaming)


@driver
def forward_group_columns(x, weight, bias, eps, block, streaming, stats, affine, out, parallel):
    """stats, affine and out written; out may be x."""
    if parallel:
        for task in prange(_tasks(x, stats, block)):
            _moments_task(int64(task), x, weight, bias, eps, block, stats, affine)
            _normalize_task(int64(task), x, block, streaming, stats, affine, out)
    else:
        for task in range(_tasks(x, stats, block)):
            _moments_task(task, x, weight, bias, eps, block, stats, affine)
            _normalize_task(task, x, block, streaming, stats, affine, out)


@allocating_body
def _backward_task(task, dy, x, weight, block, streaming, stats, affine, slopes, sums, dx):
    first, last, channels, start = _bounds(task, x, stats, block)
    s, columns = x.shape[1], (last - first) * channels
    wide = whole_vectors(columns, lanes_of(x))
    sum_g, products = np.empty(wide), np.empty(wide)
    constants = _copied(affine, first * channels, last * channels)
    tile_products(dy, x, None, None, start, s, x.shape[2], columns, 0, constants, 0, sum_g, products, None)
    for j in range(columns):
        sums[0, first * channels + j], sums[1, first * channels + j] = products[j], sum_g[j]
    for r in range(first, last):
        finish_group(r, channels, channels * s, weight, stats, affine, slopes, sums)
    rest = _copied(slopes, first * channels, last * channels)
    tile = (start, s, x.shape[2], columns, 0)
    gradient_tile(dy, x, None, None, *tile, constants, rest, 0, streaming, dx, None)


@driver
def backward_group_columns(dy, x, weight, block, streaming, stats, affine, slopes, sums, dx, parallel):
    """slopes, sums (2, N C) of g xhat and of g, and dx written; dx may be dy."""
    arguments = (dy, x, weight, block, streaming, stats, affine, slopes, sums, dx)
    if parallel:
        for task in prange(_tasks(x, stats, block)):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(_tasks(x, stats, block)):
            _backward_task(task, *arguments)
