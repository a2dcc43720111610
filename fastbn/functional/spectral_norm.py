"""Spectral normalisation: a weight divided by its largest singular value (Miyato et al. 2018, arXiv 1802.05957).

The weight is read as a matrix W (R, M), ``dim`` first. Power iteration keeps two unit vectors (algorithm 1),

    u = W v / |W v|,   v = W^T u / |W^T u|,   sigma = u^T W v,   w = W / sigma

and with u and v as constants (equation 10)   dW = (dw - (dw . w) u v^T) / sigma.
"""

from typing import NamedTuple

import numpy as np

from fastbn._checks import check_float, check_int, check_number, check_same_dtype, check_shape, check_writable
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.functional.linear import linear


class SpectralNormSaved(NamedTuple):
    """What ``spectral_norm_backward`` needs: the output, the vectors it was made with, sigma and dim."""

    w: np.ndarray
    u: np.ndarray
    v: np.ndarray
    sigma: float
    dim: int


def spectral_norm(
    weight: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int = 0,
) -> tuple[np.ndarray, SpectralNormSaved]:
    """``weight / sigma`` after ``n_power_iterations`` steps from u and v, which are changed in place.

    weight: 2 axes or more, float32 or float64. u: (R,), v: (M,) of its dtype, R being axis ``dim``, M all others.
    n_power_iterations=0: u and v as they are, as in eval mode. eps: the least length that u and v are divided by.
    Returns (w, saved), w C-contiguous. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "spectral_norm"
    matrix = as_matrix(who, weight, dim)
    check_int(who, "n_power_iterations", n_power_iterations, 0)
    check_number(who, "eps", eps, 0.0)
    for name, vector, size in (("u", u, len(matrix)), ("v", v, matrix.shape[1])):
        check_same_dtype(who, name, vector, "weight", weight)
        check_shape(who, name, vector, (size,))
        if n_power_iterations:
            check_writable(who, name, vector)
    for _ in range(n_power_iterations):
        u[...] = _unit(_times(matrix, v), eps)
        v[...] = _unit(_times(matrix.T, u), eps)
    sigma = float(np.sum(u.astype(np.float64) * _times(matrix, v)))
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.divide(weight, weight.dtype.type(sigma), order="C")
    return w, SpectralNormSaved(w, u.copy(), v.copy(), sigma, dim)


def spectral_norm_backward(dw: np.ndarray, saved: SpectralNormSaved) -> np.ndarray:
    """The gradient to the weight, like it; dw: like w. Raises ShapeError, DtypeError."""
    who, (w, u, v, sigma, dim) = "spectral_norm_backward", saved
    check_same_dtype(who, "dw", dw, "w", w)
    check_shape(who, "dw", dw, w.shape, "as w")
    product = float(np.sum(dw * w, dtype=np.float64))
    shape = (w.shape[dim], *w.shape[:dim], *w.shape[dim + 1 :])
    outer = np.moveaxis(np.outer(product * u, v).reshape(shape), 0, dim)
    return np.divide(dw - outer, sigma, dtype=w.dtype, order="C")


def as_matrix(who: str, weight: np.ndarray, dim: int) -> np.ndarray:
    """(R, M): axis ``dim`` first. Raises ShapeError, DtypeError, ArgumentError."""
    check_float(who, "weight", weight)
    if weight.ndim < 2:
        raise ShapeError(f"{who}: weight must have at least 2 axes, got shape {weight.shape}")
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise DtypeError(f"{who}: dim must be an integer, got {type(dim).__name__}")
    if not 0 <= dim < weight.ndim:
        raise ArgumentError(f"{who}: dim must be from 0 to {weight.ndim - 1}, got {dim}")
    rows = weight.shape[dim]
    return np.moveaxis(weight, dim, 0).reshape(rows, weight.size // max(rows, 1))


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return linear(vector[None], matrix)[0]


def _unit(vector: np.ndarray, eps: float) -> np.ndarray:
    length = np.sqrt(np.sum(np.square(vector, dtype=np.float64)))
    return vector / max(float(length), eps)
