"""Folding while training: what a batch norm folded into weights computes, quantised, and the gradients of it.

z = L(x, W) + c is a convolution or linear layer; mu_B, sigma_B are the mean and sqrt(var + eps) of a batch of z, mu_R,
sigma_R those of the running statistics; r = 1 / sigma, s = gamma r; Q is a quantiser of weights. Folded, with Q(s W):

    batch      y = L(x, Q(s_B W)) + beta + (c - mu_B) s_B          Jacob et al. 2018, arXiv 1712.05877, section 3.2
    corrected  y = L(x, Q(s_R W)) sigma_R / sigma_B + beta + (c - mu_B) s_B
                                                                   Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.2
    frozen     y = L(x, Q(s_R W)) + beta + (c - mu_R) s_R          arXiv 2305.11624

Q passes its gradient straight through: that to Q(w) is taken for that to w (Bengio et al. 2013, arXiv 1308.3432). With
E = Q(s W) - s W, a constant then, the first two are an ordinary batch norm of z and a rest:

    batch      y = BN(z) + L(x, E)
    corrected  y = BN(z) + a L(x, E),  a = sigma_R / sigma_B, which depends on x and W too

so their gradients are those of BN(z), and of the rest dx = L'(a dy, E) and, through sigma_B of the second, with
e = <dL/dE, E> for each channel, dz = -(r_B e / M) (z - mu_B) r_B. Nothing divides by gamma.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastbn._checks import check_float, check_same_dtype, check_shape
from fastbn.functional.norm import BatchNormSaved, batch_norm

Quantizer = Callable[[np.ndarray], np.ndarray]


class Operation(NamedTuple):
    """A convolution or linear layer by its doors.

    forward: (x, weight, bias, relu, out) -> y. backward: (dy, x, weight, need_dx) -> (dx, dweight, dbias).
    fold: as ``fold_linear_bn_weights``.
    """

    forward: Callable[..., np.ndarray]
    backward: Callable[..., tuple[np.ndarray | None, np.ndarray, np.ndarray]]
    fold: Callable[..., tuple[np.ndarray, np.ndarray]]


class Norm(NamedTuple):
    """A batch norm with statistics as constants: gamma and beta (C,) or None for 1 and 0, mean, var (C,), eps."""

    gamma: np.ndarray | None
    beta: np.ndarray | None
    mean: np.ndarray
    var: np.ndarray
    eps: float

    @property
    def std(self) -> np.ndarray:
        """(C,) float64."""
        return np.sqrt(self.var.astype(np.float64) + self.eps)

    @property
    def scale(self) -> np.ndarray:
        """Gamma / std, (C,) float64."""
        return (1.0 if self.gamma is None else self.gamma.astype(np.float64)) / self.std


class Folded(NamedTuple):
    """Weight and bias of a folded layer, and the rounding error of its quantiser, None where there is none."""

    weight: np.ndarray
    bias: np.ndarray
    error: np.ndarray | None


class SavedConstant(NamedTuple):
    """Of a forward pass with constant statistics: x, the weight convolved with, y if there was a ReLU."""

    x: np.ndarray
    used: np.ndarray
    y: np.ndarray | None


class SavedQuantized(NamedTuple):
    """Of a quantised forward pass with batch statistics: also what it folded with, and the quantiser's error."""

    x: np.ndarray
    error: np.ndarray
    norm: Norm
    y: np.ndarray | None


class SavedByChildren(NamedTuple):
    """Of a forward pass that the children made."""


class FrozenGradients(NamedTuple):
    """Gradients of a layer folded with constant statistics; what was not needed or not there is None."""

    dx: np.ndarray | None
    dweight: np.ndarray
    dbias: np.ndarray | None
    dgamma: np.ndarray | None
    dbeta: np.ndarray | None


def fold_quantized(
    who: str,
    operation: Operation,
    weight: np.ndarray,
    bias: np.ndarray | None,
    norm: Norm,
    quantizer: Quantizer | None,
) -> Folded:
    """Q(s W) and beta + (c - mean) s, in the dtype of ``weight``.

    weight: (C, ...), bias: (C,) or None. quantizer: called with s W, must return an array of its shape and dtype.
    Raises ArgumentError where the statistics cannot be folded, ShapeError and DtypeError for the quantiser.
    """
    folded, shift = operation.fold(weight, bias, norm.mean, norm.var, norm.eps, norm.gamma, norm.beta)
    if quantizer is None:
        return Folded(folded, shift, None)
    quantized = quantizer(folded.copy())  # one that works in place must not change what the error is taken from
    name = "what weight_quantizer returns"
    check_float(who, name, quantized)
    check_shape(who, name, quantized, folded.shape, "as the weight")
    check_same_dtype(who, name, quantized, "the weight", folded)
    return Folded(quantized, shift, quantized - folded)


def corrected_output(
    u: np.ndarray, bias: np.ndarray | None, saved: BatchNormSaved, norm: Norm, relu: bool
) -> np.ndarray:
    """u sigma_R / sigma_B + beta + (c - mu_B) s_B, then max(y, 0) if ``relu``; written over ``u`` = L(x, Q(s_R W)).

    saved: of the batch norm of z, bias included. norm: with the running statistics as they were folded. Computed about
    the mean s_R (mu_B - c) that u would have without a quantiser, so that a large mean does not cancel.
    """
    centre = norm.scale * (saved.mean - (0.0 if bias is None else bias.astype(np.float64)))
    centre, var, std = (vector.astype(u.dtype) for vector in (centre, saved.var, norm.std))
    return batch_norm(u, centre, var, std, norm.beta, eps=norm.eps, relu=relu, out=u)


def error_backward(
    dy: np.ndarray, x: np.ndarray, operation: Operation, error: np.ndarray, need_dx: bool
) -> np.ndarray | None:
    """dx of L(x, E), the rest of a layer folded with batch statistics; None unless needed."""
    return operation.backward(dy, x, error, True)[0] if need_dx else None


def corrected_error_backward(
    dy: np.ndarray,
    dz: np.ndarray,
    x: np.ndarray,
    operation: Operation,
    error: np.ndarray,
    saved: BatchNormSaved,
    norm: Norm,
    need_dx: bool,
) -> np.ndarray | None:
    """dx of a L(x, E), the rest of a corrected layer, None unless needed; its part through sigma_B is added to ``dz``.

    dz: (N, C, *), the gradient to z of BN(z), changed in place. saved: of BN(z). norm: as in ``corrected_output``.
    """
    correction = (norm.std * saved.inv_std).astype(dy.dtype)
    scaled = dy * correction.reshape(-1, *(1,) * (dy.ndim - 2))
    dx, dweight, _ = operation.backward(scaled, x, error, need_dx)
    along = -_per_channel_dot(dweight, error) * saved.inv_std / max(saved.count, 1)
    mean, var, along = (vector.astype(dz.dtype) for vector in (saved.mean, saved.var, along))
    batch_norm(saved.x, mean, var, along, eps=norm.eps, residual=dz, out=dz)
    return dx


def frozen_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    used: np.ndarray,
    operation: Operation,
    norm: Norm,
    need_dx: bool,
) -> FrozenGradients:
    """Gradients of L(x, Q(s_R W)) + beta + (c - mu_R) s_R, used = Q(s_R W).

    With G and g the gradients to the weight and the bias convolved with: dW = s G, dc = s g, dbeta = g,
    dgamma = r (<G, W> + g (c - mu_R)).
    """
    dx, dused, dshift = operation.backward(dy, x, used, need_dx)
    scale, dtype = norm.scale, weight.dtype
    centred = (0.0 if bias is None else bias.astype(np.float64)) - norm.mean
    dgamma = (_per_channel_dot(dused, weight) + dshift * centred) / norm.std
    return FrozenGradients(
        dx=dx,
        dweight=(dused * scale.reshape(-1, *(1,) * (weight.ndim - 1))).astype(dtype),
        dbias=None if bias is None else (dshift * scale).astype(dtype),
        dgamma=None if norm.gamma is None else dgamma.astype(norm.gamma.dtype),
        dbeta=None if norm.beta is None else dshift,
    )


def _per_channel_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(C,) float64: the sums of a b over all axes but the first."""
    rows: Any = (array.reshape(len(array), -1).astype(np.float64) for array in (a, b))
    return np.einsum("ci,ci->c", *rows)
