"""Batch norm from sums that others have made: by a convolution over its output while that was in cache, piece by piece.

partials (2, pieces, C to a whole vector), float64; see ``conv_blocks.correlate_blocks``. Pieces are added in order.
"""

from numba import int64, prange

from fastbn.kernels._jit import driver, serial_driver
from fastbn.kernels.batch_norm_matrix import add_partials, products_task
from fastbn.kernels.channels import MEAN, VAR, first_negative
from fastbn.kernels.finish import finish_backward, finish_inference, finish_training


@serial_driver
def finish_moments(
    counts, shifts, partials, weight, bias, running_mean, running_var, momentum, eps, stats, affine
):  # fmt: skip
    """Training statistics of pieces of ``counts`` values a channel, from sums of d and d d, d = value - shift.

    Writes stats and affine, moves the running statistics; see ``channels``. Returns as ``first_negative``.
    """
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    channels = stats.shape[1]
    count = counts.sum()
    for c in range(channels):
        stats[MEAN, c] = stats[VAR, c] = 0.0
    share = 1.0 / count
    for piece in range(counts.size):
        n = counts[piece]
        for c in range(channels):
            stats[MEAN, c] += (n * (shifts[piece, c] - shifts[0, c]) + partials[0, piece, c]) * share
    for c in range(channels):
        stats[MEAN, c] += shifts[0, c]
    for piece in range(counts.size):
        n = counts[piece]
        share = 1.0 / n
        for c in range(channels):
            sum_d = partials[0, piece, c]
            mean_d = sum_d * share
            between = shifts[piece, c] + mean_d - stats[MEAN, c]
            stats[VAR, c] += max(partials[1, piece, c] - sum_d * mean_d, 0.0) + n * between * between
    finish_training(0, channels, count, weight, bias, running_mean, running_var, momentum, eps, stats, affine)
    return negative


@serial_driver
def finish_running(weight, bias, running_mean, running_var, eps, stats, affine):
    """stats and affine by the running statistics. Returns as ``first_negative``."""
    negative = first_negative(running_var)
    if negative < 0:
        finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    return negative


@serial_driver
def finish_products(columns, count, partials, batch_stats, stats, affine, slopes, gradients):
    """slopes and gradients (2, C) from sums of g and g (x - near) over ``count`` values a channel.

    columns: of a piece, C or a multiple of it. partials is overwritten.
    """
    channels = stats.shape[1]
    add_partials(partials, columns, channels)
    sum_g, product = partials[0, 0], partials[1, 0]
    finish_backward(0, channels, count, sum_g, product, batch_stats, stats, affine, slopes, gradients)


@driver
def products_matrix(dy, x, bits, relu, rows, affine, partials, dresidual, parallel):
    """partials of g and g (x - near), ``rows`` rows of x (M, columns) a piece; g into dresidual if not None."""
    pieces = partials.shape[1]
    if parallel:
        for piece in prange(pieces):
            products_task(int64(piece), dy, x, bits, relu, rows, affine, partials, dresidual)
    else:
        for piece in range(pieces):
            products_task(piece, dy, x, bits, relu, rows, affine, partials, dresidual)
