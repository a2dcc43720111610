"""One pass over many arrays, whatever their number and sizes: their objects as integers, and their elements in tasks.

An array is given by its object's address, which is what CPython's ``id`` returns; behind the head of every object,
NumPy's C interface has the pointer to the data. So a list of arrays costs Python no more than their ``id``s.
pieces (P, 3), int64: the array, its first element and the one after the last. tasks (Q + 1), int64: where each task's
pieces begin; a task has about ``BLOCK`` elements and depends on the sizes alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from fastbn.kernels._jit import inlined

BLOCK = 16384  # elements
HEAD = object.__basicsize__  # bytes


@intrinsic
def _data_of(typingctx, like, address):
    """The pointer to the data, of ``like``'s dtype, of the array object at ``address``."""
    pointer = types.CPointer(like.dtype)

    def codegen(context, builder, signature, arguments):
        target = context.get_value_type(pointer)
        field = builder.add(arguments[1], ir.Constant(arguments[1].type, HEAD))
        return builder.load(builder.inttoptr(field, target.as_pointer()))

    return pointer(like, types.int64), codegen


@inlined
def tensor_at(like, address, stop):
    """The first ``stop`` elements of a C-contiguous array object of the dtype of ``like``."""
    return carray(_data_of(like, address), stop)


@lru_cache(maxsize=64)
def cut(sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """pieces and tasks of arrays of these sizes, and the elements of all."""
    pieces: list[tuple[int, int, int]] = []
    tasks, full = [0], 0
    for tensor, size in enumerate(sizes):
        for first in range(0, size, BLOCK):
            pieces.append((tensor, first, min(size, first + BLOCK)))
            full += min(size, first + BLOCK) - first
            if full >= BLOCK:
                tasks.append(len(pieces))
                full = 0
    if full:
        tasks.append(len(pieces))
    return np.array(pieces, np.int64).reshape(-1, 3), np.array(tasks, np.int64), sum(sizes)


def addresses(columns: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """objects (columns, arrays), int64; the caller keeps the arrays alive."""
    count = sum(map(len, columns))
    return np.fromiter(map(id, chain.from_iterable(columns)), np.int64, count).reshape(len(columns), -1)
