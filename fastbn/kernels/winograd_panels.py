"""Weights transformed for ``conv_winograd``: panels as in ``conv_panels``, with 16 positions as taps, and back."""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_VECTORS
from fastbn.kernels._vector import lanes_of, load, splat, store
from fastbn.kernels.conv_panels import add_task, pack_task
from fastbn.kernels.winograd_tiles import POSITIONS

TAPS = 9


@inlined
def _spread(g0, g1, g2, half):
    """G g."""
    sides, middle = (g0 + g2) * half, g1 * half
    return g0, sides + middle, sides - middle, g2


@inlined
def _spread_column(plain, i, step, half):
    return _spread(load(plain, i), load(plain, i + step), load(plain, i + 2 * step), half)


@inlined
def _store_row(panels, i, step, g0, g1, g2, half):
    u0, u1, u2, u3 = _spread(g0, g1, g2, half)
    store(panels, i, u0)
    store(panels, i + step, u1)
    store(panels, i + 2 * step, u2)
    store(panels, i + 3 * step, u3)


@body
def _transform_task(task, weights, strides, places, outputs, channels, panels, work):
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    size = -(-channels // lanes) * lanes * breadth
    first = task * breadth
    plain, spare = work[: TAPS * size], work[TAPS * size :]
    share = places, TAPS, min(breadth, outputs - first), channels
    pack_task(0, weights[first * strides[1] :], strides, *share, plain, spare)
    half = splat(weights, 0.5)
    for i in range(0, size, lanes):
        a0, a1, a2, a3 = _spread_column(plain, i, 3 * size, half)
        b0, b1, b2, b3 = _spread_column(plain, i + size, 3 * size, half)
        c0, c1, c2, c3 = _spread_column(plain, i + 2 * size, 3 * size, half)
        at = task * POSITIONS * size + i
        _store_row(panels, at, size, a0, b0, c0, half)
        _store_row(panels, at + 4 * size, size, a1, b1, c1, half)
        _store_row(panels, at + 8 * size, size, a2, b2, c2, half)
        _store_row(panels, at + 12 * size, size, a3, b3, c3, half)


@driver
def transform_panels(weights, strides, places, outputs, channels, panels, workspace, parallel):
    """panels (panels, 16, blocks, lanes, columns) = G g G^T of windows g of 3 x 3; see ``pack_panels``.

    workspace: (threads, a panel of 9 taps and lanes * lanes).
    """
    tasks = -(-outputs // (TILE_VECTORS * lanes_of(weights)))
    if parallel:
        for task in prange(tasks):
            work = workspace[get_thread_id()]
            _transform_task(int64(task), weights, strides, places, outputs, channels, panels, work)
    else:
        for task in range(tasks):
            _transform_task(task, weights, strides, places, outputs, channels, panels, workspace[0])


@inlined
def _gather(u0, u1, u2, u3, half):
    """G^T u, where u3 has the other sign."""
    middle = (u1 + u2) * half
    return u0 + middle, (u1 - u2) * half, middle - u3


@inlined
def _sum_of_splits(panels, i, splits, apart):
    value = load(panels, i)
    for split in range(1, splits):
        value = value + load(panels, i + split * apart)
    return value


@inlined
def _gather_column(panels, i, step, splits, apart, half):
    u0, u1 = _sum_of_splits(panels, i, splits, apart), _sum_of_splits(panels, i + step, splits, apart)
    u2 = _sum_of_splits(panels, i + 2 * step, splits, apart)
    u3 = _sum_of_splits(panels, i + 3 * step, splits, apart)
    return _gather(u0, u1, u2, u3, half)


@inlined
def _store_taps(plain, i, step, u0, u1, u2, u3, half):
    g0, g1, g2 = _gather(u0, u1, u2, u3, half)
    store(plain, i, g0)
    store(plain, i + step, g1)
    store(plain, i + 2 * step, g2)


@body
def _gather_task(task, panels, splits, outputs, channels, weights, work):
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    size, apart = -(-channels // lanes) * lanes * breadth, panels.size // splits
    first = task * breadth
    plain, spare = work[: TAPS * size], work[TAPS * size :]
    half = splat(weights, 0.5)
    for i in range(0, size, lanes):
        at = task * POSITIONS * size + i
        a0, a1, a2 = _gather_column(panels, at, 4 * size, splits, apart, half)
        b0, b1, b2 = _gather_column(panels, at + size, 4 * size, splits, apart, half)
        c0, c1, c2 = _gather_column(panels, at + 2 * size, 4 * size, splits, apart, half)
        d0, d1, d2 = _gather_column(panels, at + 3 * size, 4 * size, splits, apart, half)
        _store_taps(plain, i, size, a0, b0, c0, d0, half)
        _store_taps(plain, i + 3 * size, size, a1, b1, c1, d1, half)
        _store_taps(plain, i + 6 * size, size, a2, b2, c2, d2, half)
    target = weights[first * channels * TAPS :]
    add_task(0, plain, 1, TAPS, min(breadth, outputs - first), channels, target, spare)


@driver
def gather_panels(panels, splits, outputs, channels, weights, workspace, parallel):
    """weights (outputs, channels, 9) = G^T u G, where u are the sums in ``conv_winograd_weights``, in ``splits`` parts.

    workspace: (threads, a panel of 9 taps and 2 * lanes * lanes).
    """
    tasks = -(-outputs // (TILE_VECTORS * lanes_of(weights)))
    if parallel:
        for task in prange(tasks):
            _gather_task(int64(task), panels, splits, outputs, channels, weights, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _gather_task(task, panels, splits, outputs, channels, weights, workspace[0])
