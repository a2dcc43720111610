"""Both gradients of a convolution of single pixels in one pass; see ``kernels.conv_point``.

A task goes through a share of the pixels run by run. A run of dy, through its prologue, is in cache for both products:
with the weights for dx, and with the run of x for its part of the weights' gradient.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import OUTER_ROWS, TILE_VECTORS, add_block_products
from fastbn.kernels._simd_point import SLIM_OUTER_ROWS, add_slim_products
from fastbn.kernels._vector import lanes_of, load, set_to, splat, widen
from fastbn.kernels.conv_point import fill_pixels, multiply_pixels


@body
def add_products(blocks, channels, dy_blocks, outputs, block, pixels, sums):
    """sums, laid out as panels, += sum over pixels of blocks * dy_blocks."""
    lanes = lanes_of(blocks)
    breadth = TILE_VECTORS * lanes
    filled = -(-channels // lanes) * lanes
    for o in range(0, outputs, breadth):
        slim = outputs - o <= lanes
        height = min(SLIM_OUTER_ROWS if slim else OUTER_ROWS, lanes)
        for c in range(0, channels, height):
            start, at = c // lanes * block + c % lanes, (o // breadth * filled + c) * breadth
            if slim:
                add_slim_products(blocks, start, dy_blocks, o // lanes * block, pixels, sums, at)
            else:
                add_block_products(blocks, start, dy_blocks, o // lanes * block, block, pixels, sums, at)


@inlined
def _set_sums(blocks, block, pixels, channels, sums):
    """Each channel's sum over pixels, in float64."""
    lanes = lanes_of(blocks)
    for c in range(0, channels, lanes):
        start = c // lanes * block
        twos = start + (pixels - pixels % 2) * lanes
        even = odd = widen(splat(blocks, 0.0))
        for i in range(start, twos, 2 * lanes):
            even, odd = even + widen(load(blocks, i)), odd + widen(load(blocks, i + lanes))
        for i in range(twos, start + pixels * lanes, lanes):
            even = even + widen(load(blocks, i))
        set_to(sums, c, even + odd)


@body
def _gradients_task(
    task, x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes, floor, pixels, channels, outputs,
    at_once, runs_at_once, panels, residual, dx, streaming, source, source_relu, partials, dy_sums, sums, work,
):  # fmt: skip
    lanes = lanes_of(x)
    block = at_once * lanes
    room = at_once * TILE_VECTORS * lanes
    panel, work = work[:room], work[room:]
    depth = -(-channels // lanes)
    blocks, dy_blocks = work[: depth * block], work[depth * block :]
    total = sums[task]
    total[:] = 0
    for run in range(task * runs_at_once, min(-(-pixels // at_once), (task + 1) * runs_at_once)):
        first = run * at_once
        count = min(at_once, pixels - first)
        fill_pixels(dy, partner, relu, affine, slopes, floor, first, count, outputs, dy_blocks, block)
        fill_pixels(x, None, x_ceiling, x_affine, None, x_floor, first, count, channels, blocks, block)
        if dy_sums is not None:
            _set_sums(dy_blocks, block, count, outputs, dy_sums[run])
        add_products(blocks, channels, dy_blocks, outputs, block, count, total)
        if dx is not None:
            multiply_pixels(
                dy_blocks, block, count, outputs, panels, channels, None, residual, -np.inf, dx, first, streaming,
                None, source, source_relu, x_affine, partials, run, panel,
            )  # fmt: skip


@driver
def gradients_points(
    x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes, floor, pixels, channels, outputs, at_once,
    runs_at_once, panels, residual, dx, streaming, source, source_relu, partials, dy_sums, sums, workspace, parallel,
):  # fmt: skip
    """sums (tasks, panels) = x^T dy of each task's pixels; dx (pixels, channels) = dy * panels + residual, unless None.

    All flat; x_ceiling, x_affine, x_floor: the prologue of x, and partner, relu, affine, slopes, floor that of dy. A
    task has ``runs_at_once`` runs of ``at_once`` pixels. streaming: dx lies on whole vectors and is written past the
    caches. source, partials: x again, and sums of dx for its batch norm with the ReLU ``source_relu``, a run a piece;
    or None. dy_sums (runs, outputs to a whole vector), float64: those of dy behind its prologue, or None.
    at_once: whole tiles. workspace: (threads, a panel of ``at_once`` pixels and the blocks of a run of x and dy).
    """
    tasks = sums.shape[0]
    operands = (x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes, floor, pixels, channels, outputs)
    share = (at_once, runs_at_once, panels, residual, dx, streaming, source, source_relu, partials, dy_sums, sums)
    if parallel:
        for task in prange(tasks):
            _gradients_task(int64(task), *operands, *share, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _gradients_task(task, *operands, *share, workspace[0])
