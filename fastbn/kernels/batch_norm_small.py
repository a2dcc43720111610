"""Batch norm of float32 arrays so small that the call costs more than the work: serial kernels of few arguments.

They run the rows and tiles of the others, so their answers are the same bits.
"""

import numpy as np

from fastbn.kernels._jit import serial_driver
from fastbn.kernels.batch_norm_columns import _normalize_tile
from fastbn.kernels.batch_norm_rows import _backward_task, _forward_task, _normalize_row
from fastbn.kernels.channels import finish_inference, first_negative


@serial_driver
def infer_small(x, weight, bias, running_mean, running_var, eps, out):
    """out = (x - mean) / sqrt(var + eps) * weight + bias, x (N, C, S); returns as ``first_negative``."""
    negative = first_negative(running_var)
    if negative >= 0:
        return negative
    n_count, c_count, s = x.shape
    stats, affine = np.empty((3, c_count)), np.empty((3, c_count), x.dtype)
    finish_inference(weight, bias, running_mean, running_var, eps, stats, affine)
    if s == 1:
        bits = np.empty((0, 0), np.uint16)
        _normalize_tile(x, x[:0], bits, out, 0, n_count, c_count, c_count, 0, affine, -np.inf, 0, False)
    else:
        row_bits = np.empty((0, 0, 0), np.uint16)
        for n in range(n_count):
            for c in range(c_count):
                _normalize_row(n, c, x, x[:0], row_bits, affine, -np.inf, 0, False, out)
    return negative


@serial_driver
def train_small(x, weight, bias, running_mean, running_var, momentum, eps, n_block, s_block, stats, affine, out):
    """As ``forward_rows``."""
    negative = first_negative(running_var)
    if negative < 0:
        bits = np.empty((0, 0, 0), np.uint16)
        parameters = (weight, bias, running_mean, running_var, momentum, eps)
        stores = (-np.inf, 0, False, bits, out)
        _forward_task(0, x, x[:0], *parameters, n_block, s_block, x.shape[1], stats, affine, *stores)
    return negative


@serial_driver
def backward_small(dy, x, stats, affine, batch_stats, n_block, s_block, gradients, dx):
    """As ``backward_rows``."""
    bits = np.empty((0, 0, 0), np.uint16)
    slopes = np.empty((4, x.shape[1]), x.dtype)
    block = x.shape[1]
    _backward_task(
        0,
        dy,
        x,
        bits,
        stats,
        affine,
        False,
        batch_stats,
        n_block,
        s_block,
        block,
        slopes,
        gradients,
        0,
        False,
        dx,
        x[:0],
    )
