"""Convolution, batch norm, activation and average pooling of small images as one unit: backward, see ``conv_bn_lanes``.

One pass makes batch norm's sums. The other takes the gradient through batch norm, a block at a time, and both gradients
of the convolution from there: it is never written.
"""

import math

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import fma, lanes_of, load, prefetch, splat, store, total, where_passed, widen
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, A, B, K, finish_backward
from fastbn.kernels.conv_bn_lanes import NOTHING, SIGMOID, ceiling_of
from fastbn.kernels.lanes import (
    add_products,
    channel_size,
    clear_lanes,
    correlate_planes,
    fill_planes,
    first_image,
    gather_panels,
    read_images,
    read_planes,
    store_products,
    write_images,
)

AHEAD = 32  # vectors


@inlined
def _passed(share, value, activation, one, high):
    """The gradient through an activation whose output was ``value``."""
    if activation == SIGMOID:
        return share * value * (one - value)
    if activation == NOTHING:
        return share
    return where_passed(value, share, high)


@body
def _plane_products(dy, at, s, z, start, height, width, pool, activation, near):
    """Sums of g and of g (z - near) over a plane, g being the gradient to what the activation read."""
    lanes, one, high, part = lanes_of(z), splat(z, 1.0), ceiling_of(activation), splat(z, 1.0 / (pool[0] * pool[1]))
    about = widen(splat(z, near))
    gs = products = widen(splat(z, 0.0))
    columns = width // pool[1]
    for row in range(0, height - pool[0] + 1, pool[0]):
        for i in range(pool[0]):
            for j in range(pool[1]):
                line = start + ((row + i) * width + j) * lanes
                for column in range(columns):
                    pixel = line + column * pool[1] * lanes
                    prefetch(s, pixel + AHEAD * lanes)
                    prefetch(z, pixel + AHEAD * lanes)
                    share = load(dy, at + column * lanes) * part
                    g = widen(_passed(share, load(s, pixel), activation, one, high))
                    gs, products = gs + g, fma(g, widen(load(z, pixel)) - about, products)
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
def _plane_gradient(dy, at, s, z, start, height, width, pool, activation, affine, slopes, c, dz):
    """dz = a g + b (z - mean) inv_std + k in the plane from ``start`` on."""
    lanes, one, high, part = lanes_of(z), splat(z, 1.0), ceiling_of(activation), splat(z, 1.0 / (pool[0] * pool[1]))
    near, inv_std = splat(z, affine[NEAR_MEAN, c]), splat(z, slopes[NEAR_INV_STD, c])
    a, b, k = splat(z, slopes[A, c]), splat(z, slopes[B, c]), splat(z, slopes[K, c])
    if height % pool[0] or width % pool[1]:
        for pixel in range(start, start + height * width * lanes, lanes):
            store(dz, pixel, fma((load(z, pixel) - near) * inv_std, b, k))
    columns = width // pool[1]
    for row in range(0, height - pool[0] + 1, pool[0]):
        for i in range(pool[0]):
            for j in range(pool[1]):
                line = start + ((row + i) * width + j) * lanes
                for column in range(columns):
                    pixel = line + column * pool[1] * lanes
                    share = load(dy, at + column * lanes) * part
                    g = _passed(share, load(s, pixel), activation, one, high)
                    store(dz, pixel, fma(g, a, fma((load(z, pixel) - near) * inv_std, b, k)))
        at += columns * lanes


@body
def _block_gradient(first, skipped, dy, y_shape, z_shape, activation, pool, affine, slopes, z, s, work, dz):
    """dz of a block, zero in the lanes that are skipped."""
    lanes, channels, size, pixels = lanes_of(z), z_shape[1], y_shape[2] * y_shape[3], z_shape[2] * z_shape[3]
    read_images(dy, first * channels * size, channels * size, skipped, work)
    for c in range(channels):
        _plane_gradient(
            work, c * size * lanes, s, z, c * pixels * lanes, z_shape[2], z_shape[3], pool, activation, affine, slopes,
            c, dz,
        )  # fmt: skip
    clear_lanes(dz, channels * pixels, skipped)


@body
def _gradients_task(
    task, dy, y_shape, x, x_shape, z_shape, activation, pool, affine, slopes, z, s, groups, weights, blocks_at_once,
    partials, data, panels, dx, cuts, room,
):  # fmt: skip
    work, planes, dz = room[: cuts[0]], room[cuts[0] : cuts[1]], room[cuts[1] : cuts[2]]
    dz_planes, sums, spare = room[cuts[2] : cuts[3]], room[cuts[3] : cuts[4]], room[cuts[4] :]
    lanes, outputs, channels = lanes_of(x), z_shape[1] // groups, x_shape[1] // groups
    source, dz_source = weights[:6], data[:6]
    offsets, depth, dz_offsets = weights[6:]
    distances, tiles, _, sparse = data[6:]
    group_size = channels * channel_size(source) * lanes
    size, pixels = x_shape[1] * x_shape[2] * x_shape[3], x_shape[2] * x_shape[3]
    for index in range(sums.size):
        sums[index] = 0
    for block in range(task * blocks_at_once, min(z.shape[0], (task + 1) * blocks_at_once)):
        first, skipped = first_image(block, lanes, x_shape[0])
        _block_gradient(
            first, skipped, dy, y_shape, z_shape, activation, pool, affine, slopes, z[block], s[block], work, dz
        )
        read_planes(x, x_shape, first, skipped, source, work, planes)
        add_products(dz, z_shape, dz_offsets, groups, planes, group_size, source[5], offsets, depth, sums)
        if dx.size:
            fill_planes(dz, z_shape[1], z_shape[2], z_shape[3], dz_source, dz_planes)
            dz_size = outputs * channel_size(dz_source) * lanes
            correlate_planes(
                dz_planes, dz_size, distances, tiles, panels, groups, channels, pixels * lanes, sparse, work
            )
            write_images(work, size, skipped, dx[:0], splat(dx, -math.inf), dx, first * size, spare)
    store_products(sums, task, groups, outputs, depth, partials)


@driver
def backward_unit_lanes(
    dy, y_shape, x, x_shape, z_shape, batch_stats, activation, pool, stats, affine, slopes, z, s, products, gradients,
    groups, weights, blocks_at_once, partials, data, weight, dx, cuts, room, parallel,
):  # fmt: skip
    """Gradients of ``forward_unit_lanes``: of batch norm (2, C), of the weights by split as partials, and dx.

    weights: the six of source, then offsets, depth and dy_offsets of ``correlate_weights_lanes``; data: the six of
    source, then offsets, tiles, index and sparse of the gradient to x in ``correlate_lanes``. dx: empty if it is not
    needed. slopes: written; products: (2, blocks, C) float64, room. room: (threads, elements), of which ``cuts`` are
    the ends of images, planes, the gradient to z, its planes and sums; a square of vectors is left.
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
    for c in range(z_shape[1]):
        sum_g = 0.0
        product = 0.0
        for block in range(blocks):
            sum_g += products[0, block, c]
            product += products[1, block, c]
        finish_backward(c, count, sum_g, product, batch_stats, stats, affine, slopes, gradients)
    panels = gather_panels(weight, weight[:0], data[8][: data[8].size if dx.size else 0])
    if parallel:
        for task in prange(splits):
            _gradients_task(
                int64(task), dy, y_shape, x, x_shape, z_shape, activation, pool, affine, slopes, z, s, groups, weights,
                blocks_at_once, partials, data, panels, dx, cuts, room[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(splits):
            _gradients_task(
                task, dy, y_shape, x, x_shape, z_shape, activation, pool, affine, slopes, z, s, groups, weights,
                blocks_at_once, partials, data, panels, dx, cuts, room[0],
            )  # fmt: skip
