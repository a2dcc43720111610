"""The roof: the fastest copy of an array to another, by streaming stores or by ordinary ones."""

import numpy as np
from numba import int64, prange

from fastbn._threads import launch
from fastbn.kernels._jit import body, driver
from fastbn.kernels._vector import fence, lanes_of, load, store, stream

BLOCK = 1 << 14  # elements of a task


@body
def _copy_block(task, x, out, streaming):
    lanes = lanes_of(x)
    for i in range(task * BLOCK, min(x.size, (task + 1) * BLOCK) - lanes + 1, lanes):
        if streaming:
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
