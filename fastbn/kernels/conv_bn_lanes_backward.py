"""Convolution, batch norm, activation and average pooling of small images as one unit: backward, see ``conv_bn_lanes``.

One pass makes batch norm's sums. The other takes the gradient through batch norm, a block at a time, and both gradients
of the convolution from there: it is never written.
"""

import math

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import allocating_driver, body
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import load, prefetch, store
from fastbn.kernels.batch_norm_matrix import add_partials
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, A, B, K
from fastbn.kernels.finish import finish_backward
from fastbn.kernels.lanes import (
    add_products,
    backwards,
    channel_size,
    clear_lanes,
    correlate_planes,
    first_image,
    gather_panels,
    read_images,
    read_planes,
    store_products,
    write_images,
)
from fastbn.kernels.unit_activation import ceiling_of, passed

AHEAD = 32  # vectors


@body
def _plane_products(dy, at, s, z, start, height, width, pool, activation, near):
    """Sums of g and of g (z - near) over a plane, g being the gradient to what the activation read."""
    lanes, one, high, part = lanes_of(z), splat(z, 1.0), ceiling_of(activation), splat(z, 1.0 / (pool[0] * pool[1]))
    about, zero = splat(z, near), splat(z, 0.0)
    gs = products = widen(zero)
    columns = width // pool[1]
    for row in range(0, height - pool[0] + 1, pool[0]):
        for i in range(pool[0]):
            for j in range(pool[1]):
                line = start + ((row + i) * width + j) * lanes
                row_gs = row_products = zero
                for column in range(columns):
                    pixel = line + column * pool[1] * lanes
                    prefetch(s, pixel + AHEAD * lanes)
                    prefetch(z, pixel + AHEAD * lanes)
                    share = load(dy, at + column * lanes) * part
                    g = passed(share, load(s, pixel), activation, one, high)
                    row_gs, row_products = row_gs + g, fma(g, load(z, pixel) - about, row_products)
                gs, products = gs + widen(row_gs), products + widen(row_products)
        at += columns * lanes
    return total(gs), total(products)


@body
def _products_task(block, dy, y_shape, x_shape, z_shape, activation, pool, affine, z, s, products, work):
    lanes, channels, size = lanes_of(z), z_shape[1], y_shape[2] * y_shape[3]
    first, skipped = first_image(block, lanes, x_shape[0])
    read_images(dy, first * channels * size, channels * size, skipped, work)
    for c in range(channels):
        start = c * z_shape[2] * z_shape[3] * lanes
        products[0, block, c], products[1, block, c] = _plane_products(
            work, c * size * lanes, s, z, start, z_shape[2], z_shape[3], pool, activation, affine[NEAR_MEAN, c]
        )


@body
def _plane_gradient(dy, at, s, z, start, height, width, pool, activation, affine, slopes, c, dz, target, line):
    """dz = a g + b (z - mean) inv_std + k of a plane, row by row from ``target`` on, ``line`` elements apart."""
    lanes, one, high, part = lanes_of(z), splat(z, 1.0), ceiling_of(activation), splat(z, 1.0 / (pool[0] * pool[1]))
    near, a, k = splat(z, affine[NEAR_MEAN, c]), splat(z, slopes[A, c]), splat(z, slopes[K, c])
    b = splat(z, slopes[NEAR_INV_STD, c]) * splat(z, slopes[B, c])
    if height % pool[0] or width % pool[1]:
        for row in range(height):
            for column in range(width):
                pixel = start + (row * width + column) * lanes
                store(dz, target + row * line + column * lanes, fma(load(z, pixel) - near, b, k))
    columns = width // pool[1]
    for row in range(0, height - pool[0] + 1, pool[0]):
        for i in range(pool[0]):
            for j in range(pool[1]):
                source, goal = start + ((row + i) * width + j) * lanes, target + (row + i) * line + j * lanes
                for column in range(columns):
                    step = column * pool[1] * lanes
                    share = load(dy, at + column * lanes) * part
                    g = passed(share, load(s, source + step), activation, one, high)
                    store(dz, goal + step, fma(g, a, fma(load(z, source + step) - near, b, k)))
        at += columns * lanes


@body
def _block_gradient(first, skipped, dy, y_shape, z_shape, activation, pool, affine, slopes, z, s, work, dz, lie):
    """dz of a block, zero in the lanes that are skipped; lie: see ``add_products``."""
    lanes, channels, size, pixels = lanes_of(z), z_shape[1], y_shape[2] * y_shape[3], z_shape[2] * z_shape[3]
    read_images(dy, first * channels * size, channels * size, skipped, work)
    for c in range(channels):
        _plane_gradient(
            work, c * size * lanes, s, z, c * pixels * lanes, z_shape[2], z_shape[3], pool, activation, affine, slopes,
            c, dz, (lie[0] + c * lie[2]) * lanes, lie[1] * lanes,
        )  # fmt: skip
    clear_lanes(dz, channels * lie[2], skipped)


@body
def _gradients_task(
    task, dy, y_shape, x, x_shape, z_shape, activation, pool, affine, slopes, z, s, groups, weights, dz_lie,
    blocks_at_once, partials, data, panels, dx, cuts, room,
):  # fmt: skip
    work, planes, dz = room[: cuts[0]], room[cuts[0] : cuts[1]], room[cuts[1] : cuts[2]]
    sums, spare = room[cuts[2] : cuts[3]], room[cuts[3] :]
    lanes, outputs, channels = lanes_of(x), z_shape[1] // groups, x_shape[1] // groups
    source, (offsets, depth) = weights[:6], weights[6:]
    lie, dz_offsets = dz_lie[:3], dz_lie[3]
    distances, tiles, _, sparse = data
    group_size = channels * channel_size(source) * lanes
    size, pixels = x_shape[1] * x_shape[2] * x_shape[3], x_shape[2] * x_shape[3]
    for index in range(sums.size):
        sums[index] = 0
    for index in range(dz.size if dx.size else 0):  # what lies around the images
        dz[index] = 0
    for block in range(task * blocks_at_once, min(z.shape[0], (task + 1) * blocks_at_once)):
        first, skipped = first_image(block, lanes, x_shape[0])
        _block_gradient(
            first, skipped, dy, y_shape, z_shape, activation, pool, affine, slopes, z[block], s[block], work, dz, lie
        )
        read_planes(x, x_shape, first, skipped, source, work, planes)
        add_products(dz, z_shape, lie, dz_offsets, groups, planes, group_size, source[5], offsets, depth, sums)
        if dx.size:
            dz_size = outputs * lie[2] * lanes
            correlate_planes(dz, dz_size, distances, tiles, panels, groups, channels, pixels * lanes, sparse, work)
            write_images(work, size, skipped, dx[:0], (-math.inf, math.inf), dx, first * size, spare)
    store_products(sums, task, groups, outputs, depth, partials)


@allocating_driver
def backward_unit_lanes(
    dy, y_shape, x, x_shape, z_shape, batch_stats, activation, pool, stats, affine, slopes, z, s, products, gradients,
    groups, weights, dz_lie, blocks_at_once, partials, data, weight, dx, cuts, room, parts, parallel,
):  # fmt: skip
    """Gradients of ``forward_unit_lanes``: of batch norm (2, C), of the weights by split as partials, and dx.

    weights: the six of source, then offsets and depth of ``correlate_weights_lanes``. dz_lie: how the gradient to z
    lies, see ``add_products``, and its outputs' offsets. data: offsets, tiles, index and sparse of the gradient to x in
    ``correlate_lanes``. dx: empty if it is not needed. slopes: written; products: (2, blocks, C) float64, room. room:
    (threads, elements), of which ``cuts`` are the ends of images, planes, the gradient to z and sums; a square of
    vectors is left. parts: threads.
    """
    blocks = z.shape[0]
    splits = -(-blocks // blocks_at_once)
    if parallel:
        for task in prange(blocks):
            _products_task(
                int64(task), dy, y_shape, x_shape, z_shape, activation, pool, affine, z[task], s[task], products,
                room[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(blocks):
            _products_task(
                task, dy, y_shape, x_shape, z_shape, activation, pool, affine, z[task], s[task], products, room[0]
            )
    count = x_shape[0] * z_shape[2] * z_shape[3]
    add_partials(products, z_shape[1], z_shape[1])
    sum_g, product = products[0, 0], products[1, 0]
    finish_backward(0, z_shape[1], count, sum_g, product, batch_stats, stats, affine, slopes, gradients)
    panels = gather_panels(weight, weight[:0], data[2][: data[2].size if dx.size else 0])
    if parallel:
        for part in prange(parts):
            for task in backwards(int64(part), parts, splits):
                _gradients_task(
                    task, dy, y_shape, x, x_shape, z_shape, activation, pool, affine, slopes, z, s, groups, weights,
                    dz_lie, blocks_at_once, partials, data, panels, dx, cuts, room[get_thread_id()],
                )  # fmt: skip
    else:
        for task in backwards(0, 1, splits):
            _gradients_task(
                task, dy, y_shape, x, x_shape, z_shape, activation, pool, affine, slopes, z, s, groups, weights,
                dz_lie, blocks_at_once, partials, data, panels, dx, cuts, room[0],
            )  # fmt: skip
