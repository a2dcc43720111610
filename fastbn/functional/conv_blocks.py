"""Convolution by ``kernels.conv_blocks``, with weights as panels.

Channels-last operands may pass through a batch norm on their way in, see ``conv_prologue``, and be summed for one on
their way out, see ``norm_sums``.
"""

import math

import numpy as np

from fastbn._memory import empty, scratch
from fastbn._threads import get_num_threads, launch, max_threads
from fastbn._views import as_flat, dense_c, empty_like, flat, in_order_of, with_places
from fastbn.functional.conv_geometry import Window, backward_planes
from fastbn.functional.conv_portions import (
    Portions,
    backward_portions,
    forward_portions,
    weight_portions,
)
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import NOTHING, Sums, limits_of, pieces_of
from fastbn.functional.packed_weights import packed
from fastbn.kernels.conv_blocks import correlate_blocks
from fastbn.kernels.conv_blocks_weights import correlate_weights_blocks
from fastbn.kernels.conv_panels import add_panels, block_lanes, pack_panels


def suits(weight_shape: tuple[int, ...], groups: int, itemsize: int) -> bool:
    """Whether a group has enough channels on both sides to fill blocks."""
    lanes = block_lanes(itemsize)
    return min(weight_shape[0] // groups, weight_shape[1]) >= lanes


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    window: Window,
    groups: int,
    residual: np.ndarray | None,
    relu: bool,
    y: np.ndarray,
    prologue: Prologue = PLAIN,
    moments: bool = False,
    ceiling: float = math.inf,
) -> Sums | None:
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it; its moments, if wanted.

    prologue: of a channels-last ``x``. moments: of a channels-last y of one group.
    """
    threads = None if moments else get_num_threads()
    portions = forward_portions(x.shape, weight.shape, y.shape[2:], window, groups, x.itemsize, threads)
    sums = None
    if moments:
        sums = pieces_of(y.shape, y.itemsize, portions.place.images, portions.place.rows).moments(x.dtype)
    panels = packed(weight, lambda: _panels(weight, portions))
    memory, strides = flat(y)
    added = None if residual is None else as_flat(in_order_of(residual, y))
    _correlate(x, prologue, portions, panels, bias, added, limits_of(relu, ceiling), memory, 0, y.shape, strides, sums)
    return sums


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    normed: Prologue | None = None,
    residual: np.ndarray | None = None,
    need_dx: bool = True,
) -> tuple[np.ndarray, np.ndarray | None, Sums | None]:
    """(dweight, dx, sums of dx); dx None unless needed, see ``backward_data`` and ``backward_weight``."""
    dx, sums = None, None
    dweight = backward_weight(dy, x, weight, window, groups, prologue, normed or PLAIN)
    if need_dx:
        dx, sums = backward_data(dy, x, weight, window, groups, prologue, residual, normed)
    return dweight, dx, sums


def backward_data(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    residual: np.ndarray | None = None,
    normed: Prologue | None = None,
) -> tuple[np.ndarray, Sums | None]:
    """dx like ``x``, ``residual`` added, and sums of it.

    prologue: of a channels-last ``dy``. normed: the prologue by which x became the convolution's input; then sums of
    dx for it are made where that costs no pass of its own, else None.
    """
    planes = backward_planes(1, dy.shape[2:], x.shape[2:], window)
    if planes.sparse:
        dx = np.zeros_like(x) if residual is None else residual.copy(order="K")
        residual = None if residual is None else dx
    else:
        dx = empty_like(x)
    summed = normed is not None and groups == 1 and len(planes.phases) == 1 and not planes.sparse
    sums, (memory, strides) = None, flat(dx)
    added = None if residual is None else as_flat(in_order_of(residual, dx))
    apart = strides[0], strides[1], window.stride[0] * strides[2], window.stride[1] * strides[3]
    for part in backward_portions(dy.shape, x.shape, weight.shape, window, groups, x.itemsize, summed):
        portions = part.portions
        if summed:
            assert normed is not None
            sums = normed.sums_through(pieces_of(dx.shape, dx.itemsize, portions.place.images, portions.place.rows), x)
        first = part.first_row * strides[2] + part.first_column * strides[3]
        shape = x.shape[0], x.shape[1], part.height, part.width
        panels = _panels(weight, portions)
        _correlate(dy, prologue, portions, panels, None, added, limits_of(False), memory, first, shape, apart, sums)
    return dx, sums


def backward_weight(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    groups: int,
    prologue: Prologue = PLAIN,
    normed: Prologue = PLAIN,
) -> np.ndarray:
    """dweight (C_out, C_in / groups, kh, kw). What is summed together follows from the shape alone.

    prologue: of a channels-last ``dy``, normed: of a channels-last ``x``.
    """
    portions = weight_portions(dy.shape, x.shape[2:], weight.shape, window, groups, x.itemsize)
    panels = empty((portions.panels,), x.dtype)
    launch(
        correlate_weights_blocks,
        *with_places(x),
        normed.affine,
        normed.operands()[1],
        normed.operands()[-1],
        *with_places(dy),
        *prologue.operands()[:-1],
        *portions.place,
        groups,
        portions.runs_at_once,
        portions.deep,
        portions.at_once,
        panels,
        scratch((max_threads(), portions.workspace), x.dtype),
        work=portions.work,
    )
    dweight, lanes = empty(weight.shape, x.dtype), block_lanes(x.itemsize)
    spare = np.empty((max_threads(), 2 * lanes * lanes), x.dtype)
    channels_out, channels, height, width = weight.shape
    share = portions.splits, height * width, groups, channels_out // groups, channels
    launch(add_panels, panels, *share, as_flat(dweight), spare, work=panels.size)
    return dweight


def _correlate(
    x: np.ndarray,
    prologue: Prologue,
    portions: Portions,
    panels: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    limits: tuple[float, float],
    out: np.ndarray,
    first: int,
    out_shape: tuple[int, ...],
    out_strides: tuple[int, ...],
    sums: Sums | None,
) -> None:
    """Launch ``correlate_blocks``; out: flat."""
    launch(
        correlate_blocks,
        *with_places(x),
        *prologue.operands(),
        *portions.place,
        portions.taps_at_once,
        panels,
        portions.at_once,
        None if bias is None else as_flat(dense_c(bias)),
        residual,
        limits,
        out,
        first,
        out_shape,
        out_strides,
        portions.layout.groups,
        *(NOTHING if sums is None else sums.operands()),
        scratch((max_threads(), portions.workspace), x.dtype),
        work=portions.work,
    )


def _panels(weight: np.ndarray, portions: Portions) -> np.ndarray:
    """A C-contiguous ``weight`` as ``kernels.conv_panels`` lays it out, its taps in the layout only."""
    weight = weight if weight.flags.writeable else weight.copy()  # a kernel of its own would be compiled for read-only
    panels, lanes = empty((portions.panels,), weight.dtype), block_lanes(weight.itemsize)
    spare = np.empty((max_threads(), lanes * lanes), weight.dtype)
    launch(pack_panels, weight.reshape(-1), *portions.layout, panels, spare, work=panels.size)
    return panels
