"""The algebra of Gram folding on weights (C, K), row by row, in float64; see ``functional.conv_gram``."""

import numpy as np
from numba import int64, prange

from fastbn.kernels._jit import body, driver, serial_driver, sum_body
from fastbn.kernels.channels import NEAR_MEAN, SCALE, SHIFT, entry

ROWS = 16  # of a task
# Rows of ``moments``.
MEAN, VAR, INV_STD, FACTOR, MOST, LEVEL = range(6)


@serial_driver
def sample_mean(pixels, step, affine, relu, near, sums):
    """near (K,) = the mean of every ``step``-th of pixels (M, K) behind its prologue; 0 where that is not finite.

    affine: rows NEAR_MEAN, SCALE, SHIFT. relu: whether it ends in one. sums: (K,) float64, a workspace.
    """
    sums[:] = 0.0
    count = 0
    for i in range(0, pixels.shape[0], step):
        for k in range(near.size):
            value = (np.float64(pixels[i, k]) - affine[NEAR_MEAN, k]) * affine[SCALE, k] + affine[SHIFT, k]
            sums[k] += max(value, 0.0) if relu else value
        count += 1
    for k in range(near.size):
        mean = sums[k] / count
        near[k] = mean if np.isfinite(mean) else 0.0


@sum_body
def _dots(c, weight, spread, mean, apart, roots):
    """Of row c of the weight: its products with that of spread and with mean and apart, and |row| with roots."""
    var = about = level = most = 0.0
    for k in range(weight.shape[1]):
        w = np.float64(weight[c, k])
        var += w * spread[c, k]
        about += w * mean[k]
        level += w * apart[k]
        most += abs(w) * roots[k]
    return var, about, level, most


@body
def _fold_task(task, weight, spread, mean, apart, roots, bias, gamma, eps, moments, folded):
    for c in range(task * ROWS, min(weight.shape[0], (task + 1) * ROWS)):
        var, about, level, most = _dots(c, weight, spread, mean, apart, roots)
        inv_std = 1.0 / np.sqrt(var + eps)
        factor = inv_std * entry(gamma, c, 1.0)
        moments[MEAN, c], moments[VAR, c] = about + entry(bias, c, 0.0), var
        moments[INV_STD, c], moments[FACTOR, c] = inv_std, factor
        moments[MOST, c], moments[LEVEL, c] = most * most, level
        for k in range(weight.shape[1]):
            folded[c, k] = weight[c, k] * factor


@driver
def fold_rows(weight, spread, mean, apart, roots, bias, gamma, beta, eps, least, moments, shift, folded, parallel):
    """moments (6, C), the folded weight and its bias ``shift``; whether every variance is worth its sums.

    spread: W S; mean, apart: of x, and of x - near; roots: of the diagonal of the moments that S comes from. bias,
    gamma, beta: (C,), or empty. least: of the most that a variance can be, what it has to be above.
    """
    tasks = -(-weight.shape[0] // ROWS)
    if parallel:
        for task in prange(tasks):
            _fold_task(int64(task), weight, spread, mean, apart, roots, bias, gamma, eps, moments, folded)
    else:
        for task in range(tasks):
            _fold_task(task, weight, spread, mean, apart, roots, bias, gamma, eps, moments, folded)
    trusted = True
    for c in range(weight.shape[0]):
        trusted = trusted and moments[VAR, c] > least * moments[MOST, c]
        shift[c] = entry(beta, c, 0.0) - moments[FACTOR, c] * moments[LEVEL, c]
    return trusted


@sum_body
def _slope(c, weight, products, total, apart):
    """The product of row c of the weight and of G = products - total apart^T."""
    slope = 0.0
    for k in range(weight.shape[1]):
        slope += np.float64(weight[c, k]) * (products[c, k] - total * apart[k])
    return slope


@body
def _gradient_task(task, products, sums, apart, weight, moments, spread, count, dscale, dweight, wide, weighted):
    for c in range(task * ROWS, min(weight.shape[0], (task + 1) * ROWS)):
        inv_std, factor = moments[INV_STD, c], moments[FACTOR, c]
        slope = _slope(c, weight, products, sums[c], apart)
        dvar = -0.5 * slope * factor * inv_std * inv_std
        dscale[c] = slope
        for k in range(weight.shape[1]):
            about = products[c, k] - sums[c] * apart[k]
            dweight[c, k] = about * factor + spread[c, k] * (2.0 * dvar)
            wide[c, k] = weight[c, k]
            weighted[c, k] = wide[c, k] * (2.0 / count * dvar)


@driver
def gradient_rows(
    products, sums, apart, weight, moments, spread, count, dscale, dweight, wide, weighted, level, parallel
):
    """dscale (C,) and dweight; the weight in float64, its rows times 2 dvar / M, and W^T (h s) / M as ``level`` (K,).

    products: sum of g_i (x_i - near)^T; sums: h.
    """
    tasks = -(-weight.shape[0] // ROWS)
    arguments = (products, sums, apart, weight, moments, spread, count, dscale, dweight, wide, weighted)
    if parallel:
        for task in prange(tasks):
            _gradient_task(int64(task), *arguments)
    else:
        for task in range(tasks):
            _gradient_task(task, *arguments)
    level[:] = 0.0
    for c in range(weight.shape[0]):
        share = sums[c] * moments[FACTOR, c] / count
        for k in range(level.size):
            level[k] += share * wide[c, k]
