"""Batch renormalisation (Ioffe 2017, arXiv 1702.03275, algorithm 1)."""

import numpy as np

from fastbn._checks import check_number
from fastbn.errors import ArgumentError
from fastbn.functional.norm import BatchNormSaved, forward
from fastbn.functional.norm_kernels import Limits


def batch_renorm(
    x: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    *,
    r_max: float = 3.0,
    d_max: float = 5.0,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Normalise each channel of ``x``: ``y = ((x - mean) / std r + d) weight + bias`` when ``training``.

    r = std / running std within [1 / r_max, r_max] and d = (mean - running mean) / running std within [-d_max, d_max]
    (algorithm 1), by the running statistics as they were before this batch, std meaning sqrt(var + eps). Within the
    limits a sample is normalised as in inference, whatever else is in its batch; r_max = 1 and d_max = 0 are batch
    norm, and infinity is no limit. Where a running std is 0, r = 1 and d = 0.
    running_mean, running_var: (C,), must be given. momentum and eps: the paper's. Not ``training``, and everything
    else: as in ``batch_norm``.
    """
    who = "batch_renorm"
    statistics = running_mean, running_var, momentum, eps
    limits = _limits(who, running_mean, r_max, d_max)
    options = residual, bool(relu), out
    return forward(who, x, weight, bias, *statistics, *options, training, keep=False, limits=limits)[0]


def batch_renorm_forward(
    x: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    momentum: float = 0.01,
    eps: float = 1e-3,
    r_max: float = 3.0,
    d_max: float = 5.0,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
    training: bool = True,
) -> tuple[np.ndarray, BatchNormSaved]:
    """``batch_renorm`` and what its backward pass, ``batch_norm_backward``, needs: (y, saved).

    There r and d are constants, as the paper has them: dx is that of batch norm times r, and dweight has r xhat + d in
    the place of xhat. ``saved.r`` and ``saved.d`` are (C,) float64.
    """
    who = "batch_renorm_forward"
    statistics = running_mean, running_var, momentum, eps
    limits = _limits(who, running_mean, r_max, d_max)
    options = residual, bool(relu), out
    y, saved = forward(who, x, weight, bias, *statistics, *options, training, keep=True, limits=limits)
    assert saved is not None
    return y, saved


def _limits(who: str, running_mean: np.ndarray | None, r_max: float, d_max: float) -> Limits:
    if running_mean is None:
        raise ArgumentError(f"{who}: running_mean must be given, got None")
    check_number(who, "r_max", r_max, 1.0)
    check_number(who, "d_max", d_max, 0.0)
    return float(r_max), float(d_max)
