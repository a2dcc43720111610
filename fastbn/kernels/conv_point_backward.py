"""Both gradients of a convolution of single pixels in one pass; see ``kernels.conv_point``.

A task goes through a share of the pixels run by run. A run of dy, through its prologue, is in cache for both products:
with the weights for dx, and with the run of x for its part of the weights' gradient. Where weights are large and pixels
few, tasks share out the channels of x as well, and all runs of dy go through the prologue before. The matrix unit has
``conv_point_parts``.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import OUTER_ROWS, TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_point import SLIM_OUTER_ROWS, add_point_products, add_slim_products
from fastbn.kernels._vector import lanes_of, splat, widen
from fastbn.kernels._vector_memory import load, set_to
from fastbn.kernels.conv_point import multiply_pixels, next_run, pace_of
from fastbn.kernels.conv_point_parts import BLOCK, multiply_runs
from fastbn.kernels.pixels import fill_pixels


@body
def add_products(blocks, channels, dy_blocks, outputs, block, pixels, sums, filled, ahead, beside, place, due):
    """sums, laid out as panels of ``filled`` channels each, += sum over pixels of blocks * dy_blocks.

    ahead, beside, place, due: as ``multiply_pixels`` has them.
    """
    lanes = lanes_of(blocks)
    breadth = TILE_VECTORS * lanes
    pace = pace_of(due, -(-outputs // breadth) * -(-channels // min(OUTER_ROWS, lanes)) * pixels, lanes)
    for o in range(0, outputs, breadth):
        slim = outputs - o <= lanes
        height = min(SLIM_OUTER_ROWS if slim else OUTER_ROWS, lanes)
        dy_start = o // lanes * block
        for c in range(0, channels, height):
            start, at = c // lanes * block + c % lanes, (o // breadth * filled + c) * breadth
            if slim:
                add_slim_products(
                    blocks, start, dy_blocks, dy_start, block, pixels, sums, at, ahead, beside, place, pace
                )
            else:
                add_point_products(
                    blocks, start, dy_blocks, dy_start, block, pixels, sums, at, ahead, beside, place, pace
                )
            place += pixels * pace


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


@inlined
def _clear(sums, channels, outputs, filled, lanes):
    """The first channels of each panel."""
    breadth = TILE_VECTORS * lanes
    for start in range(0, -(-outputs // breadth) * filled * breadth, filled * breadth):
        sums[start : start + -(-channels // lanes) * lanes * breadth] = 0


@body
def _add_run(
    stage, first, count, following, soon, run, x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes,
    floor, channels, outputs, at_once, channel, used, wide, dy_filled, panels, residual, dx, streaming, source,
    source_relu, partials, dy_sums, total, filled, work,
):  # fmt: skip
    """A run of ``gradients_points``, by vectors."""
    lanes = lanes_of(x)
    block, room = at_once * lanes, TILE_ROWS * TILE_VECTORS * lanes
    tile, blocks, dy_blocks = work[:room], work[room:], work[room + -(-wide // lanes) * block :]
    if wide < channels:
        dy_blocks = dy_filled[run * -(-outputs // lanes) * block :]
    if stage == 0 or wide == channels:
        fill_pixels(
            dy, partner, relu, affine, slopes, floor, first, count, outputs, int64(0), outputs, dy_blocks, block
        )
        if dy_sums is not None:
            _set_sums(dy_blocks, block, count, outputs, dy_sums[run])
    if stage == 0:
        return
    fill_pixels(x, None, x_ceiling, x_affine, None, x_floor, first, count, channels, channel, used, blocks, block)
    add_products(
        blocks, used, dy_blocks, outputs, block, count, total, filled, dy, partner, following * outputs, soon * outputs
    )
    if dx is not None:
        multiply_pixels(
            dy_blocks, block, count, outputs, panels, channels, channel, channel + used, None, residual, None, dx,
            first, streaming, None, source, source_relu, x_affine, partials, run, tile, x, following * channels,
            soon * channels,
        )  # fmt: skip


@body
def _gradients_task(
    task, stage, x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes, floor, pixels, channels, outputs,
    at_once, runs_at_once, gathered, wide, dy_filled, panels, residual, dx, streaming, source, source_relu, partials,
    dy_sums, sums, matrix, turns, work,
):  # fmt: skip
    """A task of ``gradients_points``; at stage 0, a run of dy that comes before."""
    lanes = lanes_of(x)
    filled = -(-channels // lanes) * lanes
    part, split = divmod(task, sums.shape[0])
    channel = part * wide
    used = min(wide, channels - channel)
    total = sums[split, channel * TILE_VECTORS * lanes :]
    first_run, last_run = split * runs_at_once, min(-(-pixels // at_once), (split + 1) * runs_at_once)
    if stage == 0:
        first_run, last_run = task, task + 1
    elif matrix is None:
        _clear(total, used, outputs, filled, lanes)
    if matrix is None:
        for run in range(first_run, last_run):
            first = run * at_once
            count = min(at_once, pixels - first)
            following, soon = next_run(first, count, pixels)
            if wide < channels:
                soon = 0
            _add_run(
                stage, first, count, following, soon, run, x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine,
                slopes, floor, channels, outputs, at_once, channel, used, wide, dy_filled, panels, residual, dx,
                streaming, source, source_relu, partials, dy_sums, total, filled, work,
            )  # fmt: skip
    else:
        first, last = first_run * at_once, min(pixels, last_run * at_once)
        if turns is not None:
            filled = -(-outputs // lanes) * lanes
            total = sums[split, channel * filled :]
        if dy_sums is not None and channel == 0:
            dy_sums[first_run:last_run] = 0.0
        strips = at_once // BLOCK
        if dx is None:
            strips, gathered = strips * gathered, 1
        multiply_runs(
            first, last - first, strips, gathered, at_once, dy, partner, relu, affine, slopes, floor, outputs, panels,
            channels, channel, channel + used, None, residual, None, dx, streaming, None, source, source_relu, x_affine,
            partials, x, x_ceiling, x_affine, x_floor, channels, channel, used, turns, total, filled, dy_sums, work,
        )  # fmt: skip


@driver
def gradients_points(
    x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes, floor, pixels, channels, outputs, at_once,
    runs_at_once, gathered, wide, dy_filled, panels, residual, dx, streaming, source, source_relu, partials, dy_sums,
    sums, matrix, turns, workspace, parallel,
):  # fmt: skip
    """sums (splits, panels) = x^T dy of a split's pixels; dx (pixels, channels) = dy * panels + residual, unless None.

    All flat; x_ceiling, x_affine, x_floor: the prologue of x, and partner, relu, affine, slopes, floor that of dy. A
    split has ``runs_at_once`` runs of ``at_once`` pixels, in whole tiles, of which the matrix unit sums over as many at
    a time as are ``gathered``. A task has a split and ``wide`` channels of x, all or whole panels of them. dy_filled:
    room for the blocks of all runs of dy, if they are not all.
    streaming: dx lies on whole vectors and is written past the caches. source, partials: x again, and sums of dx for
    its batch norm with the ReLU ``source_relu``, a run a piece; or None. dy_sums (runs, outputs to a whole vector),
    float64: those of dy behind its prologue, or None.
    matrix: see ``correlate_points``; no run of dy comes before, then. turns: True if sums are laid out the other way
    round, panels of x's channels with a row for each of dy's, as ``conv_point_weights.add_rows`` takes them; else None.
    workspace: (threads, a tile and the blocks of a task's run of x and dy, or what ``workspace_elements`` says).
    """
    operands = (x, x_ceiling, x_affine, x_floor, dy, partner, relu, affine, slopes, floor, pixels, channels, outputs)
    share = (at_once, runs_at_once, gathered, wide, dy_filled, panels, residual, dx, streaming)
    sides = (source, source_relu, partials, dy_sums, sums, matrix, turns)
    for stage in range(1 if wide == channels or matrix is not None else 0, 2):
        tasks = sums.shape[0] * -(-channels // wide) if stage else -(-pixels // at_once)
        if parallel:
            for task in prange(tasks):
                _gradients_task(int64(task), stage, *operands, *share, *sides, workspace[get_thread_id()])
        else:
            for task in range(tasks):
                _gradients_task(task, stage, *operands, *share, *sides, workspace[0])
