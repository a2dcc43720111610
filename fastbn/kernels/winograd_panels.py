"""Weights transformed for ``conv_winograd``: panels as in ``conv_panels``, with 16 positions as taps, and back."""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_VECTORS
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import fence, load, store
from fastbn.kernels.conv_panels import pack_block, sum_block, tasks_of, unpack_block
from fastbn.kernels.winograd_tiles import POSITIONS

TAPS = 9
BLOCKS = TAPS + POSITIONS  # of one tap, that a thread of ``gather_panels`` needs


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


@inlined
def _transform_block(plain, size, panels, at, apart, half):
    """A block of 9 taps, ``size`` elements each, into one of 16 positions, ``apart`` elements from one to the next."""
    for i in range(0, size, lanes_of(plain)):
        a0, a1, a2, a3 = _spread_column(plain, i, 3 * size, half)
        b0, b1, b2, b3 = _spread_column(plain, i + size, 3 * size, half)
        c0, c1, c2, c3 = _spread_column(plain, i + 2 * size, 3 * size, half)
        _store_row(panels, at + i, apart, a0, b0, c0, half)
        _store_row(panels, at + i + 4 * apart, apart, a1, b1, c1, half)
        _store_row(panels, at + i + 8 * apart, apart, a2, b2, c2, half)
        _store_row(panels, at + i + 12 * apart, apart, a3, b3, c3, half)


@body
def _transform_task(task, weights, strides, places, outputs, channels, panels, work):
    """All blocks of a panel, or one block of all panels."""
    lanes = lanes_of(weights)
    breadth, blocks = TILE_VECTORS * lanes, -(-channels // lanes)
    size, apart = lanes * breadth, blocks * lanes * breadth
    plain, spare = work[: TAPS * size], work[TAPS * size :]
    half = splat(weights, 0.5)
    for second in range(tasks_of(strides, TAPS, -(-outputs // breadth), blocks)[1]):
        panel, block = (task, second) if strides[2] == TAPS else (second, task)
        o, c = panel * breadth, block * lanes
        start = o * strides[1] + c * strides[2]
        pack_block(weights, start, strides, outputs - o, channels - c, places, plain, int64(0), int64(0), spare)
        _transform_block(plain, size, panels, panel * POSITIONS * apart + block * size, apart, half)


@driver
def transform_panels(weights, strides, places, outputs, channels, panels, workspace, parallel):
    """panels (panels, 16, blocks, lanes, columns) = G g G^T of windows g of 3 x 3; see ``pack_panels``.

    places: of a panel of one block. workspace: (threads, a block of 9 taps and squares).
    """
    lanes = lanes_of(weights)
    tasks = tasks_of(strides, TAPS, -(-outputs // (TILE_VECTORS * lanes)), -(-channels // lanes))[0]
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
def _gather_column(panels, i, step, half):
    u0, u1, u2 = load(panels, i), load(panels, i + step), load(panels, i + 2 * step)
    return _gather(u0, u1, u2, load(panels, i + 3 * step), half)


@inlined
def _store_taps(plain, i, step, u0, u1, u2, u3, half):
    g0, g1, g2 = _gather(u0, u1, u2, u3, half)
    store(plain, i, g0)
    store(plain, i + step, g1)
    store(plain, i + 2 * step, g2)


@inlined
def _gather_block(panels, at, apart, plain, size, half):
    """A block of 16 positions, ``apart`` elements from one to the next, into one of 9 taps, ``size`` elements each."""
    for i in range(0, size, lanes_of(plain)):
        a0, a1, a2 = _gather_column(panels, at + i, 4 * apart, half)
        b0, b1, b2 = _gather_column(panels, at + i + apart, 4 * apart, half)
        c0, c1, c2 = _gather_column(panels, at + i + 2 * apart, 4 * apart, half)
        d0, d1, d2 = _gather_column(panels, at + i + 3 * apart, 4 * apart, half)
        _store_taps(plain, i, size, a0, b0, c0, d0, half)
        _store_taps(plain, i + 3 * size, size, a1, b1, c1, d1, half)
        _store_taps(plain, i + 6 * size, size, a2, b2, c2, d2, half)


@body
def _gather_task(task, panels, splits, outputs, channels, weights, streaming, work):
    """A panel of ``gather_panels``."""
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    size, apart, length = lanes * breadth, -(-channels // lanes) * lanes * breadth, channels * TAPS
    plain, sums, spare = work[: TAPS * size], work[TAPS * size : BLOCKS * size], work[BLOCKS * size :]
    half = splat(weights, 0.5)
    o = task * breadth
    for c in range(0, channels, lanes):
        at = task * POSITIONS * apart + c * breadth
        if splits == 1:
            _gather_block(panels, at, apart, plain, size, half)
        else:
            sum_block(panels, at, splits, panels.size // splits, int64(POSITIONS), apart, sums)
            _gather_block(sums, 0, size, plain, size, half)
        target = o * length + c * TAPS
        unpack_block(
            plain, int64(0), size, int64(TAPS), outputs - o, channels - c, weights, target, length, streaming, spare
        )
    if streaming:
        fence()


@driver
def gather_panels(panels, splits, outputs, channels, weights, streaming, workspace, parallel):
    """weights (outputs, channels, 9) = G^T u G, where u are the sums in ``conv_winograd_weights``, in ``splits`` parts.

    streaming: as in ``add_panels``. workspace: (threads, ``BLOCKS`` and squares).
    """
    tasks = -(-outputs // (TILE_VECTORS * lanes_of(weights)))
    if parallel:
        for task in prange(tasks):
            work = workspace[get_thread_id()]
            _gather_task(int64(task), panels, splits, outputs, channels, weights, streaming, work)
    else:
        for task in range(tasks):
            _gather_task(task, panels, splits, outputs, channels, weights, streaming, workspace[0])
