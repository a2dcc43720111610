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
What is summed is x_i - near, where ``near`` is the mean of some pixels: mu = near + d comes out of the same pass, and
S = (1/M) sum (x_i - near)(x_i - near)^T - d d^T. An x that is deferred, relu(a x' + b), is read as
max(a x' + b - near, -near).
The algebra on weights goes through ``linear``: the threads of a BLAS would spin beside the kernels' own.
"""

from dataclasses import dataclass

import numpy as np

from fastbn._memory import empty
from fastbn._views import as_flat, channels_second, empty_like, native
from fastbn.functional import conv_point, norm_parts
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point import POINT
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.linear import linear, linear_backward
from fastbn.functional.norm import Statistics, check_parameters, move_running_stats
from fastbn.kernels.channels import NEAR_MEAN, SCALE, SHIFT

# Of the most that w^T S w can be, by what was summed for S: below, float32 sums have lost too much of it.
LEAST_VARIANCE = 1e-3
SAMPLE = 256  # pixels, about, whose mean is ``near``
MOST_CHANNELS = 128  # K, above which the K x K products cost more than the tensor that is saved
EXPANSION = 4  # C / K at least: below, the K x K products cost more than the passes that are saved
PIXELS = 4  # M / C at least: below, the algebra on weights shows

Maybe = np.ndarray | None


@dataclass(slots=True, eq=False)
class GramSaved:
    """What ``backward`` needs. mean, var, inv_std: (C,) float64, of the convolution's output; var is biased.

    deferred: whether x is before its batch norm. y: None without a ReLU. scale, folded: s and s W. centre: the prologue
    of x - near; apart: d, (K,). spread: W S, float64; ``backward`` overwrites it.
    """

    x: np.ndarray
    deferred: bool
    y: np.ndarray | None
    weight: np.ndarray
    folded: np.ndarray
    has_bias: bool
    gamma: np.ndarray | None
    has_beta: bool
    has_residual: bool
    centre: Prologue
    apart: np.ndarray
    spread: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    scale: np.ndarray
    inv_std: np.ndarray

    @property
    def y_shape(self) -> tuple[int, ...]:
        """(N, C, H, W) of the output."""
        return self.x.shape[0], len(self.weight), *self.x.shape[2:]


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
    normed: Prologue | None,
    weight: np.ndarray,
    bias: np.ndarray | None,
    gamma: np.ndarray | None,
    beta: np.ndarray | None,
    statistics: Statistics,
    residual: np.ndarray | None,
    relu: bool,
) -> tuple[np.ndarray, GramSaved] | None:
    """y, channels-last as ``x``, and what ``backward`` needs; running statistics move.

    normed: what ``x`` goes through before, with no ceiling. None, and nothing done, where a variance is so far below
    what it is a sum of that it cannot be trusted.
    """
    channels_out, channels = weight.shape[:2]
    running_mean, running_var, momentum, eps = statistics
    check_parameters(who, channels_out, gamma, beta, *statistics)
    count = x.size // channels
    centre, near = _centred(x, normed or PLAIN)
    square = np.empty((channels, channels, 1, 1), x.dtype)
    products, _, sums = conv_point.backward_with_sums(x, x, square, centre, centre, None, need_dx=False)
    apart, moments = sums / count, products.astype(np.float64).reshape(channels, channels) / count
    w = weight.reshape(channels_out, channels).astype(np.float64)
    spread = linear(w, moments - apart[:, None] * apart)
    var = np.einsum("ck,ck->c", spread, w)
    most = np.einsum("ck,k->c", np.abs(w), np.sqrt(np.diag(moments))) ** 2
    if not (var > LEAST_VARIANCE * most).all():
        return None
    mean = np.einsum("ck,k->c", w, near + apart) + (0.0 if bias is None else bias)
    move_running_stats(who, running_mean, running_var, momentum, mean, var, count)
    inv_std = 1.0 / np.sqrt(var + eps)
    scale = inv_std if gamma is None else gamma * inv_std
    folded = np.multiply(w, scale[:, None], out=np.empty(w.shape, x.dtype), casting="same_kind").reshape(weight.shape)
    shift = (0.0 if beta is None else beta) - scale * np.einsum("ck,k->c", w, apart)
    y = channels_second(empty((x.shape[0], *x.shape[2:], channels_out), x.dtype))
    conv_point.forward(x, folded, shift.astype(x.dtype), POINT, 1, residual, relu, y, centre)
    saved = GramSaved(
        x=x,
        deferred=normed is not None,
        y=y if relu else None,
        weight=weight,
        folded=folded,
        has_bias=bias is not None,
        gamma=gamma,
        has_beta=beta is not None,
        has_residual=residual is not None,
        centre=centre,
        apart=apart,
        spread=spread,
        mean=mean,
        var=var,
        scale=scale,
        inv_std=inv_std,
    )
    return y, saved


def _centred(x: np.ndarray, normed: Prologue) -> tuple[Prologue, np.ndarray]:
    """The prologue of x - near for an ``x`` that goes through ``normed``, and near (K,), float64."""
    channels = x.shape[1]
    pixels = as_flat(x).reshape(-1, channels)
    affine = normed.affine if normed.affine is not None else _rows(channels, x.dtype, 0, 1, 0)
    with np.errstate(all="ignore"):
        some = pixels[:: -(-len(pixels) // SAMPLE)].astype(np.float64)
        some = (some - affine[NEAR_MEAN]) * affine[SCALE] + affine[SHIFT]
        near = np.nan_to_num((np.maximum(some, 0) if normed.relu else some).mean(axis=0), posinf=0, neginf=0)
        near = near.astype(x.dtype)
    moved = [affine[NEAR_MEAN] + near, affine[SCALE], affine[SHIFT]]
    if normed.affine is not None:
        moved = [affine[NEAR_MEAN], affine[SCALE], affine[SHIFT] - near, *([-near] if normed.relu else [])]
    return Prologue(np.stack(moved), normed.relu), near.astype(np.float64)


def backward(
    dy: np.ndarray, saved: GramSaved, need_dx: bool, residual: np.ndarray | None
) -> tuple[Maybe, np.ndarray, Maybe, Maybe, Maybe, Maybe]:
    """dx with ``residual`` added, dweight, dbias, dgamma, dbeta, dresidual of a channels-last ``dy``.

    dx: the gradient to what x is behind its prologue.
    """
    x, weight, dtype = saved.x, saved.weight, saved.x.dtype
    scale, inv_std = saved.scale, saved.inv_std
    channels_out, channels = weight.shape[:2]
    count = x.size // channels
    g, passing = dy, PLAIN
    if saved.y is not None and saved.has_residual:
        cut = norm_parts.passed_sums(dy, saved.y, True)[1]
        assert cut is not None
        g = cut
    elif saved.y is not None:
        passing = Prologue(_rows(channels_out, dtype, 0, 1, 0), True, slopes=_rows(channels_out, dtype, 1, 0, 0, 0))
        passing = passing._replace(partner=saved.y)
    products, part, sums = conv_point.backward_with_sums(g, x, saved.folded, passing, saved.centre, residual, need_dx)
    w = weight.reshape(channels_out, channels).astype(np.float64)
    about = products.reshape(channels_out, channels) - sums[:, None] * saved.apart
    dscale = np.einsum("ck,ck->c", w, about)
    dvar = -0.5 * dscale * scale * inv_std * inv_std
    about *= scale[:, None]
    slopes = saved.spread * (2 * dvar[:, None])
    dweight = np.add(about, slopes, out=np.empty(about.shape, dtype), casting="same_kind")
    dx = None
    if part is not None:
        weighted, square = np.multiply(w, (2 / count) * dvar[:, None], out=about), np.empty((channels, channels))
        curvature = linear_backward(weighted, w, square, need_dx=False, need_dbias=False)[1]
        level = -np.einsum("c,ck->k", sums * scale, w) / count - np.einsum("kl,l->k", curvature, saved.apart)
        around = curvature.astype(dtype).reshape(channels, channels, 1, 1)
        dx = empty_like(x)
        conv_point.forward(x, around, level.astype(dtype), POINT, 1, part, False, dx, saved.centre)
    vector = dtype if saved.gamma is None else native(saved.gamma)
    return (
        dx,
        dweight.reshape(weight.shape),
        np.zeros(channels_out, dtype) if saved.has_bias else None,
        None if saved.gamma is None else (dscale * inv_std).astype(vector),
        sums.astype(vector) if saved.has_beta else None,
        g if saved.has_residual else None,
    )


def _rows(channels: int, dtype: np.dtype, *values: float) -> np.ndarray:
    """(values, channels), each row constant."""
    return np.repeat(np.array(values, dtype)[:, None], channels, axis=1)
