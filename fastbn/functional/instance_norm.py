"""Instance normalisation (Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022): every channel of every image."""

import math

import numpy as np

from fastbn._checks import STORED, check_float, check_number, check_rank, check_running_stats
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional.group_norm import GroupNormSaved, backward_as, forward_as
from fastbn.functional.norm import (
    BatchNormSaved,
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
    move_running_stats,
)

RANKS = (3, 4, 5)
AXES = "(N, C, *spatial)"

# Of an instance norm by the input's statistics; by running ones, as constants.
InstanceNormSaved = GroupNormSaved | BatchNormSaved


def instance_norm(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise each channel of each image of ``x``: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    x: (N, C, *spatial), 3 to 5 axes, memory and dtypes as in ``group_norm``. weight, bias: (C,), or None for 1 and 0.
    running_mean, running_var: (C,). With use_input_stats they are updated in place by the means over the images of
    mean and unbiased variance, ``r = (1 - momentum) r + momentum new``; without, they are the statistics, as in
    ``batch_norm``. out: written and returned if given; may be ``x``.
    Returns an array like ``x`` in its memory order. Raises ShapeError, DtypeError, ArgumentError.
    """
    statistics = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    return _forward("instance_norm", x, *statistics, out, keep=False)[0]


def instance_norm_forward(
    x: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, InstanceNormSaved]:
    """``instance_norm`` and what its backward pass needs: (y, saved).

    ``saved`` refers to ``x``: leave it unchanged until the backward pass, so ``out`` may not be ``x`` then.
    """
    statistics = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    y, saved = _forward("instance_norm_forward", x, *statistics, out, keep=True)
    assert saved is not None
    return y, saved


def instance_norm_backward(
    dy: np.ndarray, saved: InstanceNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``instance_norm_forward``: (dx, dweight, dbias); as those of a group norm of one channel a group,
    or of a batch norm with constant statistics."""
    if isinstance(saved, BatchNormSaved):
        return batch_norm_backward(dy, saved, out=out)[:3]
    return backward_as("instance_norm_backward", dy, saved, out)


def _forward(
    who: str,
    x: np.ndarray,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    out: np.ndarray | None,
    keep: bool,
) -> tuple[np.ndarray, InstanceNormSaved | None]:
    check_float(who, "x", x, STORED)
    check_rank(who, "x", x, RANKS, AXES)
    channels = x.shape[1]
    check_running_stats(who, running_mean, running_var, channels)
    check_number(who, "momentum", momentum, 0.0, 1.0)
    if not use_input_stats:
        if running_mean is None:
            raise ArgumentError(f"{who}: running_mean must be given when use_input_stats is False, got None")
        if not keep:
            return batch_norm(x, running_mean, running_var, weight, bias, eps=eps, out=out), None
        constants = {"running_mean": running_mean, "running_var": running_var, "training": False}
        return batch_norm_forward(x, weight, bias, eps=eps, out=out, **constants)  # type: ignore[arg-type]
    count = math.prod(x.shape[2:])
    if count == 1:
        raise ShapeError(f"{who}: x must have more than 1 spatial element when training, got input size {x.shape}")
    y, saved = forward_as(who, x, max(channels, 1), weight, bias, eps, out, keep)
    if x.size:
        means = saved.mean.mean(axis=0), saved.var.mean(axis=0)
        move_running_stats(who, running_mean, running_var, momentum, *means, count)
    return y, saved
