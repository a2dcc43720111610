"""Group normalisation (Wu and He 2018, arXiv 1803.08494): every image's channels, some at a time."""

from dataclasses import dataclass

import numpy as np

from fastbn._checks import (
    STORED,
    check_float,
    check_int,
    check_number,
    check_per_channel,
    check_same_dtype,
    check_shape,
)
from fastbn._views import check_out, compute_dtype, dense, empty_like, in_order_of, native
from fastbn.errors import ShapeError
from fastbn.functional import row_norm_kernels as kernels
from fastbn.kernels.channels import INV_STD, MEAN, VAR


@dataclass(slots=True, eq=False)
class GroupNormSaved:
    """What ``group_norm_backward`` needs of the forward pass.

    x: the input. mean, var, inv_std: (N, num_groups) float64, of each image's groups; var is biased.
    scales: the weight as kernels read it. stats, affine: as kernels left them.
    """

    x: np.ndarray
    weight: np.ndarray | None
    scales: np.ndarray
    stats: np.ndarray
    affine: np.ndarray
    num_groups: int
    has_bias: bool

    @property
    def mean(self) -> np.ndarray:
        """(N, num_groups) float64."""
        return self.stats[MEAN].reshape(-1, self.num_groups)

    @property
    def var(self) -> np.ndarray:
        """(N, num_groups) float64, biased."""
        return self.stats[VAR].reshape(-1, self.num_groups)

    @property
    def inv_std(self) -> np.ndarray:
        """(N, num_groups) float64."""
        return self.stats[INV_STD].reshape(-1, self.num_groups)


def group_norm(
    x: np.ndarray,
    num_groups: int,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise each image's ``num_groups`` groups of channels: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    x: (N, C, *), 2 axes or more, C a multiple of num_groups, C-contiguous or channels-last without a copy. float32 or
    float64; float16 and bfloat16 (``ml_dtypes``) are computed in float32, y rounded once.
    weight, bias: (C,), or None for 1 and 0. out: written and returned if given; may be ``x``.
    Returns an array like ``x`` in its memory order. Raises ShapeError, DtypeError, ArgumentError.
    """
    return forward_as("group_norm", x, num_groups, weight, bias, eps, out, keep=False)[0]


def group_norm_forward(
    x: np.ndarray,
    num_groups: int,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, GroupNormSaved]:
    """``group_norm`` and what its backward pass needs: (y, saved).

    ``saved`` refers to ``x``: leave it unchanged until the backward pass, so ``out`` may not be ``x`` then.
    """
    return forward_as("group_norm_forward", x, num_groups, weight, bias, eps, out, keep=True)


def group_norm_backward(
    dy: np.ndarray, saved: GroupNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``group_norm_forward``: (dx, dweight, dbias), None for what was not given.

    With g = dy weight, xhat = (x - mean) / std and means over a group: dx = (g - mean(g) - xhat mean(g xhat)) / std,
    dweight = sum dy xhat and dbias = sum dy over images and positions. dx lies as the input did; out: dx, may be
    ``dy``. Raises ShapeError, DtypeError, ArgumentError.
    """
    return backward_as("group_norm_backward", dy, saved, out)


def forward_as(
    who: str,
    x: np.ndarray,
    num_groups: int,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    out: np.ndarray | None,
    keep: bool,
) -> tuple[np.ndarray, GroupNormSaved]:
    """As the doors; ``who`` is the one that was called."""
    _check_forward(who, x, num_groups, weight, bias, eps)
    source = dense(x)
    if out is not None:
        check_out(who, out, x.shape, source, **{"apart_from" if keep else "may_be": {"x": x}})
    scales = _vector(weight)
    if x.size:
        y, stats, affine = kernels.groups(source, num_groups, scales, _vector(bias), float(eps), out)
    else:
        y = empty_like(source) if out is None else out
        stats, affine = np.zeros((3, x.shape[0] * num_groups)), np.zeros((3, 0), compute_dtype(x.dtype))
    return y, GroupNormSaved(source, weight, scales, stats, affine, num_groups, bias is not None)


def backward_as(
    who: str, dy: np.ndarray, saved: GroupNormSaved, out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """As the doors; ``who`` is the one that was called."""
    x, weight = saved.x, saved.weight
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, x.shape)
    if out is not None:
        check_out(who, out, x.shape, x, may_be={"dy": dy}, apart_from={"x": x})
    if x.size:
        grad = in_order_of(dy, x)
        dx, sums = kernels.groups_backward(grad, x, saved.scales, saved.stats, saved.affine, out)
    else:
        dx, sums = empty_like(x) if out is None else out, np.zeros((2, x.shape[1]))
    gradients = sums.astype(compute_dtype(x.dtype) if weight is None else native(weight))
    return dx, None if weight is None else gradients[0], gradients[1] if saved.has_bias else None


def _vector(values: np.ndarray | None) -> np.ndarray:
    """A weight or bias as kernels read it: float64, empty if there is none."""
    return np.empty(0) if values is None else values.astype(np.float64)


def _check_forward(
    who: str, x: np.ndarray, num_groups: int, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> None:
    check_float(who, "x", x, STORED)
    check_int(who, "num_groups", num_groups, 1)
    if x.ndim < 2:
        raise ShapeError(f"{who}: x must have 2 axes or more (N, C, *spatial), got shape {x.shape}")
    if x.shape[1] % num_groups:
        raise ShapeError(f"{who}: x must have a multiple of {num_groups} channels on axis 1, got shape {x.shape}")
    check_per_channel(who, "weight", weight, x.shape[1])
    check_per_channel(who, "bias", bias, x.shape[1])
    check_number(who, "eps", eps, 0.0)
