"""Weights as panels: (groups, panels of the register tile's columns, taps, blocks, lanes, columns), and back.

Weights are packed a block of a panel at a time, (taps, lanes, columns), by the transposition of squares of vectors, and
in the order in which they lie: that of the outputs in the forward pass, of the channels in the backward pass.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES, transpose
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_memory import fence, load, load_first, load_part, prefetch_to_write, put, store, store_first


def block_lanes(itemsize: int) -> int:
    """Channels of a block."""
    return VECTOR_BYTES // itemsize


def panel_columns(itemsize: int) -> int:
    """Output channels of a panel."""
    return TILE_VECTORS * block_lanes(itemsize)


def tile_elements(itemsize: int) -> int:
    """Elements of the register tile, in memory."""
    return TILE_ROWS * panel_columns(itemsize)


def block_elements(itemsize: int) -> int:
    """Elements of a tap of a block in a panel."""
    return block_lanes(itemsize) * panel_columns(itemsize)


def squares(itemsize: int) -> int:
    """Elements of the squares of vectors that a thread transposes."""
    return (TILE_VECTORS + 1) * block_lanes(itemsize) ** 2


@inlined
def _following(c, t, taps):
    """The channel and tap after these, as weights have them."""
    t += 1
    return (c + 1, 0) if t == taps else (c, t)


@body
def turn(weights, start, stride, rows, columns, spare, at):
    """spare[at + j * lanes + i] = weights[start + i * stride + j], 0 from ``rows`` and ``columns`` on."""
    lanes = lanes_of(weights)
    if rows >= lanes and columns >= lanes:
        transpose(weights, start, stride, spare, at, lanes, False)
        return
    square, zero = TILE_VECTORS * lanes * lanes, splat(weights, 0.0)
    for i in range(lanes):
        count = max(0, min(columns, lanes)) if i < rows else 0
        store(spare, square + i * lanes, load_first(weights, start + i * stride, count, zero))
    transpose(spare, square, lanes, spare, at, lanes, False)


@inlined
def _copy_rows(weights, start, step, outputs, channels, panels, at, ahead):
    """A block whose rows lie in the weights, ``step`` apart; ``ahead`` of it, the next one is asked for meanwhile."""
    lanes = lanes_of(weights)
    zero = splat(weights, 0.0)
    for c in range(lanes):
        for j in range(0, TILE_VECTORS * lanes, lanes):
            prefetch_to_write(panels, at + j + ahead)
            row = load_part(weights, start + j, min(lanes, outputs - j), zero) if c < channels and j < outputs else zero
            store(panels, at + j, row)
        start += step
        at += TILE_VECTORS * lanes


@inlined
def _turn_square(weights, start, stride, panels, at):
    """A block of single taps, all of it there; the next one is asked for meanwhile."""
    lanes = lanes_of(weights)
    block = TILE_VECTORS * lanes * lanes
    for i in range(0, block, lanes):
        prefetch_to_write(panels, at + block + i)
    for v in range(TILE_VECTORS):
        source = start + v * lanes * stride
        transpose(weights, source, stride, panels, at + v * lanes, TILE_VECTORS * lanes, False)


@inlined
def _turn_runs(weights, start, strides, outputs, channels, places, panels, index, at, spare):
    """A block by squares, of the runs of memory that hold taps of a channel, or of all its channels."""
    lanes, kernel = lanes_of(weights), places.shape[1]
    whole = strides[2] == kernel
    runs, length = (1, lanes * kernel) if whole else (lanes, kernel)
    c = t = 0
    for run in range(runs):
        there = channels * kernel if whole else kernel if run < channels else 0
        for first in range(0, length, lanes):
            for v in range(TILE_VECTORS):
                source = start + v * lanes * strides[1] + run * strides[2] + first
                inside = source + (lanes - 1) * strides[1] + lanes <= weights.size
                columns = lanes if inside and there >= length else there - first
                turn(weights, source, strides[1], outputs - v * lanes, columns, spare, v * lanes * lanes)
            for step in range(0, min(lanes, length - first) * lanes, lanes):
                place = places[0, t] + index * places[1, t] + at + c * TILE_VECTORS * lanes
                for v in range(TILE_VECTORS):
                    store(panels, place + v * lanes, load(spare, v * lanes * lanes + step))
                c, t = _following(c, t, kernel)


@body
def pack_block(weights, start, strides, outputs, channels, places, panels, index, at, spare):
    """A block of panel ``index``: of no more outputs and channels than there are, zeros behind them."""
    lanes, kernel = lanes_of(weights), places.shape[1]
    to = places[0, 0] + index * places[1, 0] + at
    if strides[1] == kernel == 1:
        _copy_rows(weights, start, strides[2], outputs, channels, panels, to, places[1, 0])
    elif strides[2] == kernel == 1 and outputs >= TILE_VECTORS * lanes and channels >= lanes:
        _turn_square(weights, start, strides[1], panels, to)
    else:
        _turn_runs(weights, start, strides, outputs, channels, places, panels, index, at, spare)


@inlined
def tasks_of(strides, taps, panels, blocks):
    """How many tasks pack them, and how many blocks each: in the order in which weights lie."""
    return (panels, blocks) if strides[2] == taps else (blocks, panels)


@body
def _pack_task(task, weights, strides, places, outputs, channels, panels, spare):
    """All blocks of a panel, or one block of all panels."""
    lanes, taps = lanes_of(weights), places.shape[1]
    breadth = TILE_VECTORS * lanes
    panel_count = -(-outputs // breadth)
    tasks, count = tasks_of(strides, taps, panel_count, -(-channels // lanes))
    group, first = divmod(task, tasks)
    for second in range(count):
        panel, block = (first, second) if strides[2] == taps else (second, first)
        o, c = panel * breadth, block * lanes
        start = group * strides[0] + o * strides[1] + c * strides[2]
        pack_block(
            weights, start, strides, outputs - o, channels - c, places, panels, group * panel_count + panel,
            c * breadth, spare,
        )  # fmt: skip


@driver
def pack_panels(weights, strides, places, groups, outputs, channels, panels, workspace, parallel):
    """panels = weights, zero past the last output and channel.

    weights: flat; strides: of its groups, outputs and channels, in elements; a channel's taps lie side by side.
    places (2, taps): where each of them begins in the first panel, and how much further in the next one.
    workspace: (threads, squares).
    """
    lanes = lanes_of(weights)
    panel_count, blocks = -(-outputs // (TILE_VECTORS * lanes)), -(-channels // lanes)
    tasks = groups * tasks_of(strides, places.shape[1], panel_count, blocks)[0]
    if parallel:
        for task in prange(tasks):
            spare = workspace[get_thread_id()]
            _pack_task(int64(task), weights, strides, places, outputs, channels, panels, spare)
    else:
        for task in range(tasks):
            _pack_task(task, weights, strides, places, outputs, channels, panels, workspace[0])


@body
def sum_block(panels, at, splits, step, taps, size, plain):
    """plain (taps, lanes, columns) = a block, the sum of those at ``at`` and ``step``, 2 ``step``, ... behind."""
    lanes = lanes_of(panels)
    block = TILE_VECTORS * lanes * lanes
    for t in range(taps):
        for i in range(0, block, lanes):
            value = load(panels, at + t * size + i)
            for split in range(1, splits):
                value = value + load(panels, at + t * size + i + split * step)
            store(plain, t * block + i, value)


@body
def unpack_block(panels, at, size, taps, outputs, channels, weights, target, length, streaming, spare):
    """The weights of a block at ``at``, to those of its outputs, ``length`` apart.

    size: elements from tap to tap of the block.
    """
    lanes = lanes_of(weights)
    breadth, square = TILE_VECTORS * lanes, lanes * lanes
    if taps == 1 and outputs >= breadth and channels >= lanes:
        for v in range(0, breadth, lanes):
            transpose(panels, at + v, breadth, weights, target + v * length, length, streaming)
        return
    c = t = 0
    for first in range(0, min(lanes, channels) * taps, lanes):
        for row in range(0, square, lanes):
            for v in range(TILE_VECTORS):
                store(spare, v * square + row, load(panels, at + t * size + c * breadth + v * lanes))
            c, t = _following(c, t, taps)
        for v in range(TILE_VECTORS):
            transpose(spare, v * square, lanes, spare, v * square, lanes, False)
        steps = min(lanes, channels * taps - first)
        for i in range(min(breadth, outputs)):
            value = load(spare, i * lanes)
            if steps == lanes:
                put(weights, target + i * length + first, value, streaming)
            else:
                store_first(weights, target + i * length + first, value, steps)


@body
def _add_task(task, panels, splits, taps, outputs, channels, weights, streaming, work):
    """A panel of ``add_panels``."""
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    size, length, block = -(-channels // lanes) * lanes * breadth, channels * taps, lanes * breadth
    group, panel = divmod(task, -(-outputs // breadth))
    o = panel * breadth
    plain, spare = work[: taps * block], work[taps * block :]
    for c in range(0, channels, lanes):
        at, target = task * taps * size + c * breadth, (group * outputs + o) * length + c * taps
        if splits == 1:
            unpack_block(panels, at, size, taps, outputs - o, channels - c, weights, target, length, streaming, spare)
        else:
            sum_block(panels, at, splits, panels.size // splits, taps, size, plain)
            unpack_block(
                plain, int64(0), block, taps, outputs - o, channels - c, weights, target, length, streaming, spare
            )
    if streaming:
        fence()


@driver
def add_panels(panels, splits, taps, groups, outputs, channels, weights, streaming, workspace, parallel):
    """weights (groups, outputs, channels, taps) = the sum of ``splits`` panels of them, in order.

    streaming: weights, and those of each output, lie on whole vectors and are written past the caches.
    workspace: (threads, a block and squares).
    """
    tasks = groups * -(-outputs // (TILE_VECTORS * lanes_of(weights)))
    if parallel:
        for task in prange(tasks):
            spare = workspace[get_thread_id()]
            _add_task(int64(task), panels, splits, taps, outputs, channels, weights, streaming, spare)
    else:
        for task in range(tasks):
            _add_task(task, panels, splits, taps, outputs, channels, weights, streaming, workspace[0])
