"""Convolution, batch norm, activation and average pooling of small images side by side, trained as one unit: forward.

See ``lanes``. Between the passes images stay side by side: ``z`` (blocks, elements), what the convolution made, and
``s``, what the activation made of it; both (channels, pixels, lanes) in a row, with LANE_ROWS - 1 channels more.
activation: see ``unit_activation``. pool: height and width of the windows, which meet and begin in the corner; 1 and 1
for none. Their sums are taken in the dtype of the images.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import allocating_body, allocating_driver, body, inlined
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import add_to, element, load, store
from fastbn.kernels.channels import MEAN, NEAR_MEAN, SCALE, SHIFT, VAR, first_negative, merge, run_moments
from fastbn.kernels.finish import finish_inference, finish_training
from fastbn.kernels.lanes import (
    backwards,
    channel_size,
    correlate_planes,
    first_image,
    gather_panels,
    read_planes,
    write_images,
)
from fastbn.kernels.unit_activation import activated, ceiling_of, floor_of

RUN = 16  # vectors, at most, that are summed in the dtype of the images before the sum is widened


@allocating_body
def _plane_moments(z, start, pixels, skipped):
    """Mean of a plane and sum of squares about it, but for the first ``skipped`` lanes."""
    lanes = lanes_of(z)
    about = element(z, start + skipped)
    about = about if np.isfinite(about) else 0.0
    shift, zero = splat(z, about), splat(z, 0.0)
    d = q = widen(zero)
    last = start + pixels * lanes
    for first in range(start, last, RUN * lanes):
        stop = min(last, first + RUN * lanes)
        d0 = d1 = q0 = q1 = zero
        for i in range(first, stop - lanes, 2 * lanes):
            a, b = load(z, i) - shift, load(z, i + lanes) - shift
            d0, d1, q0, q1 = d0 + a, d1 + b, fma(a, a, q0), fma(b, b, q1)
        if (stop - first) % (2 * lanes):
            a = load(z, stop - lanes) - shift
            d0, q0 = d0 + a, fma(a, a, q0)
        d, q = d + widen(d0 + d1), q + widen(q0 + q1)
    if skipped == 0:
        return run_moments(about, total(d), total(q), pixels * lanes)
    by_lane = np.zeros(2 * lanes)
    add_to(by_lane, 0, d)
    add_to(by_lane, lanes, q)
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
        stats[MEAN, c], stats[VAR, c] = mean, squares
    count = x_shape[0] * z_shape[2] * z_shape[3]
    finish_training(0, z_shape[1], count, weight, bias, running_mean, running_var, momentum, eps, stats, affine)


@body
def _activate(z, affine, c, activation, s):
    """s = the activation of the normalised channel ``z``."""
    near, scale, shift = splat(z, affine[NEAR_MEAN, c]), splat(z, affine[SCALE, c]), splat(z, affine[SHIFT, c])
    low, high = floor_of(z, activation), ceiling_of(activation)
    for i in range(0, z.size, lanes_of(z)):
        store(s, i, activated(fma(load(z, i) - near, scale, shift), activation, low, high))


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
    write_images(work, channels * size, skipped, y[:0], (-np.inf, np.inf), y, start, spare)


@allocating_driver
def forward_unit_lanes(
    x, x_shape, source, offsets, tiles, weight, bias, index, groups, z_shape, parameters, momentum, eps, training,
    activation, pool, z, s, y, y_shape, stats, affine, partials, cuts, room, parts, parallel,
):  # fmt: skip
    """y = the pooled activation of the batch norm of a convolution; z, s, stats and affine are for the backward pass.

    The convolution's operands: see ``correlate_lanes``; parameters, stats, affine: see ``channels``. training: by the
    batch's statistics. partials: (2, blocks, C), float64, room for theirs. room: (threads, elements), of which ``cuts``
    are the ends of images and planes; a square of vectors is left. parts: threads.
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
        for part in prange(parts):
            for task in backwards(int64(part), parts, blocks):
                _finish_task(
                    task, x_shape, z_shape, activation, pool, affine, z[task], s[task], y, y_shape, cuts,
                    room[get_thread_id()],
                )  # fmt: skip
    else:
        for task in backwards(0, 1, blocks):
            _finish_task(task, x_shape, z_shape, activation, pool, affine, z[task], s[task], y, y_shape, cuts, room[0])
    return negative
