"""Weight normalisation: a weight as a length and a direction (Salimans and Kingma 2016, arXiv 1602.07868).

w = g v / |v|                                             (equation 2)
dg = dw . v / |v|,   dv = g / |v| (dw - dg v / |v|)       (equation 3)
"""

import numpy as np

from fastbn._checks import check_float, check_same_dtype, check_shape
from fastbn._memory import empty
from fastbn._threads import launch
from fastbn._views import as_flat, check_out, dense_c, native
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.kernels.weight_norm import normalize_weight, normalize_weight_backward


def weight_norm(v: np.ndarray, g: np.ndarray, dim: int | None = 0, *, out: np.ndarray | None = None) -> np.ndarray:
    """``g v / |v|``, the norm taken over all axes but ``dim``.

    v: 1 axis or more, float32 or float64. g: v's dtype, v's shape with 1 for every axis but ``dim``. dim=None (or -1,
    as in PyTorch): one norm of the whole of v, g of shape (). Where v is 0 throughout, the result is NaN.
    Returns an array like v, C-contiguous; out: written and returned if given; may be v.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "weight_norm"
    _check(who, v, g, dim)
    if out is not None:
        check_out(who, out, v.shape, np.empty((0, 0), native(v)), may_be={"v": v}, apart_from={"g": g})
    target = empty(v.shape, native(v)) if out is None else out
    rows = _as_rows(target, dim)
    launch(normalize_weight, _as_rows(v, dim), _as_vector(g), rows, work=v.size)
    return _written(rows, target, dim)


def weight_norm_backward(
    dw: np.ndarray, v: np.ndarray, g: np.ndarray, dim: int | None = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of ``weight_norm``: (dv, dg), like v and g.

    dw: like v. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "weight_norm_backward"
    _check(who, v, g, dim)
    check_same_dtype(who, "dw", dw, "v", v)
    check_shape(who, "dw", dw, v.shape, "as v")
    dv, dg = empty(v.shape, native(v)), np.empty(g.size)
    rows = _as_rows(dv, dim)
    launch(normalize_weight_backward, _as_rows(dw, dim), _as_rows(v, dim), _as_vector(g), rows, dg, work=2 * v.size)
    return _written(rows, dv, dim), dg.astype(native(g)).reshape(g.shape)


def norm_except_dim(v: np.ndarray, dim: int | None = 0) -> np.ndarray:
    """The norm of v over all axes but ``dim``, in the shape and dtype of ``weight_norm``'s g; summed in float64."""
    check_float("norm_except_dim", "v", v)
    shape = gain_shape("norm_except_dim", v, dim)
    rows = _as_rows(v, dim).astype(np.float64)
    return np.sqrt((rows * rows).sum(axis=1)).astype(native(v)).reshape(shape)


def gain_shape(who: str, v: np.ndarray, dim: int | None) -> tuple[int, ...]:
    """The shape of g. Raises ShapeError, DtypeError, ArgumentError."""
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, (int, np.integer))):
        raise DtypeError(f"{who}: dim must be an integer or None, got {type(dim).__name__}")
    if v.ndim < 1:
        raise ShapeError(f"{who}: v must have at least 1 axis, got shape {v.shape}")
    if dim is None or dim == -1:
        return ()
    if not 0 <= dim < v.ndim:
        raise ArgumentError(f"{who}: dim must be from 0 to {v.ndim - 1}, or None for the whole, got {dim}")
    return tuple(size if axis == dim else 1 for axis, size in enumerate(v.shape))


def _check(who: str, v: np.ndarray, g: np.ndarray, dim: int | None) -> None:
    check_float(who, "v", v)
    check_same_dtype(who, "g", g, "v", v)
    check_shape(who, "g", g, gain_shape(who, v, dim), "v's with 1 for every axis but dim")


def _as_rows(array: np.ndarray, dim: int | None) -> np.ndarray:
    """(R, M): the entries that share a norm in one row; a view of ``array`` where they lie so."""
    if dim is None or dim == -1:
        return as_flat(dense_c(array)).reshape(1, -1)
    rows = array.shape[dim]
    return as_flat(dense_c(np.moveaxis(array, dim, 0))).reshape(rows, array.size // max(rows, 1))


def _written(rows: np.ndarray, target: np.ndarray, dim: int | None) -> np.ndarray:
    """``target`` with the values of its ``_as_rows``."""
    if not np.may_share_memory(rows, target):
        moved = np.moveaxis(target, dim or 0, 0)
        moved[...] = rows.reshape(moved.shape)
    return target


def _as_vector(g: np.ndarray) -> np.ndarray:
    return as_flat(dense_c(g)).astype(np.float64)
