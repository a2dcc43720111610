"""Ghost batch normalisation: statistics of parts of a batch (Hoffer, Hubara and Soudry 2017, arXiv 1705.08741)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastbn._checks import STORED, check_float, check_int, check_rank, check_same_dtype, check_shape
from fastbn._views import check_out, dense, empty_like, in_order_of
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional.norm import (
    AXES,
    RANKS,
    BatchNormSaved,
    batch_norm_backward,
    check_out_of,
    forward,
    merge_moments,
)

Momentum = float | Sequence[float]


@dataclass(slots=True, eq=False)
class GhostBatchNormSaved:
    """What ``ghost_batch_norm_backward`` needs of the forward pass.

    x: the input. bounds: where virtual batches begin along its first axis, and its length. parts: of each of them.
    """

    x: np.ndarray
    bounds: list[int]
    parts: list[BatchNormSaved]

    @property
    def count(self) -> int:
        """Values per channel, of all virtual batches."""
        return sum(part.count for part in self.parts)

    @property
    def mean(self) -> np.ndarray:
        """(C,) float64, of the whole batch."""
        return self._moments()[0]

    @property
    def var(self) -> np.ndarray:
        """(C,) float64, biased, of the whole batch: within and between virtual batches."""
        return self._moments()[1]

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        counts = np.array([part.count for part in self.parts])
        squares = np.stack([part.count * part.var for part in self.parts])
        return merge_moments(counts, np.stack([part.mean for part in self.parts]), squares)


def ghost_batch_norm(
    x: np.ndarray,
    virtual_batch_size: int,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: Momentum = 0.1,
    eps: float = 1e-5,
    *,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Batch norm of every ``virtual_batch_size`` samples of ``x`` by themselves when ``training``, else ``batch_norm``.

    The last virtual batch has what is left. If that is one value per channel, which has no variance, it belongs to the
    virtual batch before it. Running statistics are moved by one virtual batch after the other (1705.08741, algorithm
    1); momentum: for all of them, or one for each. Everything else as in ``batch_norm``.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "ghost_batch_norm"
    if out is not None:
        check_out_of(who, out, x, may_be={"x": x})
    statistics = running_mean, running_var, momentum, eps
    return _forward(who, x, virtual_batch_size, weight, bias, *statistics, relu, out, training, keep=False)[0]


def ghost_batch_norm_forward(
    x: np.ndarray,
    virtual_batch_size: int,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    momentum: Momentum = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    out: np.ndarray | None = None,
    training: bool = True,
) -> tuple[np.ndarray, GhostBatchNormSaved]:
    """``ghost_batch_norm`` and what its backward pass needs: (y, saved). ``out`` may not be ``x``."""
    who = "ghost_batch_norm_forward"
    if out is not None:
        check_out_of(who, out, x, apart_from={"x": x})
    statistics = running_mean, running_var, momentum, eps
    return _forward(who, x, virtual_batch_size, weight, bias, *statistics, relu, out, training, keep=True)


def ghost_batch_norm_backward(
    dy: np.ndarray, saved: GhostBatchNormSaved, *, out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Gradients of ``ghost_batch_norm_forward``: (dx, dweight, dbias), None for what was not given.

    dx of every virtual batch by itself, dweight and dbias their sums; see ``batch_norm_backward``. out: dx, may be
    ``dy``. Raises ShapeError, DtypeError, ArgumentError.
    """
    who, x = "ghost_batch_norm_backward", saved.x
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, x.shape)
    if out is not None:
        check_out(who, out, x.shape, x, may_be={"dy": dy}, apart_from={"x": x})
    grad, dx = in_order_of(dy, x), empty_like(x) if out is None else out
    gradients = [
        batch_norm_backward(grad[first:last], part, out=dx[first:last])[1:3]
        for (first, last), part in zip(pairwise(saved.bounds), saved.parts, strict=True)
    ]
    dweight, dbias = (_sum(parts) for parts in zip(*gradients, strict=True))
    return dx, dweight, dbias


def _sum(parts: tuple[np.ndarray | None, ...]) -> np.ndarray | None:
    given = [part for part in parts if part is not None]
    return np.sum(given, axis=0, dtype=np.float64).astype(given[0].dtype) if given else None


def _forward(
    who: str,
    x: np.ndarray,
    virtual_batch_size: int,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    running_mean: np.ndarray | None,
    running_var: np.ndarray | None,
    momentum: Momentum,
    eps: float,
    relu: bool,
    out: np.ndarray | None,
    training: bool,
    keep: bool,
) -> tuple[np.ndarray, GhostBatchNormSaved]:
    check_float(who, "x", x, STORED)
    check_rank(who, "x", x, RANKS, AXES)
    check_int(who, "virtual_batch_size", virtual_batch_size, 1)
    bounds = virtual_batches(x.shape, virtual_batch_size) if training else [0, len(x)]
    if training and bounds[1] * math.prod(x.shape[2:]) == 1:
        raise ShapeError(
            f"{who}: every virtual batch must have more than 1 value per channel when training, got input size "
            f"{x.shape} and virtual_batch_size {virtual_batch_size}"
        )
    momenta = momentum if isinstance(momentum, Sequence) else [momentum] * (len(bounds) - 1)
    if len(momenta) != len(bounds) - 1:
        raise ArgumentError(
            f"{who}: momentum must have an entry for each of {len(bounds) - 1} virtual batches, got {len(momenta)}"
        )
    source = dense(x)
    y = empty_like(source) if out is None else out
    parts: list[BatchNormSaved] = []
    for (first, last), share in zip(pairwise(bounds), momenta, strict=True):
        given = source[first:last], weight, bias, running_mean, running_var, share, eps
        _, saved = forward(who, *given, None, bool(relu), y[first:last], training, keep, parts=len(bounds) - 1)
        parts += [] if saved is None else [saved]
    return y, GhostBatchNormSaved(source, bounds, parts)


def virtual_batches(shape: tuple[int, ...], virtual_batch_size: int) -> list[int]:
    """Where the virtual batches of an input of ``shape`` begin, and the number of samples."""
    bounds = [*range(0, max(shape[0], 1), virtual_batch_size), shape[0]]
    if len(bounds) > 2 and (bounds[-1] - bounds[-2]) * math.prod(shape[2:]) == 1:
        del bounds[-2]
    return bounds
