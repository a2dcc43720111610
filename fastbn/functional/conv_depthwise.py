"""Convolution by ``kernels.conv_depthwise``: one channel a group; arguments as in ``conv_blocks``."""

import math

import numpy as np

from fastbn._checks import FLOAT64
from fastbn._memory import empty, scratch
from fastbn._tape import call
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, empty_like, in_order_of, with_places
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point import streams
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.conv_rows import backward_rows, forward_rows
from fastbn.functional.norm_sums import Sums, limits_of, pieces_of, relu_operand
from fastbn.functional.packed_weights import packed
from fastbn.kernels.conv_depthwise import correlate_depthwise
from fastbn.kernels.conv_depthwise_backward import gradients_depthwise
from fastbn.kernels.conv_panels import block_lanes
from fastbn.kernels.conv_taps import add_taps, pack_taps


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
    ceiling: float = math.inf,
) -> Sums | None:
    """Write ``y``, the convolution of a dense ``x``, as ``conv2d`` has it; its moments, if wanted."""
    target, y_shape, y_strides = with_places(y)
    places = forward_rows(y_shape, x.shape[3], window, x.itemsize, y_strides[1] == 1)
    portions, sums = places.portions, None
    if moments:
        sums = pieces_of(y_shape, y.itemsize, portions.images, portions.rows).moments(x.dtype)
    _, x_ceiling, affine, _, floor = prologue.operands()
    launch(
        correlate_depthwise,
        *with_places(x),
        affine,
        x_ceiling,
        floor,
        window.stride[0],
        *places[:6],
        packed(weight, lambda: _weights(weight, np.arange(weight[0].size)), "depthwise"),
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, y)),
        limits_of(relu, ceiling),
        target,
        y_shape,
        y_strides,
        *portions,
        streams(y),
        None if sums is None else sums.shifts,
        None if sums is None else sums.partials,
        _workspace(places.workspace, x.dtype),
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
    source, x_shape, x_strides = with_places(x)
    places = backward_rows(x_shape, dy.shape[3], window, x.itemsize, x_strides[1] == 1)
    weights = _weights(weight, places.taps)
    partials = empty((places.splits, *weights.shape), FLOAT64)
    dx, sums = empty_like(x), None
    if normed is not None:
        portions = places.portions
        pieces = pieces_of(x_shape, x.itemsize, portions.images, portions.rows * window.stride[0])
        sums = normed.sums_through(pieces, x)
    _, ceiling, affine, _, floor = (normed or PLAIN).operands()
    launch(
        gradients_depthwise,
        *with_places(dy),
        *prologue.operands()[:-1],
        source,
        x_shape,
        x_strides,
        affine,
        None if normed is None else relu_operand(normed.relu, normed.ceiling),
        ceiling,
        floor,
        window.stride[0],
        *places[:8],
        weights,
        None if residual is None else as_flat(in_order_of(residual, dx)),
        as_flat(dx),
        *places.portions,
        places.runs_at_once,
        streams(dx),
        None if sums is None else sums.partials,
        partials,
        _workspace(places.workspace, x.dtype),
        work=x.size,
    )
    dweight = np.empty((groups, weight[0].size), x.dtype)
    call(add_taps, partials, places.taps, dweight)
    return dweight.reshape(weight.shape), dx if need_dx else None, sums


def _weights(weight: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """(taps, C to a whole vector) of a C-contiguous ``weight``."""
    channels, lanes = len(weight), block_lanes(weight.itemsize)
    weights = np.empty((taps.size, -(-channels // lanes) * lanes), weight.dtype)
    call(pack_taps, as_flat(weight).reshape(channels, -1), taps, weights)
    return weights


def _workspace(elements: int, dtype: np.dtype) -> np.ndarray:
    """(threads, elements or more), on a multiple of 64 bytes: vectors across two cache lines take twice the time."""
    return scratch((max_threads(), elements), dtype)
