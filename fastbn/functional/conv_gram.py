"""Gram folding: a 1x1 convolution and its training batch norm as one convolution, with no tensor between them.

The statistics of z = W x follow from those of x. With pixels x_i in R^K, i < M, weights W (C x K),
mu = mean(x), S = (1/M) sum (x_i - mu)(x_i - mu)^T:

    mean_c = w_c . mu    var_c = w_c^T S w_c    s_c = gamma_c / sqrt(var_c + eps)    y = (s W)(x - mu) + beta

and backward, with g = dL/dy where the ReLU let it pass, h = sum g_i, G = sum g_i (x_i - mu)^T:

    ds_c = w_c . G_c    dvar_c = -ds_c s_c / (2 (var_c + eps))    dbeta = h    dgamma_c = ds_c / sqrt(var_c + eps)
    dW_c = s_c G_c + 2 dvar_c S w_c    dx_i = (s W)^T (g_i - h / M) + (2 / M) W^T diag(dvar) W (x_i - mu)

It costs K / C of the layer's multiply-adds forward and as much backward, and saves the pre-activation tensor: writing
it, reading it three times, and keeping it; and dy is read once, since h, G and (s W)^T g need nothing that is known
only after a pass over it. For expansions, where K is much below C.
The algebra on weights goes through ``linear``: the threads of a BLAS would spin beside the kernels' own.
"""

from dataclasses import dataclass

import numpy as np

from fastbn._memory import empty
from fastbn._views import channels_second, empty_like, native
from fastbn.functional import conv_point, norm_parts
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point import POINT
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.linear import linear
from fastbn.functional.norm import Statistics, check_parameters, move_running_stats

# Of (sum over k of |w_k| sqrt(S_kk))^2, the most that w^T S w can be: below, float32 sums have lost too much of it.
LEAST_VARIANCE = 1e-3
MOST_CHANNELS = 128  # K, above which the K x K products cost more than the tensor that is saved
EXPANSION = 4  # C / K at least: below, the K x K products cost more than the passes that are saved
PIXELS = 24  # M / C at least: below, the algebra on weights shows

Maybe = np.ndarray | None


@dataclass(slots=True, eq=False)
class GramSaved:
    """What ``backward`` needs. mean, var, inv_std: (C,) float64, of the convolution's output; var is biased.

    scale, folded: s and s W. centre: the prologue that subtracts mu. gram: S, float64.
    """

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    folded: np.ndarray
    has_bias: bool
    gamma: np.ndarray | None
    has_beta: bool
    has_residual: bool
    relu: bool
    centre: Prologue
    gram: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    scale: np.ndarray
    inv_std: np.ndarray


def pays(weight_shape: tuple[int, ...], window: Window, groups: int, pixels: int) -> bool:
    """Whether a training step is faster so than with the pre-activation tensor."""
    channels_out, channels, *_ = weight_shape
    return suits(weight_shape, window, groups) and (
        EXPANSION * channels <= channels_out and channels <= MOST_CHANNELS and pixels >= PIXELS * channels_out
    )


def suits(weight_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether it is a convolution of single pixels, of no more channels than it has outputs."""
    return window == POINT and groups == 1 and weight_shape[1] <= weight_shape[0]


def forward(
    who: str,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    statistics: Statistics,
    residual: np.ndarray | None,
    relu: bool,
) -> tuple[np.ndarray, GramSaved] | None:
    """y, channels-last as ``x``, and what ``backward`` needs; running statistics move.

    None, and nothing done, where a variance is so far below what it is a sum of that it cannot be trusted.
    """
    channels_out, channels = weight.shape[:2]
    running_mean, running_var, momentum, eps = statistics
    check_parameters(who, channels_out, gamma, beta, *statistics)
    count = x.size // channels
    mu = norm_parts.channel_sums(x) / count
    near = mu.astype(x.dtype)
    centre = Prologue(np.stack([near, np.ones_like(near), (near - mu).astype(x.dtype)]))
    square = np.empty((channels, channels, 1, 1), x.dtype)
    gram = conv_point.backward(x, x, square, POINT, 1, centre, centre, need_dx=False)[0]
    gram = gram.astype(np.float64).reshape(channels, channels) / count
    w = weight.reshape(channels_out, channels).astype(np.float64)
    var = np.einsum("ck,ck->c", linear(w, gram), w)
    most = np.einsum("ck,k->c", np.abs(w), np.sqrt(np.diag(gram))) ** 2
    if not (var > LEAST_VARIANCE * most).all():
        return None
    mean = np.einsum("ck,k->c", w, mu) + (0.0 if bias is None else bias)
    move_running_stats(who, running_mean, running_var, momentum, mean, var, count)
    inv_std = 1.0 / np.sqrt(var + eps)
    scale = inv_std if gamma is None else gamma * inv_std
    folded = (scale[:, None] * w).astype(x.dtype).reshape(weight.shape)
    y = channels_second(empty((x.shape[0], *x.shape[2:], channels_out), x.dtype))
    shift = None if beta is None else beta.astype(x.dtype)
    conv_point.forward(x, folded, shift, POINT, 1, residual, relu, y, centre)
    saved = GramSaved(
        x=x,
        y=y,
        weight=weight,
        folded=folded,
        has_bias=bias is not None,
        gamma=gamma,
        has_beta=beta is not None,
        has_residual=residual is not None,
        relu=relu,
        centre=centre,
        gram=gram,
        mean=mean,
        var=var,
        scale=scale,
        inv_std=inv_std,
    )
    return y, saved


def backward(
    dy: np.ndarray, saved: GramSaved, need_dx: bool, residual: np.ndarray | None
) -> tuple[Maybe, np.ndarray, Maybe, Maybe, Maybe, Maybe]:
    """dx with ``residual`` added, dweight, dbias, dgamma, dbeta, dresidual of a ``dy`` that lies as y."""
    x, weight, dtype = saved.x, saved.weight, saved.x.dtype
    scale, inv_std = saved.scale, saved.inv_std
    channels_out, channels = weight.shape[:2]
    count = x.size // channels
    g, passing = dy, PLAIN
    if saved.relu and saved.has_residual:
        cut = norm_parts.passed_sums(dy, saved.y, True)[1]
        assert cut is not None
        g = cut
    elif saved.relu:
        passing = Prologue(_rows(channels_out, dtype, 0, 1, 0), True, slopes=_rows(channels_out, dtype, 1, 0, 0, 0))
        passing = passing._replace(partner=saved.y)
    products, part, sums = conv_point.backward_with_sums(g, x, saved.folded, passing, saved.centre, residual, need_dx)
    w, products = weight.reshape(channels_out, channels).astype(np.float64), products.reshape(channels_out, channels)
    dscale = np.einsum("ck,ck->c", w, products)
    dvar = -0.5 * dscale * scale * inv_std * inv_std
    dweight = scale[:, None] * products + 2 * dvar[:, None] * linear(w, saved.gram)
    dx = None
    if part is not None:
        curvature = linear(w.T * dvar, w.T) * (2 / count)
        level = -np.einsum("c,ck->k", sums * scale, w) / count
        around = curvature.astype(dtype).reshape(channels, channels, 1, 1)
        dx = empty_like(x)
        conv_point.forward(x, around, level.astype(dtype), POINT, 1, part, False, dx, saved.centre)
    vector = dtype if saved.gamma is None else native(saved.gamma)
    return (
        dx,
        dweight.astype(dtype).reshape(weight.shape),
        np.zeros(channels_out, dtype) if saved.has_bias else None,
        None if saved.gamma is None else (dscale * inv_std).astype(vector),
        sums.astype(vector) if saved.has_beta else None,
        g if saved.has_residual else None,
    )


def _rows(channels: int, dtype: np.dtype, *values: float) -> np.ndarray:
    """(values, channels), each row constant."""
    return np.repeat(np.array(values, dtype)[:, None], channels, axis=1)
