"""The roofs: the fastest copy of an array, by streaming stores or by ordinary ones, and the most multiply-adds.

``python -m bench.roof`` prints them, and how fast two arrays can be read when nothing is written: a core that only
waits for what it asked for may be slower than one that writes in between. Then, in turns, a channels-last backward pass
of batch norm beside loops that move the same bytes and compute nothing: two arrays read, and read again for a third.
"""

import time
from statistics import median

import numpy as np
from numba import int64, prange

from fastbn._memory import empty, empty_on_lines
from fastbn._threads import launch
from fastbn.functional import batch_norm_backward, batch_norm_forward
from fastbn.kernels._jit import body, driver
from fastbn.kernels._matrix_unit import BLOCK as UNIT
from fastbn.kernels._matrix_unit import (
    DEPTH,
    SPLIT,
    STAGES,
    add_stage,
    clear_tiles,
    close_unit,
    matrix_unit,
    open_unit,
    store_tiles,
)
from fastbn.kernels._simd import TILE_ROWS
from fastbn.kernels._simd_blocks import block_tile
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import fence, load, prefetch_far, store, stream
from fastbn.kernels.conv_panels import block_lanes, panel_columns, squares
from fastbn.kernels.conv_point_weights import split_weights

BLOCK = 1 << 16  # elements of a task
AHEAD = 1 << 11  # elements, at which memory is asked: copies 5 to 10 % faster than without


@body
def _copy_block(task, x, out, streaming):
    lanes = lanes_of(x)
    for i in range(task * BLOCK, min(x.size, (task + 1) * BLOCK) - lanes + 1, lanes):
        if streaming:
            prefetch_far(x, i + AHEAD)
            stream(out, i, load(x, i))
        else:
            store(out, i, load(x, i))
    if streaming:
        fence()


@driver
def copy(x, out, streaming, parallel):
    """out = x, for flat arrays of whole vectors that lie on multiples of 64 bytes."""
    tasks = -(-x.size // BLOCK)
    if parallel:
        for task in prange(tasks):
            _copy_block(int64(task), x, out, streaming)
    else:
        for task in range(tasks):
            _copy_block(task, x, out, streaming)


def copy_to(x: np.ndarray, out: np.ndarray, streaming: bool) -> None:
    """Copy the whole vectors of a C-contiguous array."""
    whole = x.size // 64 * 64
    launch(copy, x.reshape(-1)[:whole], out.reshape(-1)[:whole], streaming, work=x.size)


@body
def _read_block(task, x, y, totals):
    lanes = lanes_of(x)
    total = splat(x, 0.0)
    for i in range(task * BLOCK, min(x.size, (task + 1) * BLOCK) - lanes + 1, lanes):
        prefetch_far(x, i + AHEAD)
        prefetch_far(y, i + AHEAD)
        total = total + load(x, i) + load(y, i)
    store(totals, task * lanes, total)


@driver
def read(x, y, totals, parallel):
    """totals (tasks, lanes): sums of both arrays."""
    tasks = -(-x.size // BLOCK)
    if parallel:
        for task in prange(tasks):
            _read_block(int64(task), x, y, totals)
    else:
        for task in range(tasks):
            _read_block(task, x, y, totals)


@body
def _add_block(task, x, y, out):
    lanes = lanes_of(x)
    for i in range(task * BLOCK, min(x.size, (task + 1) * BLOCK) - lanes + 1, lanes):
        prefetch_far(x, i + AHEAD)
        prefetch_far(y, i + AHEAD)
        stream(out, i, load(x, i) + load(y, i))
    fence()


@driver
def add(x, y, out, parallel):
    """out = x + y, streamed, for arrays as of ``copy``."""
    tasks = -(-x.size // BLOCK)
    if parallel:
        for task in prange(tasks):
            _add_block(int64(task), x, y, out)
    else:
        for task in range(tasks):
            _add_block(task, x, y, out)


@body
def _multiply_task(task, a, b, offsets, repeats, tiles):
    for _ in range(repeats):
        block_tile(a, 0, 0, b, 0, offsets, 1, tiles[task], 0, 0, None, None, 0, 0)


@driver
def multiply(a, b, offsets, repeats, tiles, parallel):
    """Register tiles of operands that stay in the first cache: ``repeats`` in each task."""
    if parallel:
        for task in prange(tiles.shape[0]):
            _multiply_task(int64(task), a, b, offsets, repeats, tiles)
    else:
        for task in range(tiles.shape[0]):
            _multiply_task(task, a, b, offsets, repeats, tiles)


def peak() -> float:
    """Float32 multiply-adds a second, times two, of all threads: the fastest of some runs."""
    lanes, columns, repeats, tasks, taps = block_lanes(4), panel_columns(4), 500, 64, 8
    a, b = np.ones(TILE_ROWS * lanes * 2, np.float32), np.ones(taps * lanes * columns, np.float32)
    tiles, offsets = np.empty((tasks, TILE_ROWS * columns), np.float32), np.zeros(taps, np.int64)
    best = 0.0
    for _ in range(12):
        begun = time.perf_counter()
        launch(multiply, a, b, offsets, repeats, tiles, work=1 << 30)
        done = 2 * tasks * repeats * taps * lanes * TILE_ROWS * columns
        best = max(best, done / (time.perf_counter() - begun))
    return best


@body
def _multiply_parts_task(task, tiles, repeats, products):
    open_unit()
    clear_tiles()
    for _ in range(repeats):
        for stage in range(STAGES):
            add_stage(stage, tiles, int64(0), SPLIT, tiles, int64(2 * SPLIT), SPLIT)
    store_tiles(int64(0), products, task * UNIT * UNIT)
    close_unit()


@driver
def multiply_parts(tiles, repeats, tasks, products, parallel):
    """Products of the matrix unit, of float32 in parts that stay in the first cache."""
    if parallel:
        for task in prange(tasks):
            _multiply_parts_task(int64(task), tiles, repeats, products)
    else:
        for task in range(tasks):
            _multiply_parts_task(task, tiles, repeats, products)


def matrix_peak() -> float:
    """As ``peak``, by the matrix unit, which takes six products of bfloat16 for one; 0 where there is none."""
    if not matrix_unit():
        return 0.0
    repeats, tasks = 2000, 64
    draw = np.random.default_rng(0).standard_normal(2 * UNIT * DEPTH, np.float32)
    tiles, products = empty_on_lines((4 * SPLIT,), draw.dtype), np.empty(tasks * UNIT * UNIT, np.float32)
    spare = np.empty((1, squares(4)), np.float32)
    launch(split_weights, draw, (1, 2 * UNIT), 2 * UNIT, DEPTH, tiles, spare, work=0)
    best = 0.0
    for _ in range(12):
        begun = time.perf_counter()
        launch(multiply_parts, tiles, repeats, tasks, products, work=1 << 30)
        best = max(best, 2 * tasks * repeats * UNIT * UNIT * DEPTH / (time.perf_counter() - begun))
    return best


def reading(size: int = 1 << 27) -> float:
    """Bytes a second of the best of some passes that read two arrays of ``size`` bytes."""
    x, y = np.ones(size // 4, np.float32), np.ones(size // 4, np.float32)
    totals = np.empty((-(-x.size // BLOCK), block_lanes(4)), np.float32)
    best = 0.0
    for _ in range(12):
        begun = time.perf_counter()
        launch(read, x, y, totals, work=x.size)
        best = max(best, 2 * size / (time.perf_counter() - begun))
    return best


def bandwidth(size: int = 1 << 26) -> float:
    """Bytes a second, read and written, of the best copy of ``size`` bytes."""
    x, out = np.ones(size // 4, np.float32), empty((size // 4,), np.dtype(np.float32))
    best = 0.0
    for streaming in (False, True):
        for _ in range(6):
            begun = time.perf_counter()
            copy_to(x, out, streaming)
            best = max(best, 2 * size / (time.perf_counter() - begun))
    return best


def backward_passes() -> tuple[float, float]:
    """Bytes a second of loops that move what a channels-last backward pass must, and of that pass; medians, in turns.

    Of 5 times the input, 32 x 64 x 112 x 112.
    """
    x, dy, dx = (empty((32, 112, 112, 64), np.dtype(np.float32)) for _ in range(3))
    x[...], dy[...] = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 64), np.float32)
    x[0] += 1
    flat = [array.reshape(-1) for array in (x, dy, dx)]
    totals = np.empty((-(-x.size // BLOCK), block_lanes(4)), np.float32)
    images = [array.transpose(0, 3, 1, 2) for array in (x, dy, dx)]
    saved = batch_norm_forward(images[0])[1]

    def move() -> None:
        launch(read, *flat[:2], totals, work=x.size)
        launch(add, *flat, work=x.size)

    def backward() -> None:
        batch_norm_backward(images[1], saved, out=images[2])

    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(8):
        for call, spent in zip((move, backward), seconds, strict=True):
            call()
            for _ in range(4):
                begun = time.perf_counter()
                call()
                spent.append(time.perf_counter() - begun)
    moved, passed = (5 * x.nbytes / median(spent) for spent in seconds)
    return moved, passed


def main() -> None:
    print(f"copy of 128 MB   {bandwidth(1 << 27) / 1e9:6.1f} GB/s")
    print(f"read 2 x 128 MB  {reading() / 1e9:6.1f} GB/s")
    print(f"multiply-adds    {peak() / 1e9:6.1f} GFLOP/s")
    if matrix_unit():
        print(f"by matrix unit   {matrix_peak() / 1e9:6.1f} GFLOP/s of float32, of six products each")
    moved, passed = (bytes_a_second / 1e9 for bytes_a_second in backward_passes())
    print(f"backward's bytes {moved:6.1f} GB/s, its pass {passed:.1f}: {passed / moved:.2f}")


if __name__ == "__main__":
    main()
