"""Convolution of single pixels, 1x1 with stride 1, of channels-last arrays; arguments as in ``conv_blocks``.

Both gradients come from one pass over x and dy.
"""

from functools import lru_cache

import numpy as np

from fastbn._memory import empty
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, dense_c, empty_like, in_order_of, is_channels_last
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_portions import TASKS, blocks_of
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.norm_sums import Sums, relu_operand
from fastbn.functional.packed_weights import packed
from fastbn.kernels import conv_panels
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels._simd_point import SLIM_ROWS
from fastbn.kernels.conv_point import correlate_points
from fastbn.kernels.conv_point_backward import gradients_points

POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))
RUN = 1 << 19  # bytes, about, of what a run reads and writes: it stays in the second cache
PIXELS = 8 * SLIM_ROWS  # of a run at most: its part of a panel stays in the first cache
FEWEST = 4 * SLIM_ROWS  # pixels
LINE = 64  # bytes of a line of the cache
STREAMED = 1 << 22  # bytes of an output from which on the next to read it is faster if it was streamed
WEIGHTS = 1 << 20  # bytes at most: every task sums their gradient apart


def suits(x: np.ndarray, weight_shape: tuple[int, ...], window: Window, groups: int) -> bool:
    """Whether channels fill blocks, pixels make several tasks, and weights are small enough for each of them."""
    channels_out, channels, *_ = weight_shape
    lanes = conv_panels.block_lanes(x.itemsize)
    return (
        window == POINT
        and groups == 1
        and min(channels_out, channels) >= lanes
        and channels_out * channels * x.itemsize <= WEIGHTS
        and is_channels_last(x)
        and x.size // channels >= FEWEST
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
) -> Sums | None:
    """Write ``y``, the convolution of ``x``; its moments, if wanted."""
    outputs, channels = weight.shape[:2]
    pixels = x.size // channels
    at_once = _share(pixels, (channels + outputs) * x.itemsize)
    sums = None
    if moments:
        sums = _sums(pixels, at_once, outputs, x.itemsize).about_shifts(x.dtype)
    _, ceiling, affine, _, floor = prologue.operands()
    launch(
        correlate_points,
        as_flat(x),
        ceiling,
        affine,
        floor,
        pixels,
        channels,
        at_once,
        packed(weight, lambda: packed_panels(weight, outputs, channels, (channels, 1))),
        outputs,
        None if bias is None else as_flat(dense_c(bias)),
        None if residual is None else as_flat(in_order_of(residual, y)),
        0.0 if relu else -np.inf,
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
    """(dweight, dx, sums of dx for ``normed``); dx None unless needed."""
    sums = None
    if need_dx and normed is not None:
        sums = normed.sums_through(_sums(x.size // x.shape[1], _run(weight.shape, x), x.shape[1], x.itemsize), x)
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
    dy_sums = _sums(x.size // x.shape[1], _run(weight.shape, x), dy.shape[1], x.itemsize).partials[0]
    dweight = _gradients(dy, x, weight, prologue, normed, residual, dx, None, dy_sums)
    return dweight, dx, dy_sums.sum(axis=0)[: dy.shape[1]]


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
    pixels, at_once = x.size // channels, _run(weight.shape, x)
    runs = -(-pixels // at_once)
    runs_at_once = -(-runs // TASKS)
    products = empty((-(-runs // runs_at_once), panels_size(outputs, channels, x.itemsize)), x.dtype)
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
        at_once,
        runs_at_once,
        None if dx is None else packed_panels(weight, channels, outputs, (1, channels)),
        None if residual is None or dx is None else as_flat(in_order_of(residual, dx)),
        None if dx is None else as_flat(dx),
        dx is not None and streams(dx),
        None if sums is None else as_flat(x),
        None if sums is None else relu_operand(sums.relu, sums.ceiling),
        None if sums is None else sums.partials,
        dy_sums,
        products,
        _workspace(at_once, blocks_of(channels, x.itemsize) + blocks_of(outputs, x.itemsize), x.dtype),
        work=pixels * weight.size // 8,
    )
    return gathered(products, weight.shape, x.dtype)


def gathered(products: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Weights of ``shape``, (outputs, ...), that are the sum of ``products`` (splits, panels)."""
    dweight = empty(shape, dtype)
    spare = np.empty((max_threads(), 2 * conv_panels.block_lanes(dtype.itemsize) ** 2), dtype)
    share = len(products), 1, 1, shape[0], dweight[0].size
    launch(conv_panels.add_panels, as_flat(products), *share, as_flat(dweight), spare, work=products.size)
    return dweight


def _run(weight_shape: tuple[int, ...], x: np.ndarray) -> int:
    """Pixels of a run of the backward pass."""
    outputs, channels, *_ = weight_shape
    return _share(x.size // channels, (channels + outputs) * x.itemsize)


@lru_cache(maxsize=256)
def _share(pixels: int, pixel: int) -> int:
    """Pixels of a run, of ``pixel`` bytes each, in whole tiles; from the shape alone."""
    wanted = min(PIXELS, RUN // pixel, -(-pixels // TASKS))
    return max(1, wanted // SLIM_ROWS) * SLIM_ROWS


def _sums(pixels: int, at_once: int, channels: int, itemsize: int) -> Sums:
    """Room for the sums of (pixels, channels), ``at_once`` pixels a piece."""
    counts = np.minimum(at_once, pixels - np.arange(0, pixels, at_once)).astype(np.float64)
    return Sums(np.empty((2, counts.size, blocks_of(channels, itemsize) * conv_panels.block_lanes(itemsize))), counts)


def streams(out: np.ndarray) -> bool:
    """Whether ``out`` is large, and made of whole lines of the cache: those need not be read to be written."""
    lanes, place = VECTOR_BYTES // out.itemsize, out.__array_interface__["data"][0]
    return VECTOR_BYTES == LINE and out.nbytes >= STREAMED and out.shape[1] % lanes == 0 and place % LINE == 0


def panels_size(outputs: int, channels: int, itemsize: int) -> int:
    """Elements of the panels of so many outputs and channels."""
    columns = conv_panels.panel_columns(itemsize)
    return -(-outputs // columns) * columns * blocks_of(channels, itemsize) * conv_panels.block_lanes(itemsize)


def packed_panels(weight: np.ndarray, outputs: int, channels: int, strides: tuple[int, int]) -> np.ndarray:
    """A C-contiguous ``weight``, ``strides`` from output to output and channel to channel, as panels."""
    weight = weight if weight.flags.writeable else weight.copy()  # a kernel of its own would be compiled for read-only
    panels = empty((panels_size(outputs, channels, weight.itemsize),), weight.dtype)
    spare = np.empty((max_threads(), conv_panels.block_lanes(weight.itemsize) ** 2), weight.dtype)
    share = (0, *strides), np.zeros(1, np.int64), 1, 1, outputs, channels
    launch(conv_panels.pack_panels, as_flat(weight), *share, panels, spare, work=panels.size)
    return panels


def _workspace(at_once: int, depth: int, dtype: np.dtype) -> np.ndarray:
    """Room for a panel and ``depth`` blocks, for each thread."""
    columns, lanes = conv_panels.panel_columns(dtype.itemsize), conv_panels.block_lanes(dtype.itemsize)
    return empty((max_threads(), at_once * (columns + depth * lanes)), dtype)
