"""Convolution by ``kernels.conv_winograd``; arguments as in ``conv_blocks``, outputs channels-last.

A NaN in a pixel reaches the outputs whose windows hold it and no others, for what reaches the others of its tile has no
term of it; so does an infinity, as a NaN it may be. In the gradient to the weights both reach all taps of a channel.
"""

import math

import numpy as np

from fastbn._memory import empty, scratch
from fastbn._threads import get_num_threads, launch, max_threads
from fastbn._views import as_flat, dense_c, empty_like, in_order_of, is_channels_last, with_places
from fastbn.functional import conv_blocks
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import NOTHING, Sums, limits_of, pieces_of
from fastbn.functional.packed_weights import packed
from fastbn.functional.weight_panels import STREAMED_DWEIGHT, passes_caches, places_of, writeable
from fastbn.functional.winograd_portions import Portions, portions, weight_portions
from fastbn.kernels.conv_panels import block_elements, squares
from fastbn.kernels.conv_winograd import correlate_winograd
from fastbn.kernels.conv_winograd_weights import correlate_weights_apart, correlate_weights_together
from fastbn.kernels.winograd_panels import BLOCKS, TAPS, gather_panels, transform_panels


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
    """Write a channels-last ``y``; its moments, if wanted."""
    channels_out, channels = weight.shape[:2]
    threads = None if moments else get_num_threads()
    share = portions(y.shape, channels, (-window.padding[0], -window.padding[1]), x.itemsize, threads)
    sums = None
    if moments:
        sums = pieces_of(y.shape, y.itemsize, share.place.images, share.place.rows).moments(x.dtype)
    layout = (0, channels * TAPS, TAPS), np.arange(TAPS), channels_out, channels
    panels = packed(weight, lambda: _panels(weight, *layout, share.panels), "winograd")
    _correlate(x, prologue, share, panels, bias, residual, limits_of(relu, ceiling), y, sums)
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
    """(dweight, dx, sums of dx); dx None unless needed."""
    dx, sums = None, None
    dweight = backward_weight(dy, x, weight, window, prologue, normed or PLAIN)
    if need_dx and is_channels_last(x):
        dx, sums = backward_data(dy, x, weight, window, prologue, residual, normed)
    elif need_dx:
        dx, sums = conv_blocks.backward_data(dy, x, weight, window, groups, prologue, residual, normed)
    return dweight, dx, sums


def backward_data(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    prologue: Prologue = PLAIN,
    residual: np.ndarray | None = None,
    normed: Prologue | None = None,
) -> tuple[np.ndarray, Sums | None]:
    """(dx, sums of dx) for a channels-last ``x``: dy convolved with the weights, which are turned by half a turn."""
    channels_out, channels = weight.shape[:2]
    share = portions(x.shape, channels_out, (window.padding[0] - 2, window.padding[1] - 2), x.itemsize)
    dx, sums = empty_like(x), None
    if normed is not None:
        sums = normed.sums_through(pieces_of(dx.shape, dx.itemsize, share.place.images, share.place.rows), x)
    turned = np.arange(TAPS)[::-1].copy()
    panels = _panels(weight, (0, TAPS, channels * TAPS), turned, channels, channels_out, share.panels)
    _correlate(dy, prologue, share, panels, None, residual, limits_of(False), dx, sums)
    return dx, sums


def backward_weight(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    window: Window,
    prologue: Prologue = PLAIN,
    normed: Prologue = PLAIN,
) -> np.ndarray:
    """dweight (C_out, C_in, 3, 3). What is summed together follows from the shape alone."""
    channels_out, channels = weight.shape[:2]
    share = weight_portions(dy.shape, channels, (-window.padding[0], -window.padding[1]), x.itemsize)
    apart = share.splits > 1
    runs = max_threads() if apart else share.runs_at_once
    panels = empty((share.panels,), x.dtype)
    launch(
        correlate_weights_apart if apart else correlate_weights_together,
        *with_places(x),
        normed.affine,
        normed.operands()[1],
        normed.operands()[-1],
        *with_places(dy),
        *prologue.operands()[:-1],
        *share.place,
        share.runs_at_once,
        share.most,
        empty((runs * share.values,), x.dtype),
        empty((runs * share.gradients + share.spare,), x.dtype),
        panels,
        scratch((max_threads(), share.workspace), x.dtype),
        work=share.work,
    )
    dweight = empty(weight.shape, x.dtype, lasting=True)
    target = as_flat(dweight), passes_caches(dweight, channels * TAPS, STREAMED_DWEIGHT), _workspace(x.dtype)
    launch(gather_panels, panels, share.splits, channels_out, channels, *target, work=panels.size)
    return dweight


def _correlate(
    x: np.ndarray,
    prologue: Prologue,
    share: Portions,
    panels: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    limits: tuple[float, float],
    out: np.ndarray,
    sums: Sums | None,
) -> None:
    """Launch ``correlate_winograd``."""
    launch(
        correlate_winograd,
        *with_places(x),
        *prologue.operands(),
        *share.place,
        panels,
        share.at_once,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, out)),
        limits,
        as_flat(out),
        out.shape,
        *(NOTHING if sums is None else sums.operands()),
        scratch((max_threads(), share.workspace), x.dtype),
        work=share.work,
    )


def _panels(
    weight: np.ndarray, strides: tuple[int, int, int], order: np.ndarray, outputs: int, channels: int, size: int
) -> np.ndarray:
    """A C-contiguous ``weight``, transformed: ``size`` elements, see ``transform_panels``."""
    panels = empty((size,), weight.dtype)
    places = places_of(order, TAPS, 1, weight.itemsize)
    share = strides, places, outputs, channels, panels, _workspace(weight.dtype)
    launch(transform_panels, as_flat(writeable(weight)), *share, work=size)
    return panels


def _workspace(dtype: np.dtype) -> np.ndarray:
    """What a thread needs for the blocks of a panel."""
    return scratch((max_threads(), BLOCKS * block_elements(dtype.itemsize) + squares(dtype.itemsize)), dtype)
