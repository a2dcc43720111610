"""Weights as panels: (groups, panels of the register tile's columns, taps, blocks, lanes, columns), and back."""

from numba import int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES
from fastbn.kernels._vector import lanes_of


def block_lanes(itemsize: int) -> int:
    """Channels of a block."""
    return VECTOR_BYTES // itemsize


def panel_columns(itemsize: int) -> int:
    """Output channels of a panel."""
    return TILE_VECTORS * block_lanes(itemsize)


def tile_elements(itemsize: int) -> int:
    """Elements of the register tile, in memory."""
    return TILE_ROWS * panel_columns(itemsize)


@body
def _pack_task(task, weights, strides, taps, outputs, channels, depth, panels):
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    size = taps.size * depth * lanes * breadth
    panel_count = -(-outputs // breadth)
    group, panel = divmod(task, panel_count)
    for index in range(task * size, (task + 1) * size):
        panels[index] = 0
    for o in range(panel * breadth, min(outputs, (panel + 1) * breadth)):
        source = group * strides[0] + o * strides[1]
        at = task * size + o - panel * breadth
        for c in range(channels):
            for t in range(taps.size):
                panels[at + (t * depth * lanes + c) * breadth] = weights[source + c * strides[2] + taps[t]]


@driver
def pack_panels(weights, strides, taps, groups, outputs, channels, panels, parallel):
    """panels (groups, panels, taps, blocks, lanes, columns) = weights, zero past the last output and channel.

    weights: flat; strides: of its groups, outputs and channels, taps: the places of its taps, all in elements.
    """
    lanes = lanes_of(weights)
    tasks, depth = groups * -(-outputs // (TILE_VECTORS * lanes)), -(-channels // lanes)
    if parallel:
        for task in prange(tasks):
            _pack_task(int64(task), weights, strides, taps, outputs, channels, depth, panels)
    else:
        for task in range(tasks):
            _pack_task(task, weights, strides, taps, outputs, channels, depth, panels)


@body
def _add_task(task, panels, splits, taps, outputs, channels, weights):
    lanes = lanes_of(weights)
    breadth = TILE_VECTORS * lanes
    depth = -(-channels // lanes)
    size = taps * depth * lanes * breadth
    panel_count = -(-outputs // breadth)
    group, panel = divmod(task, panel_count)
    step = panels.size // splits
    for split in range(1, splits):
        for index in range(task * size, (task + 1) * size):
            panels[index] += panels[split * step + index]
    for o in range(panel * breadth, min(outputs, (panel + 1) * breadth)):
        at = task * size + o - panel * breadth
        target = (group * outputs + o) * channels * taps
        for c in range(channels):
            for t in range(taps):
                weights[target + c * taps + t] = panels[at + (t * depth * lanes + c) * breadth]


@driver
def add_panels(panels, splits, taps, groups, outputs, channels, weights, parallel):
    """weights (groups, outputs, channels, taps) = the sum of ``splits`` panels of them, in order; panels are lost."""
    tasks = groups * -(-outputs // (TILE_VECTORS * lanes_of(weights)))
    if parallel:
        for task in prange(tasks):
            _add_task(int64(task), panels, splits, taps, outputs, channels, weights)
    else:
        for task in range(tasks):
            _add_task(task, panels, splits, taps, outputs, channels, weights)
