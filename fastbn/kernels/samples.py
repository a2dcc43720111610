"""Samples of a data set, gathered for a batch."""

from numba import int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import load_part, prefetch, store_part

SAMPLES = 8  # of a task


@body
def _gather_task(task, x, size, index, out):
    lanes, zero = lanes_of(x), splat(x, 0.0)
    last = min(index.size, (task + 1) * SAMPLES)
    for sample in range(task * SAMPLES, last):
        source, target = index[sample] * size, sample * size
        following = index[min(sample + 1, last - 1)] * size
        for i in range(0, size, lanes):
            prefetch(x, following + i)
            count = min(lanes, size - i)
            store_part(out, target + i, load_part(x, source + i, count, zero), count)


@driver
def gather_samples(x, size, index, out, parallel):
    """out[i] = x[index[i]], ``size`` elements each, from flat arrays.

    Returns the first place in ``index`` of what x does not have, then nothing is written, or -1.
    """
    samples = x.size // size
    for place in range(index.size):
        if not 0 <= index[place] < samples:
            return place
    tasks = -(-index.size // SAMPLES)
    if parallel:
        for task in prange(tasks):
            _gather_task(int64(task), x, size, index, out)
    else:
        for task in range(tasks):
            _gather_task(task, x, size, index, out)
    return -1
