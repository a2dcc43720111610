"""The gradients of a linear layer with few rows and a large weight: one pass over the weight and its gradient.

A task has a share of the outputs. Of a block of inputs, x and the share of dx stay in the first cache while the rows of
the weight pass by, OUTPUTS at a time. There they lie as vectors of inputs, for each of them row by row.
"""

from numba import int64, prange, uint64

from fastbn.kernels._jit import body, driver
from fastbn.kernels._vector import fma, lanes_of, splat
from fastbn.kernels._vector_memory import fence, load, load_part, prefetch_far, put, store, store_part

OUTPUTS = 4  # rows of the weight that pass together
NEAR = 32768  # bytes of x and dx that stay in the first cache


@body
def _put_part(array, at, value, count, lanes, streaming):
    if count == lanes:
        put(array, at, value, streaming)
    else:
        store_part(array, at, value, count)


@body
def _add_outputs(o, begin, end, shape, dy, x, weight, dx, dweight, streaming):
    """OUTPUTS rows of the weight and its gradient, from o on, of inputs from ``begin`` to ``end``."""
    rows, inputs, _ = shape
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for c in range(begin, end, lanes):
        count, at = min(lanes, inputs - c), o * inputs + c
        w0, w1 = load_part(weight, at, count, zero), load_part(weight, at + inputs, count, zero)
        w2 = load_part(weight, at + 2 * inputs, count, zero)
        w3 = load_part(weight, at + 3 * inputs, count, zero)
        for i in range(OUTPUTS, 2 * OUTPUTS):
            prefetch_far(weight, at + i * inputs)
        t0 = t1 = t2 = t3 = zero
        i, g = c * rows, o * rows
        for _ in range(rows):
            g0, g1 = splat(x, dy[uint64(g)]), splat(x, dy[uint64(g + 1)])
            g2, g3 = splat(x, dy[uint64(g + 2)]), splat(x, dy[uint64(g + 3)])
            value = load(x, i)
            t0, t1, t2, t3 = fma(g0, value, t0), fma(g1, value, t1), fma(g2, value, t2), fma(g3, value, t3)
            store(dx, i, fma(g3, w3, fma(g2, w2, fma(g1, w1, fma(g0, w0, load(dx, i))))))
            i, g = i + lanes, g + OUTPUTS
        _put_part(dweight, at, t0, count, lanes, streaming)
        _put_part(dweight, at + inputs, t1, count, lanes, streaming)
        _put_part(dweight, at + 2 * inputs, t2, count, lanes, streaming)
        _put_part(dweight, at + 3 * inputs, t3, count, lanes, streaming)


@body
def _add_output(o, begin, end, shape, dy, x, weight, dx, dweight):
    """As ``_add_outputs``, a single row of the last ones, which are fewer."""
    rows, inputs, _ = shape
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for c in range(begin, end, lanes):
        count, at = min(lanes, inputs - c), o * inputs + c
        w, t = load_part(weight, at, count, zero), zero
        for r in range(rows):
            g, i = splat(x, dy[o // OUTPUTS * OUTPUTS * rows + r * OUTPUTS + o % OUTPUTS]), c * rows + r * lanes
            t = fma(g, load(x, i), t)
            store(dx, i, fma(g, w, load(dx, i)))
        store_part(dweight, at, t, count)


@body
def _gradients_task(task, shape, at_once, dy, x, weight, dx, dweight, streaming):
    rows, inputs, outputs = shape
    lanes = lanes_of(x)
    first, last = task * at_once, min(outputs, (task + 1) * at_once)
    whole = last - (last - first) % OUTPUTS
    block = max(1, NEAR // (2 * rows * lanes * x.itemsize)) * lanes
    dx[:] = 0
    for begin in range(0, inputs, block):
        end = min(inputs, begin + block)
        for o in range(first, whole, OUTPUTS):
            _add_outputs(o, begin, end, shape, dy, x, weight, dx, dweight, streaming)
        for o in range(whole, last):
            _add_output(o, begin, end, shape, dy, x, weight, dx, dweight)
    if streaming:
        fence()


@body
def _pack_task(task, shape, dy, x, dy_packed, x_packed):
    """A vector of inputs of all rows of x; as the first task, dy as well."""
    rows, inputs, outputs = shape
    lanes, zero, c = lanes_of(x), splat(x, 0.0), task * lanes_of(x)
    for r in range(rows):
        store(x_packed, (task * rows + r) * lanes, load_part(x, r * inputs + c, min(lanes, inputs - c), zero))
        if task == 0:
            for o in range(outputs):
                dy_packed[o // OUTPUTS * OUTPUTS * rows + r * OUTPUTS + o % OUTPUTS] = dy[r * outputs + o]


@body
def _sum_task(task, shape, shares, dx):
    """A vector of inputs of all rows of dx."""
    rows, inputs, _ = shape
    lanes, zero, c = lanes_of(dx), splat(dx, 0.0), task * lanes_of(dx)
    for r in range(rows):
        total = zero
        for share in range(shares.shape[0]):
            total = total + load(shares, share * shares.shape[1] + (task * rows + r) * lanes)
        store_part(dx, r * inputs + c, total, min(lanes, inputs - c))


@driver
def few_rows_gradients(shape, at_once, dy, x, weight, packed, shares, dx, dweight, streaming, parallel):
    """dx = dy weight, unless it is empty, and dweight = dy^T x; ``at_once`` outputs a task, in whole OUTPUTS.

    shape: rows, inputs, outputs; arrays are flat. packed: room for x, whole vectors of its rows, and behind it for dy,
    whole OUTPUTS of its rows. shares: (tasks, as much as for x). streaming: rows of dweight are whole vectors on whole
    lines, and are written past the caches.
    """
    vectors, of_x = -(-shape[1] // lanes_of(x)), shares.shape[1]
    operands = (packed[of_x:], packed[:of_x], weight)
    if parallel:
        for task in prange(vectors):
            _pack_task(int64(task), shape, dy, x, packed[of_x:], packed)
        for task in prange(shares.shape[0]):
            _gradients_task(int64(task), shape, at_once, *operands, shares[task], dweight, streaming)
        for task in prange(vectors if dx.size else 0):
            _sum_task(int64(task), shape, shares, dx)
    else:
        for task in range(vectors):
            _pack_task(task, shape, dy, x, packed[of_x:], packed)
        for task in range(shares.shape[0]):
            _gradients_task(task, shape, at_once, *operands, shares[task], dweight, streaming)
        for task in range(vectors if dx.size else 0):
            _sum_task(task, shape, shares, dx)
