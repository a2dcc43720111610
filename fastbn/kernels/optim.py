"""One step of an optimiser over all its arrays, see ``kernels.tensors``; weights and moments are changed in place.

objects (columns, arrays): weights, gradients and moments. numbers: one row for arrays that take the same step, of their
dtype; rows (arrays,), int64: which. In every row: the rate, below 0, by which the step is added; the gradient's sign,
-1 to go uphill; the weight decay that is added to the gradient.
"""

from numba import int64, prange

from fastbn.kernels._jit import allocating_body, body, driver, inlined
from fastbn.kernels._vector import at_least, fma, lanes_of, root, splat
from fastbn.kernels._vector_choice import larger
from fastbn.kernels._vector_memory import load_part, store_part
from fastbn.kernels.tensors import tensor_at

RATE, SIGN, DECAY, OWN = 0, 1, 2, 3  # columns of numbers; from OWN on an optimiser has its own


@inlined
def _decayed(g, p, decays, decay):
    return fma(decay, p, g) if decays else g  # not 0 times an infinite weight


@allocating_body
def _sgd_piece(objects, tensor, first, stop, row):
    moving = int64(objects.shape[0] > 2)
    param, grad = tensor_at(row, objects[0, tensor], stop), tensor_at(row, objects[1, tensor], stop)
    velocity = tensor_at(row, objects[1 + moving, tensor], stop)
    rate, sign, decay = splat(row, row[RATE]), splat(row, row[SIGN]), splat(row, row[DECAY])
    keep, share, ahead = splat(row, row[OWN]), splat(row, row[OWN + 1]), splat(row, row[OWN + 2])
    decays, looks, zero, lanes = row[DECAY] != 0, row[OWN + 2] != 0, splat(row, 0.0), lanes_of(row)
    for i in range(first, stop, lanes):
        count = min(lanes, stop - i)
        p = load_part(param, i, count, zero)
        g = _decayed(sign * load_part(grad, i, count, zero), p, decays, decay)
        if moving:
            v = fma(keep, load_part(velocity, i, count, zero), share * g)
            store_part(velocity, i, v, count)
            g = fma(ahead, v, g) if looks else v
        store_part(param, i, fma(rate, g, p), count)


@body
def _sgd_task(task, objects, pieces, tasks, numbers, rows):
    for piece in range(tasks[task], tasks[task + 1]):
        tensor = pieces[piece, 0]
        _sgd_piece(objects, tensor, pieces[piece, 1], pieces[piece, 2], numbers[rows[tensor]])


@driver
def sgd(objects, pieces, tasks, numbers, rows, parallel):
    """objects: (weights, gradients) or with velocities: v = keep v + share g, p += rate (g + ahead v), or of v alone.

    numbers, further: keep, share, ahead.
    """
    if parallel:
        for task in prange(tasks.size - 1):
            _sgd_task(int64(task), objects, pieces, tasks, numbers, rows)
    else:
        for task in range(tasks.size - 1):
            _sgd_task(task, objects, pieces, tasks, numbers, rows)


@allocating_body
def _rmsprop_piece(objects, tensor, first, stop, row):
    moving = int64(row[OWN + 4])
    centred = objects.shape[0] > 3 + moving
    param, grad = tensor_at(row, objects[0, tensor], stop), tensor_at(row, objects[1, tensor], stop)
    square, velocity = tensor_at(row, objects[2, tensor], stop), tensor_at(row, objects[2 + moving, tensor], stop)
    mean = tensor_at(row, objects[objects.shape[0] - 1, tensor], stop)
    rate, sign, decay = splat(row, row[RATE]), splat(row, row[SIGN]), splat(row, row[DECAY])
    keep, share, decays = splat(row, row[OWN]), splat(row, row[OWN + 1]), row[DECAY] != 0
    eps, momentum, zero, lanes = splat(row, row[OWN + 2]), splat(row, row[OWN + 3]), splat(row, 0.0), lanes_of(row)
    for i in range(first, stop, lanes):
        count = min(lanes, stop - i)
        p = load_part(param, i, count, zero)
        g = _decayed(sign * load_part(grad, i, count, zero), p, decays, decay)
        s = fma(keep, load_part(square, i, count, zero), share * g * g)
        store_part(square, i, s, count)
        if centred:
            m = fma(keep, load_part(mean, i, count, zero), share * g)
            store_part(mean, i, m, count)
            s = at_least(fma(zero - m, m, s), zero)
        d = g / (root(s) + eps)
        if moving:
            d = fma(momentum, load_part(velocity, i, count, zero), d)
            store_part(velocity, i, d, count)
        store_part(param, i, fma(rate, d, p), count)


@body
def _rmsprop_task(task, objects, pieces, tasks, numbers, rows):
    for piece in range(tasks[task], tasks[task + 1]):
        tensor = pieces[piece, 0]
        _rmsprop_piece(objects, tensor, pieces[piece, 1], pieces[piece, 2], numbers[rows[tensor]])


@driver
def rmsprop(objects, pieces, tasks, numbers, rows, parallel):
    """objects: (weights, gradients, squares), with velocities if told, with means of g if there is one more column:
    s = keep s + share g^2, m = keep m + share g, d = momentum d + g / (sqrt(s - m^2) + eps), p += rate d.

    numbers, further: keep, share, eps, momentum, and 1 if there are velocities, else 0.
    """
    if parallel:
        for task in prange(tasks.size - 1):
            _rmsprop_task(int64(task), objects, pieces, tasks, numbers, rows)
    else:
        for task in range(tasks.size - 1):
            _rmsprop_task(task, objects, pieces, tasks, numbers, rows)


@allocating_body
def _adam_piece(objects, tensor, first, stop, row):
    param, grad = tensor_at(row, objects[0, tensor], stop), tensor_at(row, objects[1, tensor], stop)
    mean, square = tensor_at(row, objects[2, tensor], stop), tensor_at(row, objects[3, tensor], stop)
    largest, bounded = tensor_at(row, objects[objects.shape[0] - 1, tensor], stop), objects.shape[0] > 4
    rate, sign, decay = splat(row, row[RATE]), splat(row, row[SIGN]), splat(row, row[DECAY])
    shrink, scale, eps = splat(row, row[OWN]), splat(row, row[OWN + 5]), splat(row, row[OWN + 6])
    beta1, share1 = splat(row, row[OWN + 1]), splat(row, row[OWN + 2])
    beta2, share2 = splat(row, row[OWN + 3]), splat(row, row[OWN + 4])
    decays, zero, lanes = row[DECAY] != 0, splat(row, 0.0), lanes_of(row)
    for i in range(first, stop, lanes):
        count = min(lanes, stop - i)
        p = shrink * load_part(param, i, count, zero)
        g = _decayed(sign * load_part(grad, i, count, zero), p, decays, decay)
        m = fma(beta1, load_part(mean, i, count, zero), share1 * g)
        v = fma(beta2, load_part(square, i, count, zero), share2 * g * g)
        store_part(mean, i, m, count)
        store_part(square, i, v, count)
        if bounded:
            v = larger(load_part(largest, i, count, zero), v)
            store_part(largest, i, v, count)
        store_part(param, i, fma(rate, m / fma(root(v), scale, eps), p), count)


@body
def _adam_task(task, objects, pieces, tasks, numbers, rows):
    for piece in range(tasks[task], tasks[task + 1]):
        tensor = pieces[piece, 0]
        _adam_piece(objects, tensor, pieces[piece, 1], pieces[piece, 2], numbers[rows[tensor]])


@driver
def adam(objects, pieces, tasks, numbers, rows, parallel):
    """Adam (Kingma and Ba 2014, algorithm 1), AdamW, and AMSGrad (Reddi et al. 2018) if there is a fifth column.

    objects: (weights, gradients, means, squares) or with the largest squares so far: p *= shrink,
    m = beta1 m + share1 g, v = beta2 v + share2 g^2, p += rate m / (scale sqrt(v) + eps).
    numbers, further: shrink, beta1, share1, beta2, share2, scale, eps.
    """
    if parallel:
        for task in prange(tasks.size - 1):
            _adam_task(int64(task), objects, pieces, tasks, numbers, rows)
    else:
        for task in range(tasks.size - 1):
            _adam_task(task, objects, pieces, tasks, numbers, rows)
