"""Batch norm of (N, C, S) arrays whose rows (n, c) are long: one run of memory, one channel's constants. Forward.

A channel is read in chunks that the shape alone decides; sums of d = x - shift and d d are taken in float64, and chunks
are merged in order. A task that owns whole channels normalises them while they are in its core's cache:
``forward_rows``. Where channels are too few to go round, the chunks are the tasks: ``moments_rows``, then
``normalize_rows``.

n_block, s_block: images and positions of a chunk. lead: elements of every row before its first whole vector, so that
streamed vectors lie aligned. bits (N, C, words): a row's signs, one word a vector, for a ReLU whose sign cannot be
computed again. An operand that does not apply is None, and what it would have cost is not compiled.
"""

import numpy as np
from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import (
    element,
    fence,
    load,
    load_first,
    prefetch,
    prefetch_far_like,
    put,
    store_first,
)
from fastbn.kernels.batch_norm_vectors import FAR, ask, normalized, normalized_first, words_of
from fastbn.kernels.channels import MEAN, NEAR_MEAN, SCALE, SHIFT, VAR, first_negative, merge, run_moments
from fastbn.kernels.finish import finish_inference, finish_training, renormalize
from fastbn.kernels.sums import chunk_bounds, chunks_of

AHEAD = 512  # elements: far enough for memory to answer, near enough to be still in the first cache


@inlined
def row_offset(x, n, c):
    """Offset of the first element of row (n, c)."""
    return (n * x.shape[1] + c) * x.shape[2]


@inlined
def row_step(x):
    """Elements from a row to the one that is read after it: the channel's next, or the next channel's of one image."""
    return x.shape[2] if x.shape[0] == 1 else x.shape[1] * x.shape[2]


@inlined
def ahead_of(i, first, last, next_row):
    """What is worth fetching when i is read, of the run from first to last or of the one ``next_row`` elements on."""
    ahead = i + min(AHEAD, last - first)
    return ahead if ahead < last else ahead - (last - first) + next_row


@inlined
def _chunk_moments(bounds, c, x):
    """Count, mean and sum of squares about it of channel c in a chunk of ``chunk_bounds``."""
    n_first, n_last, s_first, s_last = bounds
    lanes = lanes_of(x)
    about = element(x, row_offset(x, n_first, c) + s_first)
    about = about if np.isfinite(about) else 0.0
    near = splat(x, about)
    shift = widen(near)
    d0 = d1 = q0 = q1 = widen(splat(x, 0.0))
    next_row = row_step(x)
    for n in range(n_first, n_last):
        first = row_offset(x, n, c) + s_first
        last = first + s_last - s_first
        twos = last - (last - first) % (2 * lanes)
        for i in range(first, twos, 2 * lanes):
            ahead = ahead_of(i, first, last, next_row)
            prefetch(x, ahead)
            prefetch(x, ahead + lanes)
            a, b = widen(load(x, i)) - shift, widen(load(x, i + lanes)) - shift
            d0, d1, q0, q1 = d0 + a, d1 + b, fma(a, a, q0), fma(b, b, q1)
        for i in range(twos, last, lanes):
            a = widen(load_first(x, i, min(lanes, last - i), near)) - shift
            d0, q0 = d0 + a, fma(a, a, q0)
    count = (n_last - n_first) * (s_last - s_first)
    mean, squares = run_moments(about, total(d0 + d1), total(q0 + q1), count)
    return count, mean, squares


@body
def channel_moments(c, x, n_block, s_block):
    """Count, mean and sum of squares about it of channel c, chunk by chunk."""
    count = 0
    about = 0.0
    squares = 0.0
    for chunk in range(chunks_of(x, n_block, s_block)):
        k, about_k, squares_k = _chunk_moments(chunk_bounds(chunk, x, n_block, s_block), c, x)
        about, squares = merge(count, about, squares, k, about_k, squares_k)
        count += k
    return count, about, squares


@inlined
def _add_chunk(chunk, first, last, x, n_block, s_block, count, moments):
    """The chunk merged into moments (2 or more, C), means and sums of squares about them, of ``count`` values so far.

    Channels from first to last; returns the new count.
    """
    bounds = chunk_bounds(chunk, x, n_block, s_block)
    k = 0
    for c in range(first, last):
        k, about, squares = _chunk_moments(bounds, c, x)
        moments[MEAN, c], moments[VAR, c] = merge(count, moments[MEAN, c], moments[VAR, c], k, about, squares)
    return count + k


@inlined
def normalize_row(n, c, x, residual, affine, floor, lead, streaming, onward, bits, out):
    """Row (n, c) of out, by column c of ``affine``. onward: True if the next row in memory comes next, else None."""
    lanes = lanes_of(x)
    near, scale = splat(x, affine[NEAR_MEAN, c]), splat(x, affine[SCALE, c])
    shift, low = splat(x, affine[SHIFT, c]), splat(x, floor)
    row = row_offset(x, n, c)
    last = row + x.shape[2]
    whole = last - (x.shape[2] - lead) % lanes
    word = (n * x.shape[1] + c) * words_of(bits)
    for i in range(row + lead, whole, lanes):
        if streaming:
            if onward is not None:
                ask(x, residual, i + FAR, near)
            elif residual is not None:
                prefetch_far_like(residual, i + AHEAD, near)
        put(out, i, normalized(x, residual, bits, i, word, near, scale, shift, low), streaming)
        word += 1
    for part in range(2):  # the ends of the row; with bits there is no lead
        i, count = (row, lead) if part == 0 else (whole, last - whole)
        if count:
            v = normalized_first(x, residual, bits, i, count, word, near, scale, shift, low)
            store_first(out, i, v, count)


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
    renorm,
    n_block,
    s_block,
    block,
    floor,
    lead,
    streaming,
    stats,
    affine,
    bits,
    out,
):
    first = task * block
    last = min(x.shape[1], first + block)
    count = 0
    for chunk in range(chunks_of(x, n_block, s_block)):
        count = _add_chunk(chunk, first, last, x, n_block, s_block, count, stats)
    finish_training(first, last, count, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    if renorm is not None:
        renormalize(first, last, weight, bias, stats, affine)
    for n in range(x.shape[0] - 1, -1, -1):  # the images read last are still in cache
        for c in range(first, last):
            normalize_row(n, c, x, residual, affine, floor, lead, streaming, None, bits, out)
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
    renorm,
    n_block,
    s_block,
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
    """Training, ``block`` channels a task: stats, affine and bits written, then ``out`` as by ``normalize_rows``.

    out may be x or residual.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    tasks = -(-x.shape[1] // block)
    parameters = (weight, bias, running_mean, running_var, momentum, eps, renorm)
    arguments = (x, residual, *parameters, n_block, s_block, block, floor, lead, streaming, stats, affine, bits, out)
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
    _add_chunk(chunk, c, c + 1, x, n_block, s_block, 0, partials[chunk])


@driver
def moments_rows(
    x,
    weight,
    bias,
    running_mean,
    running_var,
    momentum,
    eps,
    renorm,
    n_block,
    s_block,
    partials,
    stats,
    affine,
    parallel,
):
    """Training, a chunk of a channel a task: stats and affine written. partials: (chunks, 2, C), a workspace."""
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    chunks = chunks_of(x, n_block, s_block)
    if parallel:
        for task in prange(chunks * x.shape[1]):
            _moments_task(int64(task), x, n_block, s_block, partials)
    else:
        for task in range(chunks * x.shape[1]):
            _moments_task(task, x, n_block, s_block, partials)
    channels = x.shape[1]
    count = 0
    for chunk in range(chunks):
        n_first, n_last, s_first, s_last = chunk_bounds(chunk, x, n_block, s_block)
        k, new = (n_last - n_first) * (s_last - s_first), partials[chunk]
        for c in range(channels):
            stats[MEAN, c], stats[VAR, c] = merge(count, stats[MEAN, c], stats[VAR, c], k, new[MEAN, c], new[VAR, c])
        count += k
    finish_training(0, channels, count, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    if renorm is not None:
        renormalize(0, channels, weight, bias, stats, affine)
    return negative


@body
def _normalize_task(task, x, residual, block, affine, floor, lead, streaming, bits, out):
    n, c = divmod(task * block, x.shape[1])
    for _ in range(min(block, x.shape[0] * x.shape[1] - task * block)):
        normalize_row(n, c, x, residual, affine, floor, lead, streaming, True, bits, out)
        c += 1
        if c == x.shape[1]:
            n, c = n + 1, 0
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
    floor,
    lead,
    streaming,
    stats,
    affine,
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
