"""Convolution of single pixels, 1x1: channels-last arrays as matrices (pixels, channels).

A task copies a run of pixels, as its prologue makes them, into blocks of as many channels as a vector has lanes, pixel
by pixel: what register tiles multiply then lies at constant distances in the second cache. Prologues are those of
``conv_fill``, weights lie in panels, see ``conv_panels``.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._simd_point import ASKING, SLIM_ROWS, point_tile, slim_point_tile
from fastbn.kernels._vector import lanes_of
from fastbn.kernels._vector_memory import fence, prefetch
from fastbn.kernels.conv_point_deep import multiply_deep
from fastbn.kernels.conv_point_parts import multiply_runs
from fastbn.kernels.pixels import fill_pixels, finish_pixels


@inlined
def pace_of(due, asks, lanes):
    """Elements from one of so many requests for the next operand to the next, which together ask for ``due``."""
    return min(lanes, -(-due // max(1, asks)))


@body
def multiply_pixels(
    blocks, block, pixels, channels, panels, outputs, begin, end, bias, residual, limits, out, first, streaming, shifts,
    source, source_relu, source_affine, partials, piece, tile, ahead, place, due,
):  # fmt: skip
    """out[first + p, o] = the sum over channels c of blocks[c, p] * panels[c, o], + bias + residual, within ``limits``.

    limits: a least and a greatest number, or None.
    begin <= o < end, of ``outputs``; begin is that of a panel. The blocks have room for whole tiles of SLIM_ROWS
    pixels; tile: a register tile's memory. streaming: past the caches. shifts, partials: sums as
    ``conv_blocks.correlate_blocks`` has them, of which ``piece`` is written, or None. residual may be ``out``.
    ahead: ``due`` elements of it from ``place`` on, or about as many, come into the second cache meanwhile, unless it
    is None.
    """
    lanes = lanes_of(out)
    breadth = TILE_VECTORS * lanes
    panel_size = -(-channels // lanes) * lanes * breadth
    asks = channels // ASKING
    pace = pace_of(due, -(-pixels // TILE_ROWS) * -(-(end - begin) // breadth) * asks, lanes)
    for o in range(begin, end, breadth):
        count, start = min(breadth, end - o), o // breadth * panel_size
        slim = count <= lanes
        height, width = (SLIM_ROWS, lanes) if slim else (TILE_ROWS, breadth)
        for q in range(0, pixels, height):
            used = min(height, pixels - q)
            at = (first + q) * outputs + o
            direct = partials is None and used == height and count == width
            target, goal, step = (out, at, outputs) if direct else (tile, 0, width)
            if residual is not None or source is not None:
                for p in range(used):
                    for j in range(0, count, lanes):
                        if residual is not None:
                            prefetch(residual, at + p * outputs + j)
                        if source is not None:
                            prefetch(source, at + p * outputs + j)
            if slim:
                slim_point_tile(
                    blocks, q * lanes, block, panels, start, channels, target, goal, step, direct, bias, o, residual,
                    at, limits, streaming, ahead, place, pace,
                )  # fmt: skip
            else:
                point_tile(
                    blocks, q * lanes, block, panels, start, channels, target, goal, step, direct, bias, o, residual,
                    at, limits, streaming, ahead, place, pace,
                )  # fmt: skip
            place += asks * pace
            if not direct:
                finish_pixels(
                    tile, step, used, count, q == 0, bias, residual, limits, out, at, outputs, o, streaming, shifts,
                    source, source_relu, source_affine, partials, piece,
                )  # fmt: skip
    if streaming:
        fence()


@inlined
def next_run(first, count, pixels):
    """(first pixel, number) of the run behind this one; nothing of this one if there is none."""
    soon = min(count, pixels - first - count)
    return (first + count, soon) if soon > 0 else (first, 0)


@body
def _correlate_task(
    task, x, ceiling, affine, x_floor, pixels, channels, at_once, wide, panels, outputs, bias, residual, limits, out,
    streaming, shifts, partials, matrix, deep, work,
):  # fmt: skip
    lanes = lanes_of(x)
    part, run = divmod(task, -(-pixels // at_once))
    first, begin = run * at_once, part * wide
    end, count = min(outputs, begin + wide), min(at_once, pixels - first)
    following, soon = next_run(first, count, pixels)
    if matrix is None:
        room = TILE_ROWS * TILE_VECTORS * lanes
        tile, blocks = work[:room], work[room:]
        block = at_once * lanes
        fill_pixels(x, None, ceiling, affine, None, x_floor, first, count, channels, int64(0), channels, blocks, block)
        multiply_pixels(
            blocks, block, count, channels, panels, outputs, begin, end, bias, residual, limits, out, first, streaming,
            shifts, None, None, None, partials, run, tile, x, following * channels, soon * channels,
        )  # fmt: skip
    elif deep is not None:
        multiply_deep(
            first, count, x, ceiling, affine, x_floor, channels, deep, panels, outputs, begin, end, bias, residual,
            limits, out, streaming, shifts, partials, run, work,
        )  # fmt: skip
    else:
        multiply_runs(
            first, count, int64(1), int64(1), at_once, x, None, ceiling, affine, None, x_floor, channels, panels,
            outputs, begin, end, bias, residual, limits, out, streaming, shifts, None, None, None, partials, None, None,
            None, None, int64(0), int64(0), int64(0), None, None, int64(0), None, work,
        )  # fmt: skip


@driver
def correlate_points(
    x, ceiling, affine, x_floor, pixels, channels, at_once, wide, panels, outputs, bias, residual, limits, out,
    streaming, shifts, partials, matrix, deep, workspace, parallel,
):  # fmt: skip
    """out (pixels, outputs) = x (pixels, channels) * panels + bias + residual, within ``limits``.

    A task has a run of ``at_once`` pixels, in whole tiles, and ``wide`` outputs, in whole panels.
    All flat; ceiling, affine, x_floor: the prologue of x. streaming: out lies on whole vectors and is written past the
    caches. shifts, partials: moments, if not None, a run a piece, see ``conv_blocks.correlate_blocks``.
    matrix: None, or True for the matrix unit: panels are then those of ``split_weights``. deep: None, or so many
    channels that it sums at a time, see ``conv_point_deep``.
    workspace: (threads, a tile and the blocks of a run, or what ``workspace_elements`` says in ``conv_point_parts`` and
    ``conv_point_deep``).
    """
    tasks = -(-pixels // at_once) * -(-outputs // wide)
    image = (x, ceiling, affine, x_floor, pixels, channels, at_once, wide)
    share = (panels, outputs, bias, residual)
    target = (out, streaming, shifts, partials, matrix, deep)
    if parallel:
        for task in prange(tasks):
            _correlate_task(int64(task), *image, *share, limits, *target, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _correlate_task(task, *image, *share, limits, *target, workspace[0])
