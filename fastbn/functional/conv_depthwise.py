"""Convolution by ``kernels.conv_depthwise``: one channel a group; arguments as in ``conv_blocks``."""

import numpy as np

from fastbn._checks import FLOAT64
from fastbn._memory import SMALLEST, empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, empty_like, in_order_of, with_places
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import blocks_of
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.conv_rows import backward_rows, forward_rows, portions, splits_of
from fastbn.functional.norm_sums import Sums, relu_operand, sums_for
from fastbn.kernels._simd_depthwise import PIXELS
from fastbn.kernels.conv_depthwise import correlate_depthwise
from fastbn.kernels.conv_depthwise_backward import gradients_depthwise
from fastbn.kernels.conv_panels import block_lanes


def suits(weight_shape: tuple[int, ...], groups: int, itemsize: int) -> bool:
    """Whether every channel is a group, and they fill a vector."""
    return weight_shape[:2] == (groups, 1) and groups >= block_lanes(itemsize)


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
) -> Sums | None:
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it; its moments, if wanted."""
    lanes = block_lanes(x.itemsize)
    places = forward_rows(window, y.shape[2:], lanes)
    kept = len(places.offsets) * places.starts_w.size * places.columns * lanes
    rows, group = portions(len(x), y.shape[2], blocks_of(groups, x.itemsize), kept * x.itemsize)
    sums = None
    if moments:
        sums = sums_for(y.shape, y.itemsize, 1, rows).about_shifts(x.dtype)
    _, ceiling, affine, _, floor = prologue.operands()
    launch(
        correlate_depthwise,
        *with_places(x),
        affine,
        ceiling,
        floor,
        places.starts_w,
        *window.stride,
        window.padding[0],
        places.window,
        places.columns,
        places.offsets,
        _weights(weight, slice(None)),
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, y)),
        0.0 if relu else -np.inf,
        *with_places(y),
        rows,
        places.at_once,
        group * lanes,
        None if sums is None else sums.shifts,
        None if sums is None else sums.partials,
        _workspace((y.shape[3] + 2 * PIXELS) * lanes + group * kept, x.dtype),
        work=y.size,
    )
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
    """(dweight, dx, sums of dx). dx is None unless needed, and sums are None unless x is ``normed``.

    dweight is summed in float64 over runs of the image. What a run is follows from the shape alone.
    """
    lanes, depth = block_lanes(x.itemsize), blocks_of(groups, x.itemsize)
    steps = -(-x.shape[2] // window.stride[0])
    places = backward_rows(window, x.shape[2:], lanes)
    (kept_rows, taps), line = places.offsets.shape, -(-x.shape[3] // window.stride[1]) + PIXELS
    kept = (
        kept_rows * places.columns + taps + places.at_once * window.stride[0] * min(window.stride[1], x.shape[3]) * line
    )
    splits = splits_of(len(x), x.shape[2] * x.shape[3])
    rows, group = portions(splits, steps, depth, kept * lanes * x.itemsize)
    blocks = -(-steps // rows)
    runs_at_once = -(-len(x) // splits) if blocks == 1 else 1
    partials = empty((-(-len(x) * blocks // runs_at_once), taps, depth * lanes), FLOAT64)
    dx, sums = empty_like(x), None
    if normed is not None:
        sums = sums_for(x.shape, x.itemsize, 1, rows * window.stride[0])
    _, ceiling, affine, _, floor = (normed or PLAIN).operands()
    launch(
        gradients_depthwise,
        *with_places(dy),
        *prologue.operands()[:-1],
        *with_places(x),
        affine,
        None if normed is None else relu_operand(normed.relu, normed.ceiling),
        ceiling,
        floor,
        *window.stride,
        places.top,
        places.lead,
        places.window,
        places.columns,
        places.offsets,
        places.phases,
        _weights(weight, places.taps),
        None if residual is None else as_flat(in_order_of(residual, dx)),
        as_flat(dx),
        rows,
        places.at_once,
        group * lanes,
        runs_at_once,
        None if sums is None else sums.partials,
        partials,
        _workspace((2 * line + group * kept) * lanes, x.dtype),
        work=x.size,
    )
    dweight = np.zeros((groups, weight[0].size), x.dtype)
    dweight[:, places.taps] = partials.sum(axis=0)[:, :groups].T
    return dweight.reshape(weight.shape), dx if need_dx else None, sums


def _weights(weight: np.ndarray, taps: slice | np.ndarray) -> np.ndarray:
    """(taps, C to a whole vector) of a C-contiguous ``weight``."""
    channels, lanes = len(weight), block_lanes(weight.itemsize)
    chosen = weight.reshape(channels, -1)[:, taps].T
    weights = np.zeros((len(chosen), -(-channels // lanes) * lanes), weight.dtype)
    weights[:, :channels] = chosen
    return weights


def _workspace(elements: int, dtype: np.dtype) -> np.ndarray:
    """(threads, elements or more), on a multiple of 64 bytes: vectors across two cache lines take twice the time."""
    return empty((max_threads(), max(elements, SMALLEST // dtype.itemsize)), dtype)
