"""Algebra of one channel, in float64: runs of values merged, statistics made into the map that normalises.

Rows of ``stats`` (3, C), float64: mean, biased variance, 1 / standard deviation. In training of batch renorm (7, C),
where ``renorm`` is True instead of None: also r and d of ``y = ((x - mean) / std r + d) weight + bias``, which come in
as the running mean and 1 / running std of before this batch, and their limits r_max and d_max.
Rows of ``affine`` (3, C), in the dtype that kernels compute in: ``y = (x - mean) * scale + shift``. It is not
``x * scale + constant``, which cancels when |mean| is far above std. A fourth row, of a prologue alone, is what a
ReLU cuts below, where that is another number for each channel.
Rows of ``slopes`` (4, C), likewise: ``dx = a g + b ((x - mean) * inv_std) + k``.
weight, bias: (C,), or empty for 1 and 0. running_mean, running_var: (C,), or empty for none.
"""

import numpy as np

from fastbn.kernels._jit import inlined

MEAN, VAR, INV_STD, R, D, R_MAX, D_MAX = range(7)
NEAR_MEAN, SCALE, SHIFT, FLOOR = range(4)
A, B, K, NEAR_INV_STD = range(4)


@inlined
def run_moments(shift, total, squares, count):
    """Mean of ``count`` values and sum of squares about it, from sums of d = x - shift and of d d."""
    about_mean = squares - total * total / count
    return shift + total / count, 0.0 if about_mean < 0 else about_mean


@inlined
def merge(count, mean, squares, other_count, other_mean, other_squares):
    """(mean, squares) of two runs together (Chan, Golub and LeVeque 1979)."""
    if count == 0:
        return other_mean, other_squares
    delta = other_mean - mean
    share = other_count / (count + other_count)
    return mean + delta * share, squares + other_squares + delta * delta * (count * share)


@inlined
def lost(mean, near):
    """What rounding took from the mean, to be given back in the constant term."""
    difference = mean - near
    return difference if np.isfinite(difference) else 0.0


@inlined
def set_stats(c, mean, var, eps, stats):
    """Write channel c of ``stats``; returns its 1 / standard deviation."""
    # A channel without spread gives its bias, with eps = 0 too.
    spread = var + eps
    stats[MEAN, c], stats[VAR, c], stats[INV_STD, c] = mean, var, 0.0 if spread == 0 else 1.0 / np.sqrt(spread)
    return stats[INV_STD, c]


@inlined
def set_affine(c, mean, scale, shift, affine):
    """Write channel c of ``affine``: (x - mean) scale + shift."""
    affine[NEAR_MEAN, c], affine[SCALE, c] = mean, scale
    affine[SHIFT, c] = shift - lost(mean, affine[NEAR_MEAN, c]) * scale


@inlined
def entry(vector, c, absent):
    """vector[c], or ``absent`` if the vector is empty."""
    return vector[c] if vector.size else absent


@inlined
def first_negative(running_var):
    """The first channel with a negative running variance, or -1: with it, a kernel returns it and writes nothing."""
    for c in range(running_var.size):
        if running_var[c] < 0:
            return c
    return -1


@inlined
def normalized_product(mean, inv_std, near, sum_g, product):
    """The sum of g (x - mean) inv_std, from that of g (x - near), where near is the mean as ``affine`` has it."""
    return (product - lost(mean, near) * sum_g) * inv_std


@inlined
def set_slopes(c, mean, inv_std, near, scale, slope, constant, slopes):
    """Write channel c of ``slopes``: scale g + slope (x - mean) inv_std + constant."""
    slopes[A, c] = scale
    slopes[B, c] = slope
    slopes[K, c] = constant - lost(mean, near) * inv_std * slope
    slopes[NEAR_INV_STD, c] = inv_std
