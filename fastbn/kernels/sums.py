"""Sums over every channel of (N, C, S) arrays, in float64, and the chunks that channels are read in."""

from numba import int64, prange

from fastbn.kernels._jit import driver, sum_body

CHUNK = 8192  # elements of one channel in one chunk


def chunk_grid(n: int, s: int) -> tuple[int, int]:
    """Images and positions in one chunk of an (N, C, S) array."""
    return max(1, min(n, CHUNK // max(s, 1))), max(1, min(s, CHUNK))


def chunk_count(n: int, s: int) -> int:
    """Chunks of a channel in ``chunk_grid``."""
    images, positions = chunk_grid(n, s)
    return -(-n // images) * -(-s // positions)


@sum_body
def _sums_task(task, x, grid, sums):
    chunk, c = divmod(task, x.shape[1])
    i, j = divmod(chunk, -(-x.shape[2] // grid[1]))
    total = 0.0
    for n in range(i * grid[0], min(x.shape[0], (i + 1) * grid[0])):
        for s in range(j * grid[1], min(x.shape[2], (j + 1) * grid[1])):
            total += x[n, c, s]
    sums[chunk, c] = total


@driver
def sums_ncs(x, grid, sums, parallel):
    """sums (chunks, C): each chunk's sum; chunks are n-major."""
    tasks = sums.size
    if parallel:
        for task in prange(tasks):
            _sums_task(int64(task), x, grid, sums)
    else:
        for task in range(tasks):
            _sums_task(task, x, grid, sums)
