"""Sums over every channel of (N, C, S) arrays, in float64, and the chunks that channels are read in.

n_block, s_block: images and positions of a chunk; chunks are n-major.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import load, load_first

CHUNK = 8192  # elements of one channel in one chunk


def chunk_grid(n: int, s: int) -> tuple[int, int]:
    """Images and positions in one chunk of an (N, C, S) array."""
    return max(1, min(n, CHUNK // max(s, 1))), max(1, min(s, CHUNK))


def chunk_count(n: int, s: int) -> int:
    """Chunks of a channel in ``chunk_grid``."""
    images, positions = chunk_grid(n, s)
    return -(-n // images) * -(-s // positions)


@inlined
def chunks_of(x, n_block, s_block):
    """Chunks of a channel."""
    return -(-x.shape[0] // n_block) * -(-x.shape[2] // s_block)


@inlined
def chunk_bounds(chunk, x, n_block, s_block):
    """First and last image, first and last position."""
    i, j = divmod(chunk, -(-x.shape[2] // s_block))
    n_last, s_last = min(x.shape[0], (i + 1) * n_block), min(x.shape[2], (j + 1) * s_block)
    return i * n_block, n_last, j * s_block, s_last


@body
def _sums_task(task, x, n_block, s_block, sums):
    chunk, c = divmod(task, x.shape[1])
    n_first, n_last, s_first, s_last = chunk_bounds(chunk, x, n_block, s_block)
    lanes = lanes_of(x)
    whole = (s_last - s_first) // lanes * lanes
    zero = splat(x, 0.0)
    wide = widen(zero)
    for n in range(n_first, n_last):
        row = (n * x.shape[1] + c) * x.shape[2]
        for i in range(row + s_first, row + s_first + whole, lanes):
            wide = wide + widen(load(x, i))
        if s_first + whole < s_last:
            wide = wide + widen(load_first(x, row + s_first + whole, s_last - s_first - whole, zero))
    sums[chunk, c] = total(wide)


@driver
def sums_ncs(x, n_block, s_block, sums, parallel):
    """sums (chunks, C): each chunk's sum."""
    tasks = sums.size
    if parallel:
        for task in prange(tasks):
            _sums_task(int64(task), x, n_block, s_block, sums)
    else:
        for task in range(tasks):
            _sums_task(task, x, n_block, s_block, sums)
