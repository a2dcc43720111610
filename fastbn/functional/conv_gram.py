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
from fastbn._tape import call
from fastbn._threads import launch
from fastbn._views import as_flat, channels_second, dense_c, empty_like, native
from fastbn.functional import conv_point, norm_parts
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point import POINT
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.linear import linear, linear_backward
from fastbn.functional.norm import Statistics, check_parameters, move_running_stats
from fastbn.kernels.channels import NEAR_MEAN, SHIFT
from fastbn.kernels.gram import INV_STD, MEAN, VAR, fold_rows, gradient_rows, sample_mean

# Of the most that w^T S w can be, by what was summed for S: below, float32 sums have lost too much of it.
LEAST_VARIANCE = 1e-3
SAMPLE = 256  # pixels, about, whose mean is ``near``
MOST_CHANNELS = 128  # K, above which the K x K products cost more than the tensor that is saved
EXPANSION = 4  # C / K at least: below, the K x K products cost more than the passes that are saved
PIXELS = 4  # M / C at least: below, the algebra on weights shows

Maybe = np.ndarray | None


@dataclass(slots=True, eq=False)
class GramSaved:
    """What ``backward`` needs. moments: rows of ``kernels.gram``, of the convolution's output.

    deferred: whether x is before its batch norm. y: None without a ReLU. folded: s W. centre: the prologue of x - near;
    apart: d, (K,). spread: W S, float64.
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
    moments: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(C,) float64."""
        return self.moments[MEAN]

    @property
    def var(self) -> np.ndarray:
        """(C,) float64, biased."""
        return self.moments[VAR]

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
    products, _, pieces = conv_point.backward_with_sums(x, x, square, centre, centre, None, need_dx=False)
    flat = dense_c(weight).reshape(channels_out, channels)
    apart, mean, deviations = np.empty((3, channels))
    around, wide = np.empty((channels, channels)), np.empty(flat.shape)
    call(_moments, products.reshape(channels, channels), pieces, count, near, apart, mean, deviations, around)
    call(np.copyto, wide, flat)
    spread = linear(wide, around)
    moments, shift = np.empty((6, channels_out)), np.empty(channels_out, x.dtype)
    folded = np.empty(flat.shape, x.dtype)
    trusted = launch(
        fold_rows,
        flat,
        spread,
        mean,
        apart,
        deviations,
        *(_wide(vector) for vector in (bias, gamma, beta)),
        eps,
        LEAST_VARIANCE,
        moments,
        shift,
        folded,
        work=flat.size,
    )
    if not trusted:
        return None
    call(move_running_stats, who, running_mean, running_var, momentum, moments[MEAN], moments[VAR], count)
    folded = folded.reshape(weight.shape)
    y = channels_second(empty((x.shape[0], *x.shape[2:], channels_out), x.dtype))
    conv_point.forward(x, folded, shift, POINT, 1, residual, relu, y, centre)
    saved = GramSaved(
        x=x,
        deferred=normed is not None,
        y=y if relu else None,
        weight=flat,
        folded=folded,
        has_bias=bias is not None,
        gamma=gamma,
        has_beta=beta is not None,
        has_residual=residual is not None,
        centre=centre,
        apart=apart,
        spread=spread,
        moments=moments,
    )
    return y, saved


def _wide(vector: Maybe) -> np.ndarray:
    """In float64; empty if None."""
    wide = np.empty(0 if vector is None else vector.shape)
    if vector is not None:
        call(np.copyto, wide, vector)
    return wide


def _moments(
    products: np.ndarray,
    pieces: np.ndarray,
    count: int,
    near: np.ndarray,
    apart: np.ndarray,
    mean: np.ndarray,
    deviations: np.ndarray,
    around: np.ndarray,
) -> None:
    """From sums about ``near``, of which ``deviations`` are the roots of the squares': d, mu and S."""
    _add(pieces, apart)
    apart /= count
    np.divide(products, count, out=around, dtype=np.float64)
    np.sqrt(np.diag(around), out=deviations)
    around -= np.multiply.outer(apart, apart)
    np.add(near, apart, out=mean)


def _add(pieces: np.ndarray, sums: np.ndarray) -> None:
    """The sums of each channel, the first of the columns of ``pieces``."""
    np.sum(pieces[:, : sums.size], axis=0, out=sums)


def _centred(x: np.ndarray, normed: Prologue) -> tuple[Prologue, np.ndarray]:
    """The prologue of x - near for an ``x`` that goes through ``normed``, and near (K,), float64."""
    channels = x.shape[1]
    pixels, near, sums = as_flat(x).reshape(-1, channels), np.empty(channels, x.dtype), np.empty(channels)
    affine = normed.affine if normed.affine is not None else _rows(channels, x.dtype, 0, 1, 0)
    call(sample_mean, pixels, -(-len(pixels) // SAMPLE), affine, bool(normed.relu), near, sums)
    moved = np.empty((4 if normed.relu else 3, channels), x.dtype)
    call(_move, affine, normed.affine is not None, near, moved)
    return Prologue(moved, normed.relu), _wide(near)


def _move(affine: np.ndarray, normed: bool, near: np.ndarray, moved: np.ndarray) -> None:
    """``affine`` less ``near``, and the floor of a ReLU; normed: behind what x goes through, else before."""
    moved[: len(affine)] = affine
    if normed:
        moved[SHIFT] -= near
        moved[SHIFT + 1 :] = -near
    else:
        moved[NEAR_MEAN] += near


def backward(
    dy: np.ndarray, saved: GramSaved, need_dx: bool, residual: np.ndarray | None
) -> tuple[Maybe, np.ndarray, Maybe, Maybe, Maybe, Maybe]:
    """dx with ``residual`` added, dweight, dbias, dgamma, dbeta, dresidual of a channels-last ``dy``.

    dx: the gradient to what x is behind its prologue.
    """
    x, weight, dtype = saved.x, saved.weight, saved.x.dtype
    channels_out, channels = weight.shape
    count = x.size // channels
    g, passing = dy, PLAIN
    if saved.y is not None and saved.has_residual:
        cut = norm_parts.passed_sums(dy, saved.y, True)[1]
        assert cut is not None
        g = cut
    elif saved.y is not None:
        passing = Prologue(_rows(channels_out, dtype, 0, 1, 0), True, slopes=_rows(channels_out, dtype, 1, 0, 0, 0))
        passing = passing._replace(partner=saved.y)
    products, part, pieces = conv_point.backward_with_sums(g, x, saved.folded, passing, saved.centre, residual, need_dx)
    sums = np.empty(channels_out)
    call(_add, pieces, sums)
    dscale, level, dweight = np.empty(channels_out), np.empty(channels), np.empty(weight.shape, dtype)
    wide, weighted = np.empty(weight.shape), np.empty(weight.shape)
    given = products.reshape(weight.shape), sums, saved.apart, weight, saved.moments, saved.spread, count
    launch(gradient_rows, *given, dscale, dweight, wide, weighted, level, work=weight.size)
    dx = None
    if part is not None:
        square = np.empty((channels, channels))
        curvature = linear_backward(weighted, wide, square, need_dx=False, need_dbias=False)[1]
        around, shift = np.empty((channels, channels, 1, 1), dtype), np.empty(channels, dtype)
        call(np.copyto, around.reshape(channels, channels), curvature)
        call(_shift, curvature, saved.apart, level, shift)
        dx = empty_like(x)
        conv_point.forward(x, around, shift, POINT, 1, part, False, dx, saved.centre)
    dgamma, dbeta = np.empty((2, channels_out), dtype if saved.gamma is None else native(saved.gamma))
    call(np.multiply, dscale, saved.moments[INV_STD], dgamma)
    call(np.copyto, dbeta, sums)
    return (
        dx,
        dweight.reshape(saved.folded.shape),
        np.zeros(channels_out, dtype) if saved.has_bias else None,
        None if saved.gamma is None else dgamma,
        dbeta if saved.has_beta else None,
        g if saved.has_residual else None,
    )


def _shift(curvature: np.ndarray, apart: np.ndarray, level: np.ndarray, shift: np.ndarray) -> None:
    """What dx has in all pixels."""
    np.copyto(shift, -level - np.einsum("kl,l->k", curvature, apart), casting="same_kind")


def _rows(channels: int, dtype: np.dtype, *values: float) -> np.ndarray:
    """(values, channels), each row constant."""
    return np.repeat(np.array(values, dtype)[:, None], channels, axis=1)
