"""Convolution of single pixels, 1x1, of channels-last arrays; arguments as in ``conv_blocks``.

Both gradients come from one pass over x and dy. With a stride, the pixels that it visits are copied first.
"""

import math

import numpy as np

from fastbn._memory import empty, empty_on_lines, scratch
from fastbn._threads import launch, max_threads
from fastbn._views import (
    as_flat,
    channels_second,
    dense_c,
    empty_like,
    in_order_of,
)
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point_portions import (
    BackwardPortions,
    ForwardPortions,
    backward_portions,
    forward_portions,
)
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import Sums, limits_of, relu_operand
from fastbn.functional.packed_weights import packed
from fastbn.functional.weight_panels import STREAMED_DWEIGHT, packed_matrix, passes_caches, unpacked, writeable
from fastbn.kernels._simd_point import SLIM_ROWS
from fastbn.kernels.conv_panels import block_lanes, squares
from fastbn.kernels.conv_point import correlate_points
from fastbn.kernels.conv_point_backward import gradients_points
from fastbn.kernels.conv_point_weights import add_rows, panel_elements, split_weights, turn_matrix
from fastbn.kernels.conv_strided import spread_pixels, visit_pixels

POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))
FEWEST = 4 * SLIM_ROWS  # pixels
STREAMED = 1 << 20  # bytes of an output from which on the next to read it is faster if it was streamed
STREAMED_DX = 1 << 24  # likewise of dx, which is read at once
UNLIMITED = limits_of(relu=False)


def suits(y_shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window, groups: int, itemsize: int) -> bool:
    """Whether channels of a channels-last x fill blocks, and the pixels that are visited several tiles."""
    return (
        window._replace(stride=POINT.stride) == POINT
        and groups == 1
        and min(weight_shape[:2]) >= block_lanes(itemsize)
        and y_shape[0] * y_shape[2] * y_shape[3] >= FEWEST
    )


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
    """Write ``y``, the convolution of ``x``; its moments, if wanted."""
    outputs, channels = weight.shape[:2]
    x = _visited(x, window)
    pixels = x.size // channels
    portions = forward_portions(pixels, channels, outputs, x.itemsize)
    sums = portions.pieces.moments(x.dtype) if moments else None
    _correlate(
        portions,
        (pixels, channels, outputs),
        x,
        _panels(weight, portions.matrix),
        y,
        streams(y),
        prologue,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, y)),
        limits_of(relu, ceiling),
        sums,
    )
    return sums


def product(left: np.ndarray, right: np.ndarray, strides: tuple[int, int], out: np.ndarray) -> None:
    """out (rows, columns) = left (rows, depth) right, by the matrix unit.

    right: C-contiguous; strides: from column to column and row to row of it, of which one is 1.
    """
    rows, columns = out.shape
    depth = left.shape[1]
    portions = forward_portions(rows, depth, columns, out.itemsize)
    panels = _split(right, columns, depth, strides)
    _correlate(portions, (rows, depth, columns), left, panels, out, passes_caches(out, columns, STREAMED))


def _correlate(
    portions: ForwardPortions,
    sizes: tuple[int, int, int],
    x: np.ndarray,
    panels: np.ndarray,
    y: np.ndarray,
    streaming: bool,
    prologue: Prologue = PLAIN,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    limits: tuple[float, float] = UNLIMITED,
    sums: Sums | None = None,
) -> None:
    """Write ``y``: (pixels, channels) times (channels, outputs), ``sizes``; bias and residual flat."""
    pixels, channels, outputs = sizes
    _, ceiling, affine, _, floor = prologue.operands()
    launch(
        correlate_points,
        as_flat(x),
        ceiling,
        affine,
        floor,
        pixels,
        channels,
        portions.at_once,
        portions.wide,
        panels,
        outputs,
        bias,
        residual,
        limits,
        as_flat(y),
        streaming,
        None if sums is None else sums.shifts,
        None if sums is None else sums.partials,
        portions.matrix,
        portions.deep,
        scratch(portions.workspace, x.dtype),
        work=pixels * channels * outputs // 16,
    )


def turned(matrix: np.ndarray) -> np.ndarray:
    """A C-contiguous ``matrix`` with its axes swapped."""
    rows, columns = matrix.shape
    out = empty_on_lines((columns, rows), matrix.dtype)
    spare = scratch((max_threads(), squares(matrix.itemsize)), matrix.dtype)
    launch(turn_matrix, as_flat(matrix), rows, columns, as_flat(out), spare, work=out.size)
    return out


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
    """(dweight, dx, sums of dx for ``normed`` unless there is a stride); dx None unless needed."""
    if window != POINT:
        dweight, part, _ = backward(dy, _visited(x, window), weight, POINT, groups, prologue, normed, None, need_dx)
        return dweight, None if part is None else _spread(part, x, window, residual), None
    portions = _portions_of(x, weight)
    sums = normed.sums_through(portions.pieces, x) if need_dx and normed is not None else None
    dx = empty_like(x) if need_dx else None
    return _gradients(portions, dy, x, weight, prologue, normed or PLAIN, residual, dx, sums, None), dx, sums


def backward_with_sums(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    prologue: Prologue,
    normed: Prologue,
    residual: np.ndarray | None,
    need_dx: bool,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(dweight, dx, the sums of dy behind its prologue: a piece of the pixels a row, float64, C to whole vectors)."""
    dx = empty_like(x) if need_dx else None
    portions = _portions_of(x, weight)
    dy_sums = np.empty(portions.dy_sums)
    dweight = _gradients(portions, dy, x, weight, prologue, normed, residual, dx, None, dy_sums)
    return dweight, dx, dy_sums


def _panels(weight: np.ndarray, matrix: bool | None) -> np.ndarray:
    """Those of the forward pass."""
    outputs, channels = weight.shape[:2]
    ready = _split if matrix else packed_matrix
    return packed(weight, lambda: ready(weight, outputs, channels, (channels, 1)), "split" if matrix else "plain")


def _backward_panels(weight: np.ndarray, matrix: bool | None) -> np.ndarray:
    """Those of the gradient to x."""
    outputs, channels = weight.shape[:2]
    ready = _split if matrix else packed_matrix
    return ready(weight, channels, outputs, (1, channels))


def _split(weight: np.ndarray, outputs: int, channels: int, strides: tuple[int, int]) -> np.ndarray:
    """``packed_matrix`` for the matrix unit."""
    parts = empty_on_lines((panel_elements(outputs, channels),), weight.dtype)
    spare = scratch((max_threads(), squares(weight.itemsize)), weight.dtype)
    launch(split_weights, as_flat(writeable(weight)), strides, outputs, channels, parts, spare, work=parts.size)
    return parts


def _visited(x: np.ndarray, window: Window) -> np.ndarray:
    """The pixels of ``x`` that are convolved: a copy, unless they are all."""
    if window == POINT:
        return x
    images, channels, height, width = x.shape
    step_h, step_w = window.stride
    visited = empty((images, -(-height // step_h), -(-width // step_w), channels), x.dtype)
    launch(visit_pixels, _by_pixel(x), step_h, step_w, visited, work=visited.size)
    return channels_second(visited)


def _spread(part: np.ndarray, x: np.ndarray, window: Window, residual: np.ndarray | None) -> np.ndarray:
    """``part`` where ``x`` was visited, 0 elsewhere; ``residual`` added."""
    dx = empty_like(x)
    added = None if residual is None else _by_pixel(in_order_of(residual, dx))
    launch(spread_pixels, _by_pixel(part), *window.stride, added, _by_pixel(dx), work=dx.size)
    return dx


def _by_pixel(array: np.ndarray) -> np.ndarray:
    """A channels-last array as (N, H, W, C)."""
    images, channels, height, width = array.shape
    return as_flat(array).reshape(images, height, width, channels)


def _gradients(
    portions: BackwardPortions,
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    prologue: Prologue,
    normed: Prologue,
    residual: np.ndarray | None,
    dx: np.ndarray | None,
    sums: Sums | None,
    dy_sums: np.ndarray | None,
) -> np.ndarray:
    """dweight; dx and the sums are written unless None."""
    outputs, channels = weight.shape[:2]
    pixels = x.size // channels
    products = empty_on_lines(portions.products, x.dtype)
    _, ceiling, affine, _, floor = normed.operands()
    launch(
        gradients_points,
        as_flat(x),
        ceiling,
        affine,
        floor,
        as_flat(dy),
        *prologue.operands(),
        pixels,
        channels,
        outputs,
        *portions.share,
        empty_on_lines((portions.dy_filled,), x.dtype),
        None if dx is None else _backward_panels(weight, portions.matrix),
        None if residual is None or dx is None else as_flat(in_order_of(residual, dx)),
        None if dx is None else as_flat(dx),
        dx is not None and passes_caches(dx, channels, STREAMED_DX),
        None if sums is None else as_flat(x),
        None if sums is None else relu_operand(sums.relu, sums.ceiling),
        None if sums is None else sums.partials,
        dy_sums,
        products,
        portions.matrix,
        portions.turns,
        scratch(portions.workspace, x.dtype),
        work=pixels * weight.size // 8,
    )
    if not portions.turns:
        return unpacked(products, len(products), weight.shape, 1, 1)
    dweight = empty(weight.shape, x.dtype, lasting=True)
    streaming = passes_caches(dweight, channels, STREAMED_DWEIGHT)
    launch(add_rows, products, outputs, channels, as_flat(dweight), streaming, work=products.size)
    return dweight


def _portions_of(x: np.ndarray, weight: np.ndarray) -> BackwardPortions:
    outputs, channels = weight.shape[:2]
    return backward_portions(x.size // channels, channels, outputs, x.itemsize)


def streams(out: np.ndarray) -> bool:
    """Whether ``out`` is written past the caches."""
    return passes_caches(out, out.shape[1], STREAMED)
