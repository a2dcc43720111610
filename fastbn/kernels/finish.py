"""Sums of channels made into the map that normalises and into that of a gradient, a register of channels at a time.

In float64; ``stats``, ``affine``, ``slopes``, weight, bias, running_mean and running_var: see ``channels``.
"""

from fastbn.kernels._doubles import inverse_root, load_doubles, load_row, store_doubles, store_row
from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import at_least, finite_or_zero, lanes_of, quotient, splat
from fastbn.kernels.channels import (
    D_MAX,
    INV_STD,
    MEAN,
    NEAR_INV_STD,
    NEAR_MEAN,
    R_MAX,
    SCALE,
    SHIFT,
    VAR,
    A,
    B,
    D,
    K,
    R,
    lost,
)


@inlined
def set_moments(first, last, count, shift, sums, squares, stats):
    """Rows MEAN and VAR of ``stats``: means and sums of squares about them, of ``count`` values a channel.

    From sums of d = x - shift and of d d, of which those of channel ``first`` come first.
    """
    lanes = lanes_of(stats)
    for c in range(first, last, lanes):
        some = min(lanes, last - c)
        total = load_doubles(sums, c - first, some, 0.0)
        mean = quotient(total, count)
        about = load_doubles(squares, c - first, some, 0.0) - total * mean
        store_row(stats, MEAN, c, load_doubles(shift, c - first, some, 0.0) + mean, some)
        store_row(stats, VAR, c, at_least(about, splat(stats, 0.0)), some)


@inlined
def _set_channels(c, some, mean, var, eps, weight, bias, stats, affine):
    """Columns of ``stats`` and ``affine``, ``some`` from c on."""
    inv_std = inverse_root(var + splat(stats, eps))  # a channel without spread gives its bias, with eps = 0 too
    store_row(stats, MEAN, c, mean, some)
    store_row(stats, VAR, c, var, some)
    store_row(stats, INV_STD, c, inv_std, some)
    # An empty vector has no elements to read: its ``fill`` stands for them.
    scale = inv_std * load_doubles(weight, c, min(some, weight.size), 1.0)
    shift = load_doubles(bias, c, min(some, bias.size), 0.0)
    store_row(affine, NEAR_MEAN, c, mean, some)
    rest = finite_or_zero(mean - load_row(affine, NEAR_MEAN, c, some))  # what rounding took
    store_row(affine, SCALE, c, scale, some)
    store_row(affine, SHIFT, c, shift - rest * scale, some)


@inlined
def finish_training(first, last, count, weight, bias, running_mean, running_var, momentum, eps, stats, affine):
    """``stats`` and ``affine`` of channels whose rows MEAN and VAR hold means and sums of squares about them.

    Running statistics are moved, the variance with n / (n - 1).
    """
    lanes = lanes_of(stats)
    kept, moved = splat(stats, 1.0 - momentum), splat(stats, momentum)
    for c in range(first, last, lanes):
        some = min(lanes, last - c)
        mean = load_row(stats, MEAN, c, some)
        squares = load_row(stats, VAR, c, some)
        tracked = min(some, running_mean.size)
        running = kept * load_doubles(running_mean, c, tracked, 0.0) + moved * mean
        store_doubles(running_mean, c, running, tracked)
        running = kept * load_doubles(running_var, c, tracked, 0.0) + moved * quotient(squares, count - 1)
        store_doubles(running_var, c, running, tracked)
        _set_channels(c, some, mean, quotient(squares, count), eps, weight, bias, stats, affine)


@inlined
def finish_inference(weight, bias, running_mean, running_var, eps, stats, affine):
    """``stats`` and ``affine`` by the running statistics, unless those are empty: then both are ready."""
    lanes, last = lanes_of(stats), running_mean.size
    for c in range(0, last, lanes):
        some = min(lanes, last - c)
        mean, var = load_doubles(running_mean, c, some, 0.0), load_doubles(running_var, c, some, 0.0)
        _set_channels(c, some, mean, var, eps, weight, bias, stats, affine)


@inlined
def _clip(value, low, high):
    """A NaN stays."""
    if value < low:
        return low
    return high if value > high else value


@inlined
def renormalize(first, last, weight, bias, stats, affine):
    """Make a batch renorm of the channels whose statistics stand: r, d and affine.

    r = 1 and d = 0 where the running std was 0.
    """
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
        affine[SHIFT, c] = shift - lost(stats[MEAN, c], affine[NEAR_MEAN, c]) * scale


@inlined
def finish_backward(first, last, count, sums, products, batch_stats, stats, affine, slopes, gradients):
    """``slopes``, and gradients (2, C): dweight, dbias.

    From sums of g and of g (x - affine's mean), of which those of channel ``first`` come first.
    """
    lanes = lanes_of(stats)
    for c in range(first, last, lanes):
        some = min(lanes, last - c)
        mean, inv_std = load_row(stats, MEAN, c, some), load_row(stats, INV_STD, c, some)
        rest = finite_or_zero(mean - load_row(affine, NEAR_MEAN, c, some))
        scale, sum_g = load_row(affine, SCALE, c, some), load_doubles(sums, c - first, some, 0.0)
        dweight = (load_doubles(products, c - first, some, 0.0) - rest * sum_g) * inv_std
        store_row(gradients, 0, c, dweight, some)
        store_row(gradients, 1, c, sum_g, some)
        slope = constant = splat(stats, 0.0)
        if batch_stats:
            share = slope - quotient(scale, count)
            slope, constant = share * dweight, share * sum_g
        store_row(slopes, A, c, scale, some)
        store_row(slopes, B, c, slope, some)
        store_row(slopes, K, c, constant - rest * inv_std * slope, some)
        store_row(slopes, NEAR_INV_STD, c, inv_std, some)
