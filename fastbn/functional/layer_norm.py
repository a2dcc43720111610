"""Layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450) and RMS normalisation (Zhang and Sennrich 2019,
arXiv 1910.07467) over the last axes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn._checks import STORED, check_float, check_int, check_number, check_same_dtype, check_shape
from fastbn._views import as_flat, check_out, compute_dtype, dense_c, native
from fastbn.errors import ShapeError
from fastbn.functional import row_norm_kernels as kernels
from fastbn.kernels.channels import INV_STD, MEAN

Shape = int | tuple[int, ...] | list[int]


@dataclass(slots=True, eq=False)
class LayerNormSaved:
    """What ``layer_norm_backward`` and ``rms_norm_backward`` need of the forward pass.

    x: the input. mean, inv_std: (rows,) float64; of RMS norm 0 and 1 / root mean square. scales: the weight as kernels
    read it. stats, affine: as kernels left them.
    """

    x: np.ndarray
    weight: np.ndarray | None
    scales: np.ndarray
    stats: np.ndarray
    affine: np.ndarray
    shape: tuple[int, ...]
    centred: bool
    has_bias: bool

    @property
    def mean(self) -> np.ndarray:
        """(rows,) float64."""
        return self.stats[MEAN]

    @property
    def inv_std(self) -> np.ndarray:
        """(rows,) float64."""
        return self.stats[INV_STD]


def layer_norm(
    x: np.ndarray,
    normalized_shape: Shape,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise ``x`` over its last axes: ``y = (x - mean) / sqrt(var + eps) * weight + bias``, var being biased.

    x: (*, *normalized_shape), float32 or float64; float16 and bfloat16 (``ml_dtypes``) are computed in float32, y
    rounded once. Read without a copy where C-contiguous. weight, bias: normalized_shape, or None for 1 and 0.
    out: written and returned if given; may be ``x``.
    Returns a C-contiguous array of x's shape and dtype. Raises ShapeError, DtypeError, ArgumentError.
    """
    return _forward("layer_norm", x, normalized_shape, weight, bias, eps, True, out, keep=False)[0]


def layer_norm_forward(
    x: np.ndarray,
    normalized_shape: Shape,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, LayerNormSaved]:
    """``layer_norm`` and what its backward pass needs: (y, saved).

    ``saved`` refers to ``x`` and ``weight``: leave them unchanged until the backward pass, so ``out`` may not be ``x``.
    """
    return _forward("layer_norm_forward", x, normalized_shape, weight, bias, eps, True, out, keep=True)


def layer_norm_backward(
    dy: np.ndarray, saved: LayerNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``layer_norm_forward``: (dx, dweight, dbias), None for what was not given.

    With g = dy weight, xhat = (x - mean) / std and means over a row: dx = (g - mean(g) - xhat mean(g xhat)) / std,
    dweight = sum dy xhat and dbias = sum dy over the rows. out: dx, may be ``dy``.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    return _backward("layer_norm_backward", dy, saved, out)


def rms_norm(
    x: np.ndarray,
    normalized_shape: Shape,
    weight: np.ndarray | None = None,
    eps: float | None = None,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last axes; everything else as in ``layer_norm``.

    eps: None for the distance from 1 to the next number of the dtype that is computed in, as in PyTorch.
    """
    return _forward("rms_norm", x, normalized_shape, weight, None, eps, False, out, keep=False)[0]


def rms_norm_forward(
    x: np.ndarray,
    normalized_shape: Shape,
    weight: np.ndarray | None = None,
    eps: float | None = None,
    *,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, LayerNormSaved]:
    """``rms_norm`` and what its backward pass needs: (y, saved). ``out`` may not be ``x``."""
    return _forward("rms_norm_forward", x, normalized_shape, weight, None, eps, False, out, keep=True)


def rms_norm_backward(
    dy: np.ndarray, saved: LayerNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Gradients of ``rms_norm_forward``: (dx, dweight), as in ``layer_norm_backward`` without mean(g)."""
    return _backward("rms_norm_backward", dy, saved, out)[:2]


def _forward(
    who: str,
    x: np.ndarray,
    normalized_shape: Shape,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float | None,
    centred: bool,
    out: np.ndarray | None,
    keep: bool,
) -> tuple[np.ndarray, LayerNormSaved]:
    shape = _check_forward(who, x, normalized_shape, weight, bias)
    source, dtype = dense_c(x), compute_dtype(x.dtype)
    if eps is None and not centred:
        eps = float(np.finfo(dtype).eps)
    check_number(who, "eps", eps, 0.0)
    if out is not None:
        check_out(who, out, x.shape, source, **{"apart_from" if keep else "may_be": {"x": x}})
    length = math.prod(shape)
    scales, shifts = _vector(weight, length, dtype, 1.0), _vector(bias, length, dtype, 0.0)
    if x.size:
        y, stats, affine = kernels.layers(source, length, scales, shifts, centred, float(eps), out)  # type: ignore[arg-type]
    else:
        y = np.empty(x.shape, native(x)) if out is None else out
        stats, affine = np.zeros((3, 0)), np.zeros((3, 0), dtype)
    return y, LayerNormSaved(source, weight, scales, stats, affine, shape, centred, bias is not None)


def _backward(
    who: str, dy: np.ndarray, saved: LayerNormSaved, out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    x, weight = saved.x, saved.weight
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, x.shape)
    if out is not None:
        check_out(who, out, x.shape, x, may_be={"dy": dy}, apart_from={"x": x})
    if x.size:
        constants = saved.centred, saved.stats, saved.affine
        dx, sums = kernels.layers_backward(dense_c(dy), x, saved.scales.size, saved.scales, *constants, out)
    else:
        dx, sums = np.empty_like(x) if out is None else out, np.zeros((2, saved.scales.size))
    gradients = sums.astype(saved.scales.dtype if weight is None else native(weight)).reshape(2, *saved.shape)
    return dx, None if weight is None else gradients[0], gradients[1] if saved.has_bias else None


def _vector(values: np.ndarray | None, size: int, dtype: Any, absent: float) -> np.ndarray:
    """A weight or bias as kernels read it: (size,) of ``dtype``."""
    if values is None:
        return np.full(size, absent, dtype)
    plain = values.dtype is dtype and values.flags.carray
    return values.reshape(-1) if plain else as_flat(np.ascontiguousarray(values, dtype))


def _check_forward(
    who: str, x: np.ndarray, normalized_shape: Shape, weight: np.ndarray | None, bias: np.ndarray | None
) -> tuple[int, ...]:
    check_float(who, "x", x, STORED)
    shape = as_shape(who, normalized_shape)
    if x.shape[max(x.ndim - len(shape), 0) :] != shape:
        wanted = ", ".join(("*", *map(str, shape)))
        raise ShapeError(f"{who}: x must have shape ({wanted}), as normalized_shape says, got {x.shape}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_float(who, name, vector)
            check_shape(who, name, vector, shape, "as normalized_shape says")
    return shape


def as_shape(who: str, normalized_shape: Shape) -> tuple[int, ...]:
    """``normalized_shape`` as a tuple of at least one axis."""
    shape = tuple(normalized_shape) if isinstance(normalized_shape, (tuple, list)) else (normalized_shape,)
    if not shape:
        raise ShapeError(f"{who}: normalized_shape must have at least 1 axis, got {normalized_shape}")
    for size in shape:
        check_int(who, "normalized_shape", size, 0)
    return tuple(int(size) for size in shape)
