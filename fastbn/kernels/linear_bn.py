"""A small linear layer, batch norm and an activation over the columns of its output, as one pass each way.

Forward, a task has the columns of one tile: it multiplies them and reads them twice more, from its own second cache.
Backward, a task has those of a vector; the products come when all have their gradient. There is nothing to merge.
z, y, dy, dz: (rows, channels). activation: see ``unit_activation``. sums: (3, channels to whole vectors), float64,
room.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS
from fastbn.kernels._simd_gemm import tile_product_in_place
from fastbn.kernels._vector import finite_or_zero, fma, lanes_of, splat, widen
from fastbn.kernels._vector_memory import load_part, set_to, store_part
from fastbn.kernels.channels import (
    NEAR_INV_STD,
    NEAR_MEAN,
    SCALE,
    SHIFT,
    A,
    B,
    K,
    first_negative,
)
from fastbn.kernels.finish import finish_backward, finish_inference, finish_training, set_moments
from fastbn.kernels.gemm import epilogue, pack, store_tile
from fastbn.kernels.linear_gradients import last_columns, multiply_part, pack_last_columns
from fastbn.kernels.unit_activation import activated, ceiling_of, floor_of, passed


@body
def _add_columns(z, first, count, sums):
    """Write of a vector of columns: a shift, and the sums of d and of d d over the rows, d = value - shift."""
    rows, channels = z.shape
    zero, width = splat(z, 0.0), sums.shape[1]
    shift = widen(finite_or_zero(load_part(z, first, count, zero)))
    d0 = d1 = q0 = q1 = widen(zero)
    for row in range(0, rows - 1, 2):
        at = row * channels + first
        a, b = widen(load_part(z, at, count, zero)) - shift, widen(load_part(z, at + channels, count, zero)) - shift
        d0, d1, q0, q1 = d0 + a, d1 + b, fma(a, a, q0), fma(b, b, q1)
    if rows % 2:
        a = widen(load_part(z, (rows - 1) * channels + first, count, zero)) - shift
        d0, q0 = d0 + a, fma(a, a, q0)
    set_to(sums, first, shift)
    set_to(sums, width + first, d0 + d1)
    set_to(sums, 2 * width + first, q0 + q1)


@body
def _multiply_columns(first, x, weight, bias, z, room):
    """The columns of z = x weight^T + bias that one panel of weights makes; room: a tile, a square and the panel."""
    (rows, channels), lanes, width = z.shape, lanes_of(z), TILE_BYTES // z.itemsize
    inputs, count, tile = weight.size // channels, min(width, channels - first), TILE_ROWS * width
    panel = room[tile + lanes * lanes :]
    pack(weight, first * inputs, inputs, 1, count, inputs, width, panel, 0, room[tile:])
    for row in range(0, rows, TILE_ROWS):
        height, start = min(TILE_ROWS, rows - row), row * channels + first
        tile_product_in_place(x, row * inputs, inputs, 1, height, panel, 0, width, inputs, room)
        store_tile(room, width, height, count, z, start, channels, True)
        if bias.size:
            epilogue(height, count, bias, first, False, z, start, channels)


@body
def _normalize_columns(first, z, parameters, momentum, eps, training, activation, y, stats, affine, sums):
    weight, bias, running_mean, running_var = parameters
    rows, channels = z.shape
    zero, count = splat(z, 0.0), min(lanes_of(z), channels - first)
    if training:
        _add_columns(z, first, count, sums)
        last = first + count
        set_moments(first, last, rows, sums[0, first:], sums[1, first:], sums[2, first:], stats)
        finish_training(first, last, rows, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    near = load_part(affine, NEAR_MEAN * channels + first, count, zero)
    scale = load_part(affine, SCALE * channels + first, count, zero)
    shift = load_part(affine, SHIFT * channels + first, count, zero)
    low, high = floor_of(z, activation), ceiling_of(activation)
    for at in range(first, rows * channels, channels):
        value = fma(load_part(z, at, count, zero) - near, scale, shift)
        store_part(y, at, activated(value, activation, low, high), count)


@body
def _forward_task(
    task, x, weight, bias, z, parameters, momentum, eps, training, activation, y, stats, affine, sums, room
):  # fmt: skip
    width = TILE_BYTES // z.itemsize
    _multiply_columns(task * width, x, weight, bias, z, room)
    for first in range(task * width, min(z.shape[1], (task + 1) * width), lanes_of(z)):
        _normalize_columns(first, z, parameters, momentum, eps, training, activation, y, stats, affine, sums)


@driver
def forward_linear_bn(
    x, weight, bias, z, parameters, momentum, eps, training, activation, y, stats, affine, sums, room, parallel
):  # fmt: skip
    """y = the activation of the batch norm of z = x weight^T + bias, by the batch's statistics if ``training``.

    x, weight, bias: flat, bias may be empty. parameters, stats, affine: see ``channels``. room: (threads, elements), a
    tile, a square of vectors and a panel of weights, see ``gemm``. Returns as ``first_negative``.
    """
    negative = first_negative(parameters[3])
    if negative >= 0:
        return negative
    if not training:
        finish_inference(parameters[0], parameters[1], parameters[2], parameters[3], eps, stats, affine)
    tasks = -(-z.shape[1] // (TILE_BYTES // z.itemsize))
    if parallel:
        for task in prange(tasks):
            _forward_task(
                int64(task), x, weight, bias, z, parameters, momentum, eps, training, activation, y, stats, affine,
                sums, room[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _forward_task(
                task, x, weight, bias, z, parameters, momentum, eps, training, activation, y, stats, affine, sums,
                room[0],
            )  # fmt: skip
    return negative


@body
def _add_products(dy, y, z, near, first, count, activation, sums):
    """Write of a vector of columns the sums of g and g (z - near), g being the gradient to what the activation read."""
    rows, channels = z.shape
    zero, one, high, width = splat(z, 0.0), splat(z, 1.0), ceiling_of(activation), sums.shape[1]
    g_sum = product = widen(zero)
    about = widen(near)
    for at in range(first, rows * channels, channels):
        share, value = load_part(dy, at, count, zero), load_part(y, at, count, zero)
        g = widen(passed(share, value, activation, one, high))
        g_sum, product = g_sum + g, fma(g, widen(load_part(z, at, count, near)) - about, product)
    set_to(sums, first, g_sum)
    set_to(sums, width + first, product)


@body
def _backward_task(task, dy, y, z, activation, batch_stats, stats, affine, slopes, gradients, dz, sums):
    rows, channels = z.shape
    zero, one, high, first = splat(z, 0.0), splat(z, 1.0), ceiling_of(activation), task * lanes_of(z)
    count = min(lanes_of(z), channels - first)
    near = load_part(affine, NEAR_MEAN * channels + first, count, zero)
    _add_products(dy, y, z, near, first, count, activation, sums)
    last = first + count
    finish_backward(
        first, last, rows, sums[0, first:], sums[1, first:], batch_stats, stats, affine, slopes, gradients
    )  # fmt: skip
    a, b = load_part(slopes, A * channels + first, count, zero), load_part(slopes, B * channels + first, count, zero)
    k = load_part(slopes, K * channels + first, count, zero)
    inv_std = load_part(slopes, NEAR_INV_STD * channels + first, count, zero)
    for at in range(first, rows * channels, channels):
        g = passed(load_part(dy, at, count, zero), load_part(y, at, count, zero), activation, one, high)
        store_part(dz, at, fma(g, a, fma((load_part(z, at, count, near) - near) * inv_std, b, k)), count)


@body
def _prepare_task(
    task, packs, shape, dy, y, z, x, weight, activation, batch_stats, stats, affine, slopes, gradients, dz, sums,
    panels, cut, spare,
):  # fmt: skip
    """Pack a right operand's last columns, or take the gradient through batch norm, of a vector of channels."""
    if task < packs:
        pack_last_columns(task, shape, x, weight, panels, cut, spare)
    else:
        _backward_task(
            task - packs, dy, y, z, activation, batch_stats, stats, affine, slopes, gradients, dz, sums
        )  # fmt: skip


@driver
def backward_linear_bn(
    shape, dy, y, z, x, weight, activation, batch_stats, stats, affine, slopes, gradients, dz, dx, dweight, sums,
    panels, cut, room, parts, parallel,
):  # fmt: skip
    """Gradients of ``forward_linear_bn``: of batch norm's parameters (2, C), and as ``linear_gradients`` has them.

    dz, slopes: written.
    """
    packs, tile = last_columns(shape[1], panels), TILE_ROWS * (TILE_BYTES // z.itemsize)
    tasks = packs - (-z.shape[1] // lanes_of(z))
    if parallel:
        for task in prange(tasks):
            _prepare_task(
                int64(task), packs, shape, dy, y, z, x, weight, activation, batch_stats, stats, affine, slopes,
                gradients, dz, sums, panels, cut, room[get_thread_id()][tile:],
            )  # fmt: skip
        for part in prange(parts):
            multiply_part(
                int64(part), parts, shape, dz, x, weight, panels, cut, dx, dweight, room[get_thread_id()][:tile]
            )
    else:
        for task in range(tasks):
            _prepare_task(
                task, packs, shape, dy, y, z, x, weight, activation, batch_stats, stats, affine, slopes, gradients, dz,
                sums, panels, cut, room[0][tile:],
            )  # fmt: skip
        multiply_part(0, 1, shape, dz, x, weight, panels, cut, dx, dweight, room[0][:tile])
