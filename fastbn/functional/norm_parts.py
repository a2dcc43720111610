"""Batch norm in parts: the statistics from sums that others made, the map by known ones, the sums of a gradient.

For units with convolutions, whose arrays are channels-last.
"""

import math

import numpy as np

from fastbn._checks import FLOAT64
from fastbn._memory import empty
from fastbn._tape import call, unrepeatable
from fastbn._threads import launch
from fastbn.functional.norm_kernels import Found, Parameters, Plan, normalize_by, plan_for
from fastbn.functional.norm_sums import Sums
from fastbn.kernels.batch_norm_partials import finish_moments, finish_products, finish_running, products_matrix
from fastbn.kernels.channels import SCALE


def forward(
    plan: Plan,
    x: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    parameters: Parameters,
    momentum: float,
    eps: float,
    training: bool,
    keep_signs: bool,
    sums: Sums | None,
    defer: bool,
) -> Found:
    """``norm_kernels.forward`` where ``x`` need not be read for its statistics.

    sums: of x, for training. defer: y is not computed, and x comes in its place.
    """
    stats, affine = np.empty((3, plan.channels)), np.empty((3, plan.channels), plan.computed)
    if training:
        assert sums is not None
        given = sums.counts, sums.shifts, sums.partials, *parameters, momentum, eps
        negative = call(finish_moments, *given, stats, affine)
    else:
        negative = call(finish_running, *parameters, eps, stats, affine)
    if negative >= 0 or defer:
        return negative, x, stats, affine, None
    y, signs = normalize(plan, x, stats, affine, residual, relu, keep_signs)
    return negative, y, stats, affine, signs


def normalize(
    plan: Plan,
    x: np.ndarray,
    stats: np.ndarray,
    affine: np.ndarray,
    residual: np.ndarray | None = None,
    relu: bool = False,
    keep_signs: bool = False,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """y by known statistics, and the signs of a ReLU's operand where they are to be kept."""
    y, y_view = plan.output(out)
    signs = plan.signs() if keep_signs else None
    nothing = np.empty(0, plan.computed)
    given = plan.view(x), None if residual is None else plan.view(residual), nothing, nothing, nothing, nothing
    stores = plan.stores(y, 2 if residual is None else 3, keep_signs, x, residual)
    normalize_by(plan, given, 0.0, (-math.inf if not relu else 0.0, *stores, stats, affine, signs, y_view), x.size)
    return y, signs


def scaled(dy: np.ndarray, affine: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    """The gradient through a map with constants: each channel of a dense ``dy`` times its scale."""
    multiplied = np.zeros_like(affine)
    unrepeatable()
    multiplied[SCALE] = affine[SCALE]
    return normalize(plan_for(dy), dy, np.empty((3, affine.shape[1])), multiplied, out=out)[0]


def slopes_of(
    plan: Plan,
    dy: np.ndarray,
    x: np.ndarray,
    relu: bool | float | None,
    signs: np.ndarray | None,
    stats: np.ndarray,
    affine: np.ndarray,
    batch_stats: bool,
    masked: bool,
    dtype: np.dtype,
    sums: Sums | None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """As ``norm_kernels.backward`` of channels-last arrays, with the constants (4, C) of dx in the place of dx.

    relu: None, True, or the number above which it cuts. sums: of dy for x, if they are known.
    """
    dresidual, columns = None, plan.channels
    if sums is None:
        columns = plan.shape[1]
        dresidual, cut = plan.empty() if masked else (None, None)
        views = plan.view(dy), plan.view(x), signs, relu if signs is None else None
        partials, wide = empty(plan.partials, FLOAT64), plan.by_column(affine, 0)
        if wide is not affine:
            call(np.copyto, wide.reshape(3, -1, plan.channels), affine[:, None])
        launch(products_matrix, *views, *plan.chunk, wide, partials, cut, work=x.size)
    else:
        partials = sums.partials
    slopes, gradients = np.empty((4, plan.channels), affine.dtype), np.empty((2, plan.channels), dtype)
    call(finish_products, columns, x.size // plan.channels, partials, batch_stats, stats, affine, slopes, gradients)
    return slopes, dresidual, gradients


def channel_sums(x: np.ndarray) -> np.ndarray:
    """(C,) float64 of a channels-last ``x``."""
    return passed_sums(x, None, False)[0]


def passed_sums(dy: np.ndarray, y: np.ndarray | None, keep: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """(C,) float64: the sums of dy where the ReLU whose output is ``y`` let it pass, or of all of it; channels-last.

    keep: also dy where it passed, 0 elsewhere.
    """
    plan = plan_for(dy)
    columns = plan.shape[1]
    passed, cut = plan.empty() if keep else (None, None)
    partials, identity = np.empty(plan.partials), np.zeros((3, columns), plan.computed)
    identity[1] = 1
    views = plan.view(dy), plan.view(dy if y is None else y), None, None if y is None else True
    launch(products_matrix, *views, *plan.chunk, identity, partials, cut, work=dy.size)
    return partials[0].sum(axis=0)[:columns].reshape(-1, plan.channels).sum(axis=0), passed
