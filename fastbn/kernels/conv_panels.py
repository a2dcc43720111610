"""Weights as panels: (groups, panels of the register tile's columns, taps, blocks, lanes, columns), and back.

A run is a stretch of memory that holds, for one output, taps of a channel or of several; as many outputs as a vector
has lanes are transposed at once.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES, transpose
from fastbn.kernels._vector import lanes_of, load, load_part, splat, store


def block_lanes(itemsize: int) -> int:
    """Channels of a block."""
    return VECTOR_BYTES // itemsize


def panel_columns(itemsize: int) -> int:
    """Output channels of a panel."""
    return TILE_VECTORS * block_lanes(itemsize)


def tile_elements(itemsize: int) -> int:
    """Elements of the register tile, in memory."""
    return TILE_ROWS * panel_columns(itemsize)


@inlined
def _copy_rows(weights, start, step, count, channels, panels, at):
    """The rows of a panel, where a channel's weights to ``count`` outputs lie side by side, ``step`` apart."""
    lanes = lanes_of(weights)
    zero = splat(weights, 0.0)
    for _ in range(channels):
        for j in range(0, count, lanes):
            store(panels, at + j, load_part(weights, start + j, min(lanes, count - j), zero))
        start += step
        at += TILE_VECTORS * lanes


@body
def pack_task(task, weights, strides, places, taps, outputs, channels, panels, spare):
    """A panel of ``pack_panels``."""
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    block = -(-channels // lanes) * lanes  # rows of a tap
    size = taps * block * breadth
    group, panel = divmod(task, -(-outputs // breadth))
    kernel = places.size
    whole_channels = strides[2] == kernel
    runs, length = (1, channels * kernel) if whole_channels else (channels, kernel)
    if taps * channels < taps * block or (panel + 1) * breadth > outputs:
        for index in range(task * size, (task + 1) * size):
            panels[index] = 0
    if strides[1] == taps == kernel == 1:
        o = panel * breadth
        start = group * strides[0] + o
        _copy_rows(weights, start, strides[2], min(breadth, outputs - o), channels, panels, task * size)
        return
    for v in range(TILE_VECTORS):
        o = panel * breadth + v * lanes
        count = min(lanes, outputs - o)
        at = task * size + v * lanes
        for run in range(runs):
            source = group * strides[0] + o * strides[1] + run * strides[2]
            c, t = run, 0
            for first in range(0, length, lanes):
                steps = min(lanes, length - first)
                start = source + first
                inside = start + (lanes - 1) * strides[1] + lanes <= weights.size
                if count == lanes and inside:
                    transpose(weights, start, strides[1], spare, 0)
                    for step in range(steps):
                        if places[t] >= 0:
                            store(panels, at + (places[t] * block + c) * breadth, load(spare, step * lanes))
                        t += 1
                        if t == kernel:
                            c, t = c + 1, 0
                else:
                    for step in range(steps):
                        if places[t] >= 0:
                            for i in range(count):
                                value = weights[start + i * strides[1] + step]
                                panels[at + (places[t] * block + c) * breadth + i] = value
                        t += 1
                        if t == kernel:
                            c, t = c + 1, 0


@driver
def pack_panels(weights, strides, places, taps, groups, outputs, channels, panels, workspace, parallel):
    """panels (groups, panels, taps, blocks, lanes, columns) = weights, zero past the last output and channel.

    weights: flat; strides: of its groups, outputs and channels, in elements; a channel's taps lie side by side.
    places: the panels' tap that each of them becomes, or -1. workspace: (threads, lanes * lanes).
    """
    lanes = lanes_of(weights)
    tasks = groups * -(-outputs // (TILE_VECTORS * lanes))
    if parallel:
        for task in prange(tasks):
            spare = workspace[get_thread_id()]
            pack_task(int64(task), weights, strides, places, taps, outputs, channels, panels, spare)
    else:
        for task in range(tasks):
            pack_task(task, weights, strides, places, taps, outputs, channels, panels, workspace[0])


@body
def add_task(task, panels, splits, taps, outputs, channels, weights, spare):
    """A panel of ``add_panels``."""
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    block = -(-channels // lanes) * lanes
    size = taps * block * breadth
    group, panel = divmod(task, -(-outputs // breadth))
    step = panels.size // splits
    length = channels * taps
    for v in range(TILE_VECTORS):
        o = panel * breadth + v * lanes
        count = min(lanes, outputs - o)
        at = task * size + v * lanes
        target = (group * outputs + o) * length
        c, t = 0, 0
        for first in range(0, length, lanes):
            steps = min(lanes, length - first)
            for k in range(steps):
                place = at + (t * block + c) * breadth
                row = load(panels, place)
                for split in range(1, splits):
                    row = row + load(panels, place + split * step)
                store(spare, k * lanes, row)
                t += 1
                if t == taps:
                    c, t = c + 1, 0
            transpose(spare, 0, lanes, spare, lanes * lanes)
            for i in range(count):
                place, turned = target + i * length + first, (lanes + i) * lanes
                if steps == lanes:
                    store(weights, place, load(spare, turned))
                else:
                    for k in range(steps):
                        weights[place + k] = spare[turned + k]


@driver
def add_panels(panels, splits, taps, groups, outputs, channels, weights, workspace, parallel):
    """weights (groups, outputs, channels, taps) = the sum of ``splits`` panels of them, in order.

    workspace: (threads, 2 * lanes * lanes).
    """
    tasks = groups * -(-outputs // (TILE_VECTORS * lanes_of(weights)))
    if parallel:
        for task in prange(tasks):
            spare = workspace[get_thread_id()]
            add_task(int64(task), panels, splits, taps, outputs, channels, weights, spare)
    else:
        for task in range(tasks):
            add_task(task, panels, splits, taps, outputs, channels, weights, workspace[0])
