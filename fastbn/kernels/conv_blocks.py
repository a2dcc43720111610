"""Convolution over blocks of channels: the engine where channels are many.

A task copies the rows of the image that it needs into *blocks*: planes as those of ``kernels.conv``, but of as many
channels at once as a vector has lanes, pixel by pixel. So the values that a tile multiplies lie at constant distances,
in the first and second cache, however the image lies in memory; padding, stride and dilation are places in the planes.
With ``offsets[t]`` the place of kernel tap t, y[q, o] = sum over taps t and channels c of
blocks[offsets[t] + q, c] * w[t, c, o]. Weights lie in panels (groups, panels of the tile's columns, taps, blocks,
lanes, columns), and so do their gradients.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import (
    OUTER_ROWS,
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    add_block_products,
    block_tile,
    wide_block_tile,
)
from fastbn.kernels._vector import at_least, lanes_of, load, load_first, splat, store


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


@body
def _fill(
    x, origin, channels, height, width, strides, starts_h, starts_w, first_row, stride_h, stride_w, rows, columns,
    blocks, block,
):  # fmt: skip
    """blocks[c, i, j, row, column, lane] = x[c lanes + lane, starts_h[i] + (first_row + row) stride_h, ...].

    Zero outside the image and its channels. strides: of x along channel, row and column. block: elements of a c.
    """
    lanes = lanes_of(x)
    zero = splat(x, 0.0)
    step = stride_w * strides[2]
    depth, whole = -(-channels // lanes), channels // lanes
    at = 0
    for start_h in starts_h:
        for start_w in starts_w:
            # Columns whose pixel start_w + column * stride_w lies in the image.
            low = min(columns, max(0, -(start_w // stride_w)))
            high = max(low, min(columns, (width - 1 - start_w) // stride_w + 1))
            for row in range(rows):
                h = start_h + (first_row + row) * stride_h
                inside = 0 <= h < height
                for c in range(depth):
                    for column in range(low if inside else columns):
                        store(blocks, at + c * block + column * lanes, zero)
                    for column in range(high if inside else columns, columns):
                        store(blocks, at + c * block + column * lanes, zero)
                source = origin + h * strides[1] + start_w * strides[2]
                if inside and strides[0] == 1:
                    for column in range(low, high):
                        place, target = source + column * step, at + column * lanes
                        for c in range(whole):
                            store(blocks, target + c * block, load(x, place + c * lanes))
                        if whole < depth:
                            rest = load_first(x, place + whole * lanes, channels - whole * lanes, zero)
                            store(blocks, target + whole * block, rest)
                elif inside:
                    for c in range(depth * lanes):
                        block_of_c, lane = divmod(c, lanes)
                        place, target = source + c * strides[0], at + block_of_c * block + lane
                        if c < channels:
                            for column in range(low, high):
                                blocks[target + column * lanes] = x[place + column * step]
                        else:
                            for column in range(low, high):
                                blocks[target + column * lanes] = 0
                at += columns * lanes
    for c in range(depth):
        for index in range(at, block):
            blocks[c * block + index] = 0


@inlined
def _store_whole(tile, i, bias, channel, residual, low, out, at):
    """Row i of a tile, one pixel, of which all channels are wanted and lie together."""
    lanes = lanes_of(tile)
    for v in range(TILE_VECTORS):
        value = load(tile, (i * TILE_VECTORS + v) * lanes)
        if bias is not None:
            value = value + load(bias, channel + v * lanes)
        if residual is not None:
            value = value + load(residual, at + v * lanes)
        store(out, at + v * lanes, at_least(value, low))


@inlined
def _store_part(tile, i, channels, bias, channel, residual, low, out, at, stride):
    """Row i of a tile, one pixel, into ``channels`` places of the output, ``stride`` apart."""
    lanes = lanes_of(tile)
    first = i * TILE_VECTORS * lanes
    for j in range(channels):
        if bias is not None:
            tile[first + j] += bias[channel + j]
        if residual is not None:
            tile[first + j] += residual[at + j * stride]
    for v in range(TILE_VECTORS):
        store(tile, first + v * lanes, at_least(load(tile, first + v * lanes), low))
    for j in range(channels):
        out[at + j * stride] = tile[first + j]


@inlined
def _rows_first(rows, length, columns):
    """Whether tiles that stay in one row of the output are no more than tiles that run on over the padding."""
    return rows * -(-length // TILE_ROWS) <= -(-((rows - 1) * columns + length) // TILE_ROWS)


@body
def _correlate_task(
    task, x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns, block, offsets,
    panels, at_once, bias, residual, floor, out, first, out_shape, out_strides, groups, work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    tile, blocks = work[: TILE_ROWS * breadth], work[TILE_ROWS * breadth :]
    channels, channels_out = x_shape[1] // groups, out_shape[1] // groups
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    panel_size = offsets.size * depth * lanes * breadth
    row_blocks, panel_blocks = -(-out_shape[2] // rows), -(-panel_count // at_once)
    image, rest = divmod(task, groups * row_blocks * panel_blocks)
    group, rest = divmod(rest, row_blocks * panel_blocks)
    row_block, panel_block = divmod(rest, panel_blocks)
    first_row = row_block * rows
    count = min(rows, out_shape[2] - first_row)
    origin = image * x_strides[0] + group * channels * x_strides[1]
    _fill(
        x, origin, channels, x_shape[2], x_shape[3], x_strides[1:], starts_h, starts_w, first_row, stride_h, stride_w,
        plane_rows, columns, blocks, block,
    )  # fmt: skip
    low = splat(x, floor)
    length = out_shape[3]
    last_panel = min(panel_count, (panel_block + 1) * at_once)
    panel = panel_block * at_once
    while panel < last_panel:
        wide = length <= TILE_ROWS // 2 and panel + 1 < last_panel
        height, parts = (TILE_ROWS // 2, 2) if wide else (TILE_ROWS, 1)
        by_row = wide or _rows_first(count, length, columns)
        runs = count if by_row else 1
        run_length = length if by_row else (count - 1) * columns + length
        b_start = (group * panel_count + panel) * panel_size
        for run in range(runs):
            for q in range(0, run_length, height):
                a_start = (run * columns + q) * lanes
                if wide:
                    wide_block_tile(blocks, a_start, block, panels, b_start, panel_size, offsets, depth, tile)
                else:
                    block_tile(blocks, a_start, block, panels, b_start, panel_size, offsets, depth, tile)
                for part in range(parts):
                    stored = min(breadth, channels_out - (panel + part) * breadth)
                    channel = group * channels_out + (panel + part) * breadth
                    target = first + image * out_strides[0] + channel * out_strides[1]
                    whole = out_strides[1] == 1 and stored == breadth
                    row, column = (run, q) if by_row else divmod(q, columns)
                    for i in range(part * height, part * height + min(height, run_length - q)):
                        if column < length:
                            at = target + (first_row + row) * out_strides[2] + column * out_strides[3]
                            if whole:
                                _store_whole(tile, i, bias, channel, residual, low, out, at)
                            else:
                                _store_part(tile, i, stored, bias, channel, residual, low, out, at, out_strides[1])
                        column += 1
                        if column == columns:
                            row, column = row + 1, 0
        panel += parts


@driver
def correlate_blocks(
    x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns, block, offsets, panels,
    at_once, bias, residual, floor, out, first, out_shape, out_strides, groups, workspace, parallel,
):  # fmt: skip
    """out = max(sum over t, c of panels * blocks + bias + residual, floor), ``rows`` rows of the output a task.

    x: flat. plane_rows, columns: of a plane for so many rows; block: elements of a block of all planes and what tiles
    may read past them. offsets: of the taps, in elements. at_once: panels in a task. bias, residual: flat, or
    None; residual lies as out. first: the element of ``out`` at its logical origin; out_shape (N, C, H, W) and
    out_strides may name a part of it. workspace: (threads, a tile and the blocks).
    """
    lanes = lanes_of(x)
    panel_count = -(-(out_shape[1] // groups) // (TILE_VECTORS * lanes))
    tasks = out_shape[0] * groups * -(-out_shape[2] // rows) * -(-panel_count // at_once)
    if parallel:
        for task in prange(tasks):
            _correlate_task(
                int64(task), x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns,
                block, offsets, panels, at_once, bias, residual, floor, out, first, out_shape, out_strides, groups,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _correlate_task(
                task, x, x_shape, x_strides, starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns,
                block, offsets, panels, at_once, bias, residual, floor, out, first, out_shape, out_strides, groups,
                workspace[0],
            )  # fmt: skip


@body
def _weights_task(
    task, x, x_shape, x_strides, dy, dy_shape, dy_strides, starts_h, starts_w, stride_h, stride_w, rows, plane_rows,
    columns, block, offsets, groups, runs_at_once, at_once, panels, work,
):  # fmt: skip
    lanes = lanes_of(x)
    breadth = TILE_VECTORS * lanes
    height = min(OUTER_ROWS, lanes)
    channels, channels_out = x_shape[1] // groups, dy_shape[1] // groups
    depth = -(-channels // lanes)
    panel_count = -(-channels_out // breadth)
    panel_blocks, row_blocks = -(-panel_count // at_once), -(-dy_shape[2] // rows)
    split, rest = divmod(task, groups * panel_blocks)
    group, panel_block = divmod(rest, panel_blocks)
    first_panel = panel_block * at_once
    last_panel = min(panel_count, first_panel + at_once)
    used = min(channels_out, last_panel * breadth) - first_panel * breadth
    blocks, dy_blocks = work[: depth * block], work[depth * block :]
    dy_block = rows * columns * lanes
    panel_size = offsets.size * depth * lanes * breadth
    start = (split * groups + group) * panel_count * panel_size
    for index in range(start + first_panel * panel_size, start + last_panel * panel_size):
        panels[index] = 0
    for index in range((last_panel - first_panel) * TILE_VECTORS * dy_block):
        dy_blocks[index] = 0
    nothing = starts_h[:1] * 0
    for run in range(split * runs_at_once, min(x_shape[0] * row_blocks, (split + 1) * runs_at_once)):
        image, row_block = divmod(run, row_blocks)
        first_row = row_block * rows
        origin = image * x_strides[0] + group * channels * x_strides[1]
        _fill(
            x, origin, channels, x_shape[2], x_shape[3], x_strides[1:], starts_h, starts_w, first_row, stride_h,
            stride_w, plane_rows, columns, blocks, block,
        )  # fmt: skip
        origin = image * dy_strides[0] + (group * channels_out + first_panel * breadth) * dy_strides[1]
        _fill(
            dy, origin, used, dy_shape[2], dy_shape[3], dy_strides[1:], nothing, nothing, first_row, 1, 1, rows,
            columns, dy_blocks, dy_block,
        )  # fmt: skip
        pixels = min(rows, dy_shape[2] - first_row) * columns
        for panel in range(first_panel, last_panel):
            b_start = (panel - first_panel) * TILE_VECTORS * dy_block
            at = start + panel * panel_size
            for tap in range(offsets.size):
                for c in range(depth):
                    for i in range(0, lanes, height):
                        a_start = c * block + offsets[tap] + i
                        add_block_products(blocks, a_start, dy_blocks, b_start, dy_block, pixels, panels, at)
                        at += height * breadth


@driver
def correlate_weights_blocks(
    x, x_shape, x_strides, dy, dy_shape, dy_strides, starts_h, starts_w, stride_h, stride_w, rows, plane_rows, columns,
    block, offsets, groups, runs_at_once, at_once, panels, workspace, parallel,
):  # fmt: skip
    """panels[split] = sum over the split's runs of x times dy, laid out as weights; see ``correlate_blocks``.

    A run is ``rows`` rows of dy of one image, a split ``runs_at_once`` of them. workspace: (threads, the blocks of x
    and of the dy of ``at_once`` panels).
    """
    lanes = lanes_of(x)
    panel_count = -(-(dy_shape[1] // groups) // (TILE_VECTORS * lanes))
    tasks = -(-x_shape[0] * -(-dy_shape[2] // rows) // runs_at_once) * groups * -(-panel_count // at_once)
    if parallel:
        for task in prange(tasks):
            _weights_task(
                int64(task), x, x_shape, x_strides, dy, dy_shape, dy_strides, starts_h, starts_w, stride_h, stride_w,
                rows, plane_rows, columns, block, offsets, groups, runs_at_once, at_once, panels,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _weights_task(
                task, x, x_shape, x_strides, dy, dy_shape, dy_strides, starts_h, starts_w, stride_h, stride_w, rows,
                plane_rows, columns, block, offsets, groups, runs_at_once, at_once, panels, workspace[0],
            )  # fmt: skip
