"""Group norm of C-contiguous arrays: a group is one run of memory, made of its channels' runs.

``groups`` (1, N G, L) and ``x`` (1, N C, S) are the same memory: the first is summed, the second mapped, each as batch
norm reads the channels of a single image. A task owns ``block`` groups, and maps them while they are in its core's
cache. Columns of ``stats`` are groups; those of ``affine``, ``slopes`` and ``sums`` channels of images, n-major.
weight, bias: (C,) float64, or empty for 1 and 0. Instance norm is that of groups of one channel.
"""

import numpy as np
from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector_memory import fence
from fastbn.kernels.batch_norm_rows import channel_moments, normalize_row
from fastbn.kernels.batch_norm_rows_backward import channel_products, gradient_row
from fastbn.kernels.channels import (
    INV_STD,
    MEAN,
    NEAR_MEAN,
    SCALE,
    entry,
    normalized_product,
    set_affine,
    set_slopes,
    set_stats,
)


@inlined
def set_group(r, channels, mean, var, eps, weight, bias, stats, affine):
    """Group r of ``stats``, and its ``channels`` channels of ``affine``."""
    inv_std = set_stats(r, mean, var, eps, stats)
    for j in range(r * channels, (r + 1) * channels):
        c = j % weight.size if weight.size else 0
        d = j % bias.size if bias.size else 0
        set_affine(j, mean, inv_std * entry(weight, c, 1.0), entry(bias, d, 0.0), affine)


@inlined
def finish_group(r, channels, length, weight, stats, affine, slopes, sums):
    """Group r of ``slopes``; sums (2, N C) of g (x - affine's mean) and of g become those of g xhat and of g."""
    mean, inv_std = stats[MEAN, r], stats[INV_STD, r]
    sum_h = 0.0
    product = 0.0
    for j in range(r * channels, (r + 1) * channels):
        sums[0, j] = normalized_product(mean, inv_std, affine[NEAR_MEAN, j], sums[1, j], sums[0, j])
        w = entry(weight, j % weight.size if weight.size else 0, 1.0)
        sum_h += w * sums[1, j]
        product += w * sums[0, j]
    slope, constant = -inv_std * product / length, -inv_std * sum_h / length
    for j in range(r * channels, (r + 1) * channels):
        set_slopes(j, mean, inv_std, affine[NEAR_MEAN, j], np.float64(affine[SCALE, j]), slope, constant, slopes)


@body
def _forward_task(task, groups, x, weight, bias, eps, chunk, block, lead, streaming, stats, affine, out):
    channels = x.shape[1] // groups.shape[1]
    for r in range(task * block, min(groups.shape[1], (task + 1) * block)):
        count, mean, squares = channel_moments(r, groups, 1, chunk)
        set_group(r, channels, mean, squares / count, eps, weight, bias, stats, affine)
        for j in range(r * channels, (r + 1) * channels):
            normalize_row(0, j, x, None, affine, -np.inf, lead, streaming, None, None, out)
    if streaming:
        fence()


@driver
def forward_groups(groups, x, weight, bias, eps, chunk, block, lead, streaming, stats, affine, out, parallel):
    """stats, affine and out written; ``chunk``: elements of a group that are summed together. out may be x."""
    tasks = -(-groups.shape[1] // block)
    arguments = (groups, x, weight, bias, eps, chunk, block, lead, streaming, stats, affine, out)
    if parallel:
        for task in prange(tasks):
            _forward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _forward_task(task, *arguments)


@body
def _backward_task(task, dy, x, weight, chunk, block, lead, streaming, stats, affine, slopes, sums, dx):
    channels = x.shape[1] // stats.shape[1]
    for r in range(task * block, min(stats.shape[1], (task + 1) * block)):
        first, last = r * channels, (r + 1) * channels
        for j in range(first, last):
            sums[1, j], sums[0, j] = channel_products(j, dy, x, None, None, affine, 1, chunk)
        finish_group(r, channels, channels * x.shape[2], weight, stats, affine, slopes, sums)
        for j in range(first, last):
            gradient_row(0, j, dy, x, None, None, affine, slopes, lead, streaming, dx)
    if streaming:
        fence()


@driver
def backward_groups(dy, x, weight, chunk, block, lead, streaming, stats, affine, slopes, sums, dx, parallel):
    """slopes, sums (2, N C) of g xhat and of g, and dx written; dx may be dy."""
    tasks = -(-stats.shape[1] // block)
    arguments = (dy, x, weight, chunk, block, lead, streaming, stats, affine, slopes, sums, dx)
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _backward_task(task, *arguments)
