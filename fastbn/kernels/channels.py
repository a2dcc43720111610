"""Algebra of one channel, in float64: runs of values merged, statistics made into the map that normalises.

Rows of ``stats`` (3, C), float64: mean, biased variance, 1 / standard deviation. In training of batch renorm (7, C):
also r and d of ``y = ((x - mean) / std r + d) weight + bias``, which come in as the running mean and 1 / running std of
before this batch, and their limits r_max and d_max.
Rows of ``affine`` (3, C), in the dtype that kernels compute in: ``y = (x - mean) * scale + shift``. It is not
``x * scale + constant``, which cancels when |mean| is far above std.
Rows of ``slopes`` (4, C), likewise: ``dx = a g + b ((x - mean) * inv_std) + k``.
weight, bias: (C,), or empty for 1 and 0. running_mean, running_var: (C,), or empty for none.
"""

import numpy as np

from fastbn.kernels._jit import inlined

MEAN, VAR, INV_STD, R, D, R_MAX, D_MAX = range(7)
NEAR_MEAN, SCALE, SHIFT = range(3)
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
def _lost(mean, near):
    """What rounding took from the mean, to be given back in the constant term."""
    lost = mean - near
    return lost if np.isfinite(lost) else 0.0


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
    affine[SHIFT, c] = shift - _lost(mean, affine[NEAR_MEAN, c]) * scale


@inlined
def entry(vector, c, absent):
    """vector[c], or ``absent`` if the vector is empty."""
    return vector[c] if vector.size else absent


@inlined
def _set_channel(c, mean, var, eps, weight, bias, stats, affine):
    inv_std = set_stats(c, mean, var, eps, stats)
    set_affine(c, mean, inv_std * entry(weight, c, 1.0), entry(bias, c, 0.0), affine)


@inlined
def first_negative(running_var):
    """The first channel with a negative running variance, or -1: with it, a kernel returns it and writes nothing."""
    for c in range(running_var.size):
        if running_var[c] < 0:
            return c
    return -1


@inlined
def finish_training(c, count, mean, squares, weight, bias, running_mean, running_var, momentum, eps, stats, affine):
    """Write channel c of ``stats`` and ``affine``; move its running statistics, the variance with n / (n - 1)."""
    _set_channel(c, mean, squares / count, eps, weight, bias, stats, affine)
    if running_mean.size:
        running_mean[c] = (1.0 - momentum) * running_mean[c] + momentum * mean
        running_var[c] = (1.0 - momentum) * running_var[c] + momentum * (squares / (count - 1))


@inlined
def _clip(value, low, high):
    """A NaN stays."""
    if value < low:
        return low
    return high if value > high else value


@inlined
def renormalize(first, last, weight, bias, stats, affine):
    """Where ``stats`` has rows for it, make a batch renorm of the channels whose statistics stand: r, d and affine.

    r = 1 and d = 0 where the running std was 0. Apart from ``finish_training``, whose loops stay vectors without it.
    """
    if stats.shape[0] > R:
        for c in range(first, last):
            running_mean, inverse, inv_std, r, d = stats[R, c], stats[D, c], stats[INV_STD, c], 1.0, 0.0
            if inverse != 0:
                std = 1.0 / inv_std if inv_std != 0 else 0.0
                r = _clip(std * inverse, 1.0 / stats[R_MAX, c], stats[R_MAX, c])
                d = _clip((stats[MEAN, c] - running_mean) * inverse, -stats[D_MAX, c], stats[D_MAX, c])
            gamma = weight[c] if weight.size else 1.0
            scale = inv_std * gamma * r
            shift = (bias[c] if bias.size else 0.0) + gamma * d
            stats[R, c], stats[D, c], affine[SCALE, c] = r, d, scale
            affine[SHIFT, c] = shift - _lost(stats[MEAN, c], affine[NEAR_MEAN, c]) * scale


@inlined
def finish_inference(weight, bias, running_mean, running_var, eps, stats, affine):
    """Write ``stats`` and ``affine`` by the running statistics, unless those are empty: then both are ready."""
    for c in range(running_mean.size):
        _set_channel(c, running_mean[c], np.float64(running_var[c]), eps, weight, bias, stats, affine)


@inlined
def normalized_product(mean, inv_std, near, sum_g, product):
    """The sum of g (x - mean) inv_std, from that of g (x - near), where near is the mean as ``affine`` has it."""
    return (product - _lost(mean, near) * sum_g) * inv_std


@inlined
def set_slopes(c, mean, inv_std, near, scale, slope, constant, slopes):
    """Write channel c of ``slopes``: scale g + slope (x - mean) inv_std + constant."""
    slopes[A, c] = scale
    slopes[B, c] = slope
    slopes[K, c] = constant - _lost(mean, near) * inv_std * slope
    slopes[NEAR_INV_STD, c] = inv_std


@inlined
def finish_backward(c, count, sum_g, product, batch_stats, stats, affine, slopes, gradients):
    """Channel c of ``slopes``, and of gradients (2, C): dweight, dbias. product: of g (x - affine's mean)."""
    mean, inv_std, near, scale = stats[MEAN, c], stats[INV_STD, c], affine[NEAR_MEAN, c], np.float64(affine[SCALE, c])
    dweight = normalized_product(mean, inv_std, near, sum_g, product)
    gradients[0, c], gradients[1, c] = dweight, sum_g
    slope = -scale * dweight / count if batch_stats else 0.0
    constant = -scale * sum_g / count if batch_stats else 0.0
    set_slopes(c, mean, inv_std, near, scale, slope, constant, slopes)
