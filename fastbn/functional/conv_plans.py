"""Convolutions of weights that cannot change, as folded models have them, planned by the first of their kind.

What follows from shapes, memory orders, options and weights is worked out once, by ``convolve``: a *plan* is what that
launched, but for the arrays that are others the next time. Plans are kept with the weights and never change, so that
any thread may use them.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np

from fastbn._memory import empty, scratch
from fastbn._tape import Launch, recorded
from fastbn._threads import get_num_threads, repeat
from fastbn._views import as_flat, channels_second
from fastbn.functional import conv_blocks
from fastbn.functional.conv import Pair, convolve
from fastbn.functional.conv_bn_lanes import suits
from fastbn.functional.packed_weights import kept_with
from fastbn.kernels.conv_blocks import correlate_blocks
from fastbn.kernels.conv_depthwise import correlate_depthwise
from fastbn.kernels.conv_patches import correlate_patches
from fastbn.kernels.conv_point import correlate_points
from fastbn.kernels.conv_winograd import correlate_winograd

# Kernels that are the whole of a convolution, their workspace the last operand.
WHOLE = correlate_blocks, correlate_depthwise, correlate_patches, correlate_points, correlate_winograd
AT_ONCE = 8  # launches that wait for each other, so that Python's own work is not cold for each of them
LARGE = 1 << 22  # bytes of an output that is worth no wait
PLANS = 64  # of a weight at most: shapes of images may be without end


class _Waiting(threading.local):
    """Launches of this Python thread that are still to be made, where they may wait."""

    may_wait = False

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def add(self, last: Launch, size: int) -> None:
        """size: bytes of its output."""
        self.launches.append(last)
        if not self.may_wait or size >= LARGE or len(self.launches) >= AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Make them, in order."""
        launches, self.launches = self.launches, []
        for last in launches:
            repeat(last)


_waiting = _Waiting()


@contextmanager
def waiting(may_wait: bool = True) -> Iterator[None]:
    """Planned launches may wait for each other, so that Python is done with several before the caches are theirs.

    Nobody may look into an array meanwhile; ``may_wait=False`` is for who does. Nested, the outermost ends the wait.
    """
    before = _waiting.may_wait
    if not may_wait:
        _waiting.finish()
    _waiting.may_wait = may_wait
    try:
        yield
        if not before:
            _waiting.finish()
    finally:
        _waiting.may_wait = before
        if not before:
            _waiting.launches.clear()


class Plan(NamedTuple):
    """A launch that writes a channels-last y; its x, y, residual and workspace are None, at their places."""

    launch: Launch
    x_place: int
    y_place: int
    residual_place: int | None
    workspace: tuple[int, int]
    shape: tuple[int, ...]
    dtype: np.dtype
    bias: np.ndarray | None

    def run(self, x: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
        """Y for operands that lie in memory as those of the first launch."""
        y = empty(self.shape, self.dtype)
        kernel, operands, work = self.launch
        arrays = list(operands)
        arrays[self.x_place] = as_flat(x)
        arrays[self.y_place] = y.reshape(-1)
        if self.residual_place is not None and residual is not None:
            arrays[self.residual_place] = as_flat(residual)
        arrays[-1] = scratch(self.workspace, self.dtype)
        _waiting.add(Launch(kernel, tuple(arrays), work), y.nbytes)
        return channels_second(y)

    @classmethod
    def of(
        cls, last: Launch, x: np.ndarray, bias: np.ndarray | None, residual: np.ndarray | None, y: np.ndarray
    ) -> Self | None:
        """The plan of the convolution that ended with the launch ``last``, None if it took copies of its operands."""
        places = [_places(last.operands, array) for array in (x, y, residual, bias)]
        wanted = [1, 1, residual is not None, bias is not None]
        if last.kernel not in WHOLE or [len(found) for found in places] != wanted:
            return None
        (x_place,), (y_place,), residual_place, _ = places
        changing = {x_place, y_place, *residual_place, len(last.operands) - 1}
        operands = tuple(None if place in changing else array for place, array in enumerate(last.operands))
        return cls(
            Launch(last.kernel, operands, last.work),
            x_place,
            y_place,
            residual_place[0] if residual_place else None,
            last.operands[-1].shape,
            (y.shape[0], *y.shape[2:], y.shape[1]),
            y.dtype,
            bias,
        )


def _places(operands: tuple[Any, ...], array: np.ndarray | None) -> list[int]:
    """Where among ``operands`` the memory of ``array`` is."""
    if array is None:
        return []
    arrays = ((place, operand) for place, operand in enumerate(operands) if isinstance(operand, np.ndarray))
    return [place for place, operand in arrays if np.may_share_memory(operand, array)]


def convolve_planned(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    residual: np.ndarray | None = None,
    relu: bool = False,
    ceiling: float = math.inf,
) -> np.ndarray:
    """``conv2d``, channels-last unless images are many, small and of few channels; ceiling: of the ReLU.

    ``bias`` may change in place. Raises as ``conv2d``.
    """
    kept = kept_with(weight)
    if kept is None:
        _waiting.finish()
        return _convolve(x, weight, bias, stride, padding, dilation, groups, residual, relu, ceiling)
    lies = None if residual is None else (residual.shape, residual.strides, residual.dtype, residual.flags.aligned)
    layout = x.shape, x.strides, x.dtype, x.flags.aligned, lies
    kind = weight.shape, None if bias is None else id(bias), stride, padding, dilation, groups, relu, ceiling
    key = layout, kind, get_num_threads()
    plan = kept.get(key)
    if plan is not None:
        return plan.run(x, residual)
    _waiting.finish()
    if residual is not None and np.may_share_memory(x, residual):
        residual = residual.copy(order="K")  # to be told from x among the operands
    with recorded() as launches:
        y = _convolve(x, weight, bias, stride, padding, dilation, groups, residual, relu, ceiling)
    plan = Plan.of(launches[-1], x, bias, residual, y) if launches else None
    if plan is not None:
        if len(kept) > PLANS:
            kept.clear()
        kept[key] = plan
    return y


def multiply_planned(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """``linear`` of x (N, in) and a read-only weight (out, in), as a convolution of images of one pixel."""
    image, kernel = x.reshape(*x.shape, 1, 1), weight.reshape(*weight.shape, 1, 1)
    return convolve_planned(image, kernel, bias, 1, 0, 1, 1).reshape(len(x), len(weight))


def multiplies(x: np.ndarray, weight: np.ndarray) -> bool:
    """Whether ``multiply_planned`` is the faster ``linear``."""
    fits = x.ndim == 2 and x.shape[1:] == weight.shape[1:] and x.dtype == weight.dtype
    return fits and not weight.flags.writeable and conv_blocks.suits(weight.shape, 1, weight.itemsize)


def _convolve(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    ceiling: float,
) -> np.ndarray:
    sizes = stride, padding, dilation, groups
    follows = suits(x, weight, *sizes)
    return convolve(x, weight, bias, *sizes, residual=residual, relu=relu, ceiling=ceiling, follows=follows)
