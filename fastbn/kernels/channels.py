"""Algebra of one channel, in float64: runs of values merged, statistics made into the map that normalises.

Rows of ``channels`` (7, C), float64: what a call is given and what it finds; see the names below.
Rows of ``affine`` (3, C), in the dtype that kernels compute in: ``y = (x - mean) * scale + shift``. It is not
``x * scale + constant``, which cancels when |mean| is far above std.
Rows of ``slopes`` (4, C), likewise: ``dx = a g + b ((x - mean) * inv_std) + k``.
"""

import numpy as np

from fastbn.kernels._jit import inlined, serial_driver

WEIGHT, BIAS, RUNNING_MEAN, RUNNING_VAR, MEAN, VAR, INV_STD = range(7)
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
def _set_affine(c, channels, affine):
    mean = channels[MEAN, c]
    scale = channels[WEIGHT, c] * channels[INV_STD, c]
    affine[NEAR_MEAN, c] = mean
    affine[SCALE, c] = scale
    affine[SHIFT, c] = channels[BIAS, c] - _lost(mean, affine[NEAR_MEAN, c]) * scale


@inlined
def _lost(mean, near):
    """What rounding took from the mean, to be given back in the constant term."""
    lost = mean - near
    return lost if np.isfinite(lost) else 0.0


@inlined
def _set_inv_std(c, eps, channels):
    # A channel without spread gives its bias, with eps = 0 too.
    spread = channels[VAR, c] + eps
    channels[INV_STD, c] = 0.0 if spread == 0 else 1.0 / np.sqrt(spread)


@inlined
def finish_training(c, count, mean, squares, momentum, eps, channels, affine):
    """Write what channel c found; move its running statistics, the variance with n / (n - 1)."""
    channels[MEAN, c] = mean
    channels[VAR, c] = squares / count
    _set_inv_std(c, eps, channels)
    _set_affine(c, channels, affine)
    channels[RUNNING_MEAN, c] = (1.0 - momentum) * channels[RUNNING_MEAN, c] + momentum * mean
    unbiased = squares / (count - 1)
    channels[RUNNING_VAR, c] = (1.0 - momentum) * channels[RUNNING_VAR, c] + momentum * unbiased


@serial_driver
def finish_inference(eps, channels, affine):
    """Write what all channels are normalised with: their running statistics."""
    for c in range(channels.shape[1]):
        channels[MEAN, c] = channels[RUNNING_MEAN, c]
        channels[VAR, c] = channels[RUNNING_VAR, c]
        _set_inv_std(c, eps, channels)
        _set_affine(c, channels, affine)


@inlined
def finish_backward(c, count, sum_g, product, batch_stats, channels, affine, slopes, gradients):
    """Channel c of ``slopes`` and of gradients (2, C): dweight and dbias. product: of g (x - affine's mean)."""
    inv_std = channels[INV_STD, c]
    scale = channels[WEIGHT, c] * inv_std
    lost = _lost(channels[MEAN, c], affine[NEAR_MEAN, c])
    dweight = (product - lost * sum_g) * inv_std
    gradients[0, c], gradients[1, c] = dweight, sum_g
    slope = -scale * dweight / count if batch_stats else 0.0
    constant = -scale * sum_g / count if batch_stats else 0.0
    slopes[A, c] = scale
    slopes[B, c] = slope
    slopes[K, c] = constant - lost * inv_std * slope
    slopes[NEAR_INV_STD, c] = inv_std
