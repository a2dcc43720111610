"""Convolution of single pixels, 1x1, of channels-last arrays; arguments as in ``conv_blocks``.

Both gradients come from one pass over x and dy. With a stride, the pixels that it visits are copied first.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import (
    as_flat,
    channels_last,
    channels_second,
    dense_c,
    empty_like,
    in_order_of,
    is_channels_last,
)
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import TASKS, blocks_of
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import Sums, limits_of, relu_operand
from fastbn.functional.packed_weights import packed
from fastbn.functional.weight_panels import packed_matrix, panels_size, passes_caches, unpacked
from fastbn.kernels import conv_panels
from fastbn.kernels._simd_point import SLIM_ROWS
from fastbn.kernels.conv_point import correlate_points
from fastbn.kernels.conv_point_backward import gradients_points

POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))
RUN = 1 << 19  # bytes, about, of what a run reads and writes: it stays in the second cache
PIXELS = 8 * SLIM_ROWS  # of a run at most: its part of a panel stays in the first cache
FEWEST = 4 * SLIM_ROWS  # pixels
STREAMED = 1 << 22  # bytes of an output from which on the next to read it is faster if it was streamed


def suits(x: np.ndarray, weight_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether channels fill blocks, and pixels several tiles."""
    channels_out, channels, *_ = weight_shape
    step_h, step_w = window.stride
    return (
        window._replace(stride=POINT.stride) == POINT
        and groups == 1
        and min(channels_out, channels) >= conv_panels.block_lanes(x.itemsize)
        and is_channels_last(x)
        and len(x) * -(-x.shape[2] // step_h) * -(-x.shape[3] // step_w) >= FEWEST
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
    at_once, wide = _forward_share(pixels, channels, outputs, x.itemsize)
    sums = None
    if moments:
        sums = _sums(pixels, at_once, outputs, x.itemsize).about_shifts(x.dtype)
    _, x_ceiling, affine, _, floor = prologue.operands()
    launch(
        correlate_points,
        as_flat(x),
        x_ceiling,
        affine,
        floor,
        pixels,
        channels,
        at_once,
        wide,
        packed(weight, lambda: packed_matrix(weight, outputs, channels, (channels, 1))),
        outputs,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, y)),
        limits_of(relu, ceiling),
        as_flat(y),
        streams(y),
        None if sums is None else sums.shifts,
        None if sums is None else sums.partials,
        _workspace(at_once, blocks_of(channels, x.itemsize), x.dtype),
        work=pixels * weight.size // 16,
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
    """(dweight, dx, sums of dx for ``normed`` unless there is a stride); dx None unless needed."""
    if window != POINT:
        dweight, part, _ = backward(dy, _visited(x, window), weight, POINT, groups, prologue, normed, None, need_dx)
        return dweight, None if part is None else _spread(part, x, window, residual), None
    sums = None
    if need_dx and normed is not None:
        share = _backward_share(x.size // x.shape[1], x.shape[1], len(weight), x.itemsize)
        sums = normed.sums_through(_sums(x.size // x.shape[1], share.at_once, x.shape[1], x.itemsize), x)
    dx = empty_like(x) if need_dx else None
    return _gradients(dy, x, weight, prologue, normed or PLAIN, residual, dx, sums, None), dx, sums


def backward_with_sums(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    prologue: Prologue,
    normed: Prologue,
    residual: np.ndarray | None,
    need_dx: bool,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(dweight, dx, the sums of each channel of dy behind its prologue, float64)."""
    dx = empty_like(x) if need_dx else None
    share = _backward_share(x.size // x.shape[1], x.shape[1], len(weight), x.itemsize)
    dy_sums = _sums(x.size // x.shape[1], share.at_once, dy.shape[1], x.itemsize).partials[0]
    dweight = _gradients(dy, x, weight, prologue, normed, residual, dx, None, dy_sums)
    return dweight, dx, dy_sums.sum(axis=0)[: dy.shape[1]]


def _visited(x: np.ndarray, window: Window) -> np.ndarray:
    """The pixels of ``x`` that are convolved: a copy, unless they are all."""
    if window == POINT:
        return x
    pixels = channels_last(x)[:, :: window.stride[0], :: window.stride[1]]
    visited = empty(pixels.shape, x.dtype)
    visited[:] = pixels
    return channels_second(visited)


def _spread(part: np.ndarray, x: np.ndarray, window: Window, residual: np.ndarray | None) -> np.ndarray:
    """``part`` where ``x`` was visited, 0 elsewhere; ``residual`` added."""
    dx = empty_like(x)
    visited = dx[:, :, :: window.stride[0], :: window.stride[1]]
    if residual is None:
        dx[:] = 0
        visited[:] = part
    else:
        dx[:] = residual
        visited += part
    return dx


def _gradients(
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
    share = _backward_share(pixels, channels, outputs, x.itemsize)
    runs = -(-pixels // share.at_once)
    products = empty((-(-runs // share.runs_at_once), panels_size(outputs, channels, x.itemsize)), x.dtype)
    depth, dy_depth = blocks_of(share.wide, x.itemsize), blocks_of(outputs, x.itemsize)
    dy_filled = runs * share.at_once * dy_depth * conv_panels.block_lanes(x.itemsize) if share.wide < channels else 0
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
        *share,
        empty((dy_filled,), x.dtype),
        None if dx is None else packed_matrix(weight, channels, outputs, (1, channels)),
        None if residual is None or dx is None else as_flat(in_order_of(residual, dx)),
        None if dx is None else as_flat(dx),
        dx is not None and streams(dx),
        None if sums is None else as_flat(x),
        None if sums is None else relu_operand(sums.relu, sums.ceiling),
        None if sums is None else sums.partials,
        dy_sums,
        products,
        _workspace(share.at_once, depth + (0 if dy_filled else dy_depth), x.dtype),
        work=pixels * weight.size // 8,
    )
    return unpacked(products, len(products), weight.shape, 1, 1)


@lru_cache(maxsize=256)
def _forward_share(pixels: int, channels: int, outputs: int, itemsize: int) -> tuple[int, int]:
    """Pixels and outputs of a task: what moves the least, panels for each run and x for each part of the outputs."""
    panels = -(-outputs // conv_panels.panel_columns(itemsize))

    def share(parts: int) -> tuple[int, int]:
        wide = -(-panels // parts) * conv_panels.panel_columns(itemsize)
        runs = max(-(-TASKS // parts), -(-pixels // _most(channels + wide, itemsize)))
        return _tiles(-(-pixels // runs)), wide

    def moved(parts: int) -> int:
        return -(-pixels // share(parts)[0]) * channels * outputs + parts * pixels * channels

    return share(min(range(1, min(panels, TASKS) + 1), key=moved))


class Share(NamedTuple):
    """Pixels of a run of the backward pass, runs of a split, and channels of a task."""

    at_once: int
    runs_at_once: int
    wide: int


@lru_cache(maxsize=256)
def _backward_share(pixels: int, channels: int, outputs: int, itemsize: int) -> Share:
    """Splits whose gradients of the weights, summed apart, are no more to read and write than x and dy are."""
    columns = conv_panels.panel_columns(itemsize)
    panels = -(-channels // columns)
    splits = max(1, min(TASKS, pixels * (channels + outputs) // (2 * channels * outputs)))
    wide = min(channels, -(-panels // min(panels, TASKS // splits)) * columns)
    pixels_of_split = -(-pixels // splits)
    runs_at_once = -(-pixels_of_split // _most(wide + outputs, itemsize))
    return Share(_tiles(-(-pixels_of_split // runs_at_once)), runs_at_once, wide)


def _most(width: int, itemsize: int) -> int:
    """Pixels of a run at most, of which ``width`` channels are read and written."""
    return _tiles(min(PIXELS, RUN // (width * itemsize)) - SLIM_ROWS + 1)


def _tiles(pixels: int) -> int:
    """So many pixels, to whole tiles."""
    return max(1, -(-pixels // SLIM_ROWS)) * SLIM_ROWS


def _sums(pixels: int, at_once: int, channels: int, itemsize: int) -> Sums:
    """Room for the sums of (pixels, channels), ``at_once`` pixels a piece."""
    counts = np.minimum(at_once, pixels - np.arange(0, pixels, at_once)).astype(np.float64)
    return Sums(np.empty((2, counts.size, blocks_of(channels, itemsize) * conv_panels.block_lanes(itemsize))), counts)


def streams(out: np.ndarray) -> bool:
    """Whether ``out`` is written past the caches."""
    return passes_caches(out, out.shape[1], STREAMED)


def _workspace(at_once: int, depth: int, dtype: np.dtype) -> np.ndarray:
    """Room for a tile and ``depth`` blocks, for each thread."""
    tile, lanes = conv_panels.tile_elements(dtype.itemsize), conv_panels.block_lanes(dtype.itemsize)
    return empty((max_threads(), tile + at_once * depth * lanes), dtype)
