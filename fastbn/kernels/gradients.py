"""The size of many gradients, and their scaling; see ``kernels.tensors`` for objects, pieces and tasks."""

from numba import int64, prange

from fastbn.kernels._jit import allocating_body, driver
from fastbn.kernels._vector import lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import load_part, store_part
from fastbn.kernels.tensors import tensor_at


@allocating_body
def _square_task(task, objects, pieces, tasks, like, sums):
    zero, lanes = splat(like, 0.0), lanes_of(like)
    wide = widen(zero)
    for piece in range(tasks[task], tasks[task + 1]):
        stop = pieces[piece, 2]
        grad = tensor_at(like, objects[0, pieces[piece, 0]], stop)
        for i in range(pieces[piece, 1], stop, lanes):
            g = widen(load_part(grad, i, min(lanes, stop - i), zero))
            wide = wide + g * g
    sums[task] = total(wide)


@driver
def square_sums(objects, pieces, tasks, like, sums, parallel):
    """sums (tasks,), float64: of the squares of each task's elements. like: any array of the gradients' dtype."""
    if parallel:
        for task in prange(sums.size):
            _square_task(int64(task), objects, pieces, tasks, like, sums)
    else:
        for task in range(sums.size):
            _square_task(task, objects, pieces, tasks, like, sums)


@allocating_body
def _scale_task(task, objects, pieces, tasks, factor):
    scale, zero, lanes = splat(factor, factor[0]), splat(factor, 0.0), lanes_of(factor)
    for piece in range(tasks[task], tasks[task + 1]):
        stop = pieces[piece, 2]
        grad = tensor_at(factor, objects[0, pieces[piece, 0]], stop)
        for i in range(pieces[piece, 1], stop, lanes):
            count = min(lanes, stop - i)
            store_part(grad, i, scale * load_part(grad, i, count, zero), count)


@driver
def scale(objects, pieces, tasks, factor, parallel):
    """Multiply every element by ``factor`` (1,), an array of the gradients' dtype."""
    if parallel:
        for task in prange(tasks.size - 1):
            _scale_task(int64(task), objects, pieces, tasks, factor)
    else:
        for task in range(tasks.size - 1):
            _scale_task(task, objects, pieces, tasks, factor)
