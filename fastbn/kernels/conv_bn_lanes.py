"""Convolution, batch norm, activation and average pooling of small images side by side, trained as one unit.

See ``lanes``. Between the passes images stay side by side: ``z`` (blocks, elements), what the convolution made, and
``s``, what the activation made of it; both (channels, pixels, lanes) in a row, with LANE_ROWS - 1 channels more.
activation: NOTHING and so on. pool: height and width of the windows, which meet and begin in the corner; 1 and 1 for
none. Their sums are taken in the dtype of the images.
"""

import math

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._exp import logistic
from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import (
    add_to,
    at_least,
    at_most,
    element,
    fma,
    lanes_of,
    load,
    prefetch,
    splat,
    store,
    total,
    where_passed,
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
NOTHING, RELU, RELU6, SIGMOID = range(4)


@body
def _plane_moments(z, start, pixels, skipped):
    """Mean of a plane and sum of squares about it, but for the first ``skipped`` lanes."""
    lanes = lanes_of(z)
    about = element(z, start + skipped)
    about = about if np.isfinite(about) else 0.0
    shift = widen(splat(z, about))
    d0 = d1 = q0 = q1 = widen(splat(z, 0.0))
    last = start + pixels * lanes
    even = last - pixels % 2 * lanes
    for i in range(start, even, 2 * lanes):
        a, b = widen(load(z, i)) - shift, widen(load(z, i + lanes)) - shift
        d0, d1, q0, q1 = d0 + a, d1 + b, fma(a, a, q0), fma(b, b, q1)
    if even < last:
        a = widen(load(z, even)) - shift
        d0, q0 = d0 + a, fma(a, a, q0)
    if skipped == 0:
        return run_moments(about, total(d0 + d1), total(q0 + q1), pixels * lanes)
    by_lane = np.zeros(2 * lanes)
    add_to(by_lane, 0, d0 + d1)
    add_to(by_lane, lanes, q0 + q1)
    sum_d, squares = by_lane[skipped:lanes].sum(), by_lane[lanes + skipped :].sum()
    return run_moments(about, sum_d, squares, pixels * (lanes - skipped))


@body
def _convolve_task(
    block, x, x_shape, source, offsets, tiles, panels, groups, z_shape, training, z, partials, cuts, room
):
    work, planes = room[: cuts[0]], room[cuts[0] : cuts[1]]
    lanes, channels, pixels = lanes_of(x), z_shape[1], z_shape[2] * z_shape[3]
    group_size = x_shape[1] // groups * channel_size(source) * lanes
    first, skipped = first_image(block, lanes, x_shape[0])
    read_planes(x, x_shape, first, 0, source, work, planes)
    correlate_planes(planes, group_size, offsets, tiles, panels, groups, channels // groups, pixels * lanes, False, z)
    for c in range(channels if training else 0):
        partials[0, block, c], partials[1, block, c] = _plane_moments(z, c * pixels * lanes, pixels, skipped)


@inlined
def _finish_moments(x_shape, z_shape, lanes, partials, parameters, momentum, eps, stats, affine):
    """Statistics of every channel from those of its blocks, in order."""
    weight, bias, running_mean, running_var = parameters
    for c in range(z_shape[1]):
        count = 0
        mean = 0.0
        squares = 0.0
        for block in range(partials.shape[1]):
            _, skipped = first_image(block, lanes, x_shape[0])
            k = (lanes - skipped) * z_shape[2] * z_shape[3]
            mean, squares = merge(count, mean, squares, k, partials[0, block, c], partials[1, block, c])
            count += k
        finish_training(c, count, mean, squares, weight, bias, running_mean, running_var, momentum, eps, stats, affine)


@body
def _activate(z, affine, c, activation, s):
    """s = the activation of the normalised channel ``z``."""
    near, scale, shift = splat(z, affine[NEAR_MEAN, c]), splat(z, affine[SCALE, c]), splat(z, affine[SHIFT, c])
    low, high = splat(z, -math.inf if activation == NOTHING else 0.0), _ceiling(activation)
    if activation == SIGMOID:
        for i in range(0, z.size, lanes_of(z)):
            store(s, i, logistic(fma(load(z, i) - near, scale, shift)))
    else:
        for i in range(0, z.size, lanes_of(z)):
            store(s, i, at_most(at_least(fma(load(z, i) - near, scale, shift), low), high))


@inlined
def _ceiling(activation):
    return 6.0 if activation == RELU6 else math.inf


@body
def _pool_plane(s, start, height, width, pool, out, at):
    """The means of a plane's windows, from ``at`` on."""
    lanes, part = lanes_of(s), splat(s, 1.0 / (pool[0] * pool[1]))
    columns = width // pool[1]
    for row in range(0, height - pool[0] + 1, pool[0]):
        for i in range(pool[0]):
            for j in range(pool[1]):
                line = start + ((row + i) * width + j) * lanes
                for column in range(columns):
                    value = load(s, line + column * pool[1] * lanes) * part
                    store(out, at + column * lanes, load(out, at + column * lanes) + value if i + j else value)
        at += columns * lanes


@body
def _finish_task(block, x_shape, z_shape, activation, pool, affine, z, s, y, y_shape, cuts, room):
    work, spare = room[: cuts[0]], room[cuts[1] :]
    lanes, channels, pixels = lanes_of(z), z_shape[1], z_shape[2] * z_shape[3]
    plane, size = pixels * lanes, y_shape[2] * y_shape[3]
    first, skipped = first_image(block, lanes, x_shape[0])
    for c in range(channels):
        _activate(z[c * plane : (c + 1) * plane], affine, c, activation, s[c * plane : (c + 1) * plane])
        _pool_plane(s, c * plane, z_shape[2], z_shape[3], pool, work, c * size * lanes)
    start = first * channels * size
    write_images(work, channels * size, skipped, y[:0], splat(y, -math.inf), y, start, spare)


@driver
def forward_unit_lanes(
    x, x_shape, source, offsets, tiles, weight, bias, index, groups, z_shape, parameters, momentum, eps, training,
    activation, pool, z, s, y, y_shape, stats, affine, partials, cuts, room, parallel,
):  # fmt: skip
    """y = the pooled activation of the batch norm of a convolution; z, s, stats and affine are for the backward pass.

    The convolution's operands: see ``correlate_lanes``; parameters, stats, affine: see ``channels``. training: by the
    batch's statistics. partials: (2, blocks, C), float64, room for theirs. room: (threads, elements), of which ``cuts``
    are the ends of images and planes; a square of vectors is left.
    """
    negative = first_negative(parameters[3])
    if negative >= 0:
        return negative
    blocks = z.shape[0]
    panels = gather_panels(weight, bias, index)
    if parallel:
        for task in prange(blocks):
            _convolve_task(
                int64(task), x, x_shape, source, offsets, tiles, panels, groups, z_shape, training, z[task], partials,
                cuts, room[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(blocks):
            _convolve_task(
                task, x, x_shape, source, offsets, tiles, panels, groups, z_shape, training, z[task], partials,
                cuts, room[0],
            )  # fmt: skip
    if training:
        _finish_moments(x_shape, z_shape, lanes_of(x), partials, parameters, momentum, eps, stats, affine)
    else:
        finish_inference(parameters[0], parameters[1], parameters[2], parameters[3], eps, stats, affine)
    if parallel:
        for task in prange(blocks):
            _finish_task(
                int64(task), x_shape, z_shape, activation, pool, affine, z[task], s[task], y, y_shape, cuts,
                room[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(blocks):
            _finish_task(task, x_shape, z_shape, activation, pool, affine, z[task], s[task], y, y_shape, cuts, room[0])
    return negative


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
    lanes, one, high, part = lanes_of(z), splat(z, 1.0), _ceiling(activation), splat(z, 1.0 / (pool[0] * pool[1]))
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
    lanes, one, high, part = lanes_of(z), splat(z, 1.0), _ceiling(activation), splat(z, 1.0 / (pool[0] * pool[1]))
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
