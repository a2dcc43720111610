"""Weights of convolutions of single pixels as the matrix unit takes them, and their gradients as it leaves them."""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._matrix_unit import BLOCK, DEPTH, SIDE, SPLIT, TILE, store_parts
from fastbn.kernels._vector import splat
from fastbn.kernels._vector_memory import fence, load, load_first, prefetch_to_write, store_part, stream
from fastbn.kernels.conv_panels import turn

AHEAD = 2  # tiles, from the one that is written to the one that is asked for: fresh memory takes longer than the split
SHARES = 2  # tasks that share the tiles of DEPTH channels: few steps are even loads, then


def panel_elements(outputs: int, channels: int) -> int:
    """Of the tiles of ``split_weights``."""
    return -(-outputs // BLOCK) * 2 * -(-channels // DEPTH) * SPLIT


@body
def _split_rows(weights, start, step, outputs, channels, split, target):
    """A tile of weights whose outputs lie side by side."""
    zero = splat(weights, 0.0)
    for row in range(SIDE):
        at, behind = start + row * step, start + (row + SIDE) * step
        first = load_first(weights, at, outputs if row < channels else 0, zero)
        second = load_first(weights, behind, outputs if row + SIDE < channels else 0, zero)
        store_parts(first, second, split, target + row * SIDE)


@body
def _split_columns(weights, start, step, outputs, channels, split, target, spare):
    """A tile of weights whose channels lie side by side."""
    turn(weights, start, step, outputs, channels, spare, int64(0))
    turn(weights, start + SIDE, step, outputs, channels - SIDE, spare, int64(TILE))
    for i in range(0, TILE, SIDE):
        store_parts(load(spare, i), load(spare, TILE + i), split, target + i)


@body
def _split_tile(half, step, ahead, weights, strides, outputs, channels, split, spare):
    """That of SIDE outputs and DEPTH channels; one is asked for meanwhile, ``ahead`` of it."""
    steps = -(-channels // DEPTH)
    first, c, target = half * SIDE, step * DEPTH, (half * steps + step) * SPLIT
    start, count = first * strides[0] + c * strides[1], max(0, min(SIDE, outputs - first))
    for i in range(target + ahead, target + ahead + SPLIT, SIDE):
        prefetch_to_write(split, i)
    if strides[0] == 1:
        _split_rows(weights, start, strides[1], count, channels - c, split, target)
    else:
        _split_columns(weights, start, strides[0], count, channels - c, split, target, spare)


@body
def _split_task(task, weights, strides, outputs, channels, split, spare):
    """The tiles of SIDE outputs; or, where outputs lie side by side, one of the SHARES of those of DEPTH channels."""
    halves, steps = 2 * -(-outputs // BLOCK), -(-channels // DEPTH)
    if strides[0] == 1:
        step, share = divmod(task, SHARES)
        for half in range(share * halves // SHARES, (share + 1) * halves // SHARES):
            _split_tile(half, step, AHEAD * steps * SPLIT, weights, strides, outputs, channels, split, spare)
    else:
        for step in range(steps):
            _split_tile(task, step, AHEAD * SPLIT, weights, strides, outputs, channels, split, spare)


@driver
def split_weights(weights, strides, outputs, channels, split, workspace, parallel):
    """split = the tiles, (SIDE outputs, DEPTH channels), of whole panels of BLOCK outputs; 0 past the last ones.

    weights: flat; strides: from output to output and channel to channel, of which one is 1.
    workspace: (threads, ``conv_panels.squares``).
    """
    tasks = SHARES * -(-channels // DEPTH) if strides[0] == 1 else 2 * -(-outputs // BLOCK)
    if parallel:
        for task in prange(tasks):
            _split_task(int64(task), weights, strides, outputs, channels, split, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _split_task(task, weights, strides, outputs, channels, split, workspace[0])


@body
def _turn_columns(first, matrix, rows, columns, turned, spare):
    """SIDE columns from ``first`` on."""
    for row in range(0, rows, SIDE):
        turn(matrix, row * columns + first, columns, rows - row, columns - first, spare, int64(0))
        for i in range(min(SIDE, columns - first)):
            store_part(turned, (first + i) * rows + row, load(spare, i * SIDE), min(SIDE, rows - row))


@driver
def turn_matrix(matrix, rows, columns, turned, workspace, parallel):
    """turned (columns, rows) = matrix (rows, columns), flat; workspace: (threads, ``conv_panels.squares``)."""
    blocks = -(-columns // SIDE)
    if parallel:
        for block in prange(blocks):
            _turn_columns(int64(block) * SIDE, matrix, rows, columns, turned, workspace[get_thread_id()])
    else:
        for block in range(blocks):
            _turn_columns(block * SIDE, matrix, rows, columns, turned, workspace[0])


@body
def _add_rows(first, sums, outputs, channels, weight, streaming):
    """SIDE rows from ``first`` on."""
    zero, filled = splat(sums, 0.0), -(-outputs // SIDE) * SIDE
    for row in range(first, min(outputs, first + SIDE)):
        for c in range(0, channels, SIDE):
            at = (c // BLOCK * filled + row) * BLOCK + c % BLOCK
            total = zero
            for split in range(sums.shape[0]):
                total = total + load(sums, split * sums.shape[1] + at)
            if streaming:
                stream(weight, row * channels + c, total)
            else:
                store_part(weight, row * channels + c, total, min(SIDE, channels - c))
    if streaming:
        fence()


@driver
def add_rows(sums, outputs, channels, weight, streaming, parallel):
    """weight (outputs, channels) = the sum of panels (splits, panels of BLOCK channels with a row for each output).

    streaming: rows of weight are whole vectors on whole lines, and are written past the caches.
    """
    blocks = -(-outputs // SIDE)
    if parallel:
        for block in prange(blocks):
            _add_rows(int64(block) * SIDE, sums, outputs, channels, weight, streaming)
    else:
        for block in range(blocks):
            _add_rows(block * SIDE, sums, outputs, channels, weight, streaming)
