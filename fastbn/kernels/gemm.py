"""Matrix products from packed panels, or in place: the engine of the linear layer.

A panel holds, for each step k of the summed axis, the values of ``width`` lanes side by side: rows of the left
operand in panels of TILE_ROWS, columns of the right one in panels as wide as the register tile. Lanes past the edge
are zero, so ``tile_product`` needs no case for them. Small operands that a cache holds stay where they are, but for a
right one that does not lie in rows. All arrays are flat and addressed by element strides.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS, VECTOR_BYTES, transpose
from fastbn.kernels._simd_gemm import slim_product_in_place, tile_product, tile_product_in_place
from fastbn.kernels._vector import at_least, lanes_of, splat
from fastbn.kernels._vector_memory import load, load_first, load_part, store, store_part

DEPTH_BLOCK = 256  # steps of the summed axis between two visits to the output; a panel block stays in L2
LEAST_WORK = 1 << 21  # multiply-adds of a task, about: below, packing the operands again shows
ROW_TILES = 16
COLUMN_TILES = 8


def tile_columns(itemsize: int) -> int:
    """Columns of the register tile for elements of ``itemsize`` bytes."""
    return TILE_BYTES // itemsize


def gemm_workspace(itemsize: int) -> int:
    """Elements of workspace that one thread of ``gemm`` needs."""
    columns = tile_columns(itemsize)
    panels = DEPTH_BLOCK * (ROW_TILES * TILE_ROWS + COLUMN_TILES * columns)
    return TILE_ROWS * columns + panels + (VECTOR_BYTES // itemsize) ** 2


def packed_elements(columns: int, depth: int, in_rows: bool, itemsize: int) -> tuple[int, int]:
    """Elements of the panels of ``packed_gemm``, and of the room that one thread of it needs."""
    width, lanes = tile_columns(itemsize), VECTOR_BYTES // itemsize
    panels = -(-columns // width) if not in_rows else columns % width > 0
    return panels * (width * depth + lanes), TILE_ROWS * width + lanes**2


@body
def _pack_across(source, start, depth_stride, used, depth, width, panels, at):
    """Pack a panel whose lanes lie together: what a vector writes too much, the next step overwrites."""
    lanes, zero = lanes_of(source), splat(source, 0.0)
    for k in range(depth):
        for i in range(0, width, lanes):
            value = load_first(source, start + k * depth_stride + i, min(lanes, max(0, used - i)), zero)
            store(panels, at + k * width + i, value)


@body
def _pack_along(source, start, lane_stride, depth_stride, first, used, begin, depth, width, panels, at):
    """Pack lanes from ``first`` to ``used``, from step ``begin`` on, one after the other."""
    for i in range(first, used):
        for k in range(begin, depth):
            panels[at + k * width + i] = source[start + k * depth_stride + i * lane_stride]


@body
def _pack_turned(source, start, lane_stride, used, depth, width, panels, at, spare):
    """Pack a panel whose steps lie together, a square at a time."""
    lanes = lanes_of(source)
    if used < width:
        panels[at : at + depth * width] = 0
    for first in range(0, used, lanes):
        last = min(used, first + lanes)
        origin = start + first * lane_stride
        whole = depth - depth % lanes
        if last < min(width, first + lanes) or origin + (lanes - 1) * lane_stride + whole > source.size:
            whole = 0
        for k in range(0, whole, lanes):
            transpose(source, origin + k, lane_stride, spare, 0, lanes, False)
            for step in range(lanes):
                store_part(panels, at + (k + step) * width + first, load(spare, step * lanes), last - first)
        _pack_along(source, start, lane_stride, 1, first, last, whole, depth, width, panels, at)


@body
def pack(source, start, lane_stride, depth_stride, lanes, depth, width, panels, at, spare):
    """Copy a lanes x depth operand into panels of ``width`` lanes; spare: a square of vectors."""
    for first in range(0, lanes, width):
        base = at + first * depth
        used = min(width, lanes - first)
        origin = start + first * lane_stride
        if lane_stride == 1:
            _pack_across(source, origin, depth_stride, used, depth, width, panels, base)
        elif depth_stride == 1:
            _pack_turned(source, origin, lane_stride, used, depth, width, panels, base, spare)
        else:
            panels[base : base + depth * width] = 0
            _pack_along(source, origin, lane_stride, depth_stride, 0, used, 0, depth, width, panels, base)


@body
def store_tile(tile, width, rows, columns, out, start, row_stride, first):
    """Copy a tile, ``width`` columns wide, into the output, or add it unless it is the ``first`` one."""
    lanes, zero = lanes_of(out), splat(out, 0.0)
    for i in range(rows):
        for j in range(0, columns, lanes):
            at, count = start + i * row_stride + j, min(lanes, columns - j)
            value = load(tile, i * width + j)
            if not first:
                value = load_part(out, at, count, zero) + value
            store_part(out, at, value, count)


@body
def _block_product(a_panels, b_panels, depth, rows, columns, tile, out, start, row_stride, first):
    """out (rows x columns, rows ``row_stride`` apart) = or += the packed left operand times the right one."""
    width = tile.size // TILE_ROWS
    for j in range(0, columns, width):
        for i in range(0, rows, TILE_ROWS):
            tile_product(a_panels, i * depth, b_panels, j * depth, depth, tile)
            height, breadth = min(TILE_ROWS, rows - i), min(width, columns - j)
            store_tile(tile, width, height, breadth, out, start + i * row_stride + j, row_stride, first)


@body
def epilogue(rows, columns, bias, bias_start, relu, out, start, row_stride):
    """out = relu(out + bias), of a block of it; bias may be empty."""
    lanes, zero, low = lanes_of(out), splat(out, 0.0), splat(out, 0.0 if relu else -np.inf)
    for i in range(rows):
        for j in range(0, columns, lanes):
            at, count = start + i * row_stride + j, min(lanes, columns - j)
            value = load_part(out, at, count, zero)
            if bias.size:
                value = value + load_part(bias, bias_start + j, count, zero)
            store_part(out, at, at_least(value, low), count)


@body
def _gemm_block(
    task, row_block, column_block, rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column, bias, relu, out, work
):
    width = TILE_BYTES // work.itemsize
    tile = work[: TILE_ROWS * width]
    a_panels = work[tile.size : tile.size + DEPTH_BLOCK * ROW_TILES * TILE_ROWS]
    b_panels = work[tile.size + a_panels.size : work.size - lanes_of(work) * lanes_of(work)]
    spare = work[work.size - lanes_of(work) * lanes_of(work) :]
    column_blocks = -(-columns // column_block)
    i = task // column_blocks * row_block
    j = task % column_blocks * column_block
    height = min(row_block, rows - i)
    breadth = min(column_block, columns - j)
    start = i * columns + j
    for k in range(0, depth, DEPTH_BLOCK):
        steps = min(DEPTH_BLOCK, depth - k)
        pack(a, i * a_row + k * a_depth, a_row, a_depth, height, steps, TILE_ROWS, a_panels, 0, spare)
        pack(b, j * b_column + k * b_depth, b_column, b_depth, breadth, steps, width, b_panels, 0, spare)
        _block_product(a_panels, b_panels, steps, height, breadth, tile, out, start, columns, k == 0)
    if bias.size or relu:
        epilogue(height, breadth, bias, j, relu, out, start, columns)


@body
def _blocks(rows, columns, depth, width):
    """Output block of one task: whole tiles, halved while there are fewer than 16 tasks and enough work in each."""
    row_tiles, column_tiles = ROW_TILES, COLUMN_TILES
    while row_tiles * column_tiles > 1:
        height, breadth = min(rows, row_tiles * TILE_ROWS), min(columns, column_tiles * width)
        if height * breadth * depth <= LEAST_WORK:
            break
        tasks = -(-rows // (row_tiles * TILE_ROWS)) * -(-columns // (column_tiles * width))
        if tasks >= 16:
            break
        if row_tiles >= column_tiles:
            row_tiles //= 2
        else:
            column_tiles //= 2
    return row_tiles * TILE_ROWS, column_tiles * width


@inlined
def columns_in_place(columns, b_column, width):
    """How many columns of the right operand fill tiles where they lie."""
    return columns - columns % width if b_column == 1 else 0


@body
def pack_task(task, first, columns, depth, b, b_depth, b_column, panels, spare):
    """Pack one panel of ``packed_gemm``'s right operand; first: the column that panels begin with."""
    lanes, width = lanes_of(panels), TILE_BYTES // panels.itemsize
    column, at = first + task * width, task * (width * depth + lanes)
    pack(b, column * b_column, b_column, b_depth, min(width, columns - column), depth, width, panels, at, spare)


@body
def slim_row_task(task, rows, columns, depth, a, a_row, a_depth, right, step, bias, relu, out, tile):
    """As ``row_task``, of a right operand of a vector of columns at most, ``step`` from row to row."""
    row = task * TILE_ROWS
    height = min(TILE_ROWS, rows - row)
    for k in range(0, depth, DEPTH_BLOCK):
        steps = min(DEPTH_BLOCK, depth - k)
        slim_product_in_place(a, row * a_row + k * a_depth, a_row, a_depth, height, right, k * step, step, steps, tile)
        store_tile(tile, lanes_of(out), height, columns, out, row * columns, columns, k == 0)
    if bias.size or relu:
        epilogue(height, columns, bias, 0, relu, out, row * columns, columns)


@body
def row_task(task, rows, columns, depth, a, a_row, a_depth, b, b_depth, first, panels, bias, relu, out, tile):
    """TILE_ROWS rows of ``packed_gemm``'s output; first: the column that panels begin with."""
    lanes, width, row = lanes_of(out), TILE_BYTES // out.itemsize, task * TILE_ROWS
    height = min(TILE_ROWS, rows - row)
    if columns <= lanes:
        slim_row_task(task, rows, columns, depth, a, a_row, a_depth, panels, width, bias, relu, out, tile)
        return
    for j in range(0, columns, width):
        right, at, step = b, j, b_depth
        if j >= first:
            right, at, step = panels, (j - first) // width * (width * depth + lanes), width
        for k in range(0, depth, DEPTH_BLOCK):
            steps = min(DEPTH_BLOCK, depth - k)
            tile_product_in_place(
                a, row * a_row + k * a_depth, a_row, a_depth, height, right, at + k * step, step, steps, tile
            )  # fmt: skip
            store_tile(tile, width, height, min(width, columns - j), out, row * columns + j, columns, k == 0)
    if bias.size or relu:
        epilogue(height, columns, bias, 0, relu, out, row * columns, columns)


@driver
def packed_gemm(rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column, bias, relu, out, panels, room, parallel):
    """As ``gemm``, of small operands: the right one is packed whole, or only where it does not fill a tile in place.

    panels: flat, room for it, a vector between two, which one thread may write into; room: (threads, elements), a tile
    and a square of vectors. See ``packed_elements``.
    """
    width = TILE_BYTES // panels.itemsize
    first = columns_in_place(columns, b_column, width)
    packs, row_tasks = -(-(columns - first) // width), -(-rows // TILE_ROWS)
    tile = TILE_ROWS * width
    if parallel:
        for task in prange(packs):
            pack_task(int64(task), first, columns, depth, b, b_depth, b_column, panels, room[get_thread_id()][tile:])
        for task in prange(row_tasks):
            row_task(
                int64(task), rows, columns, depth, a, a_row, a_depth, b, b_depth, first, panels, bias, relu, out,
                room[get_thread_id()][:tile],
            )  # fmt: skip
    else:
        for task in range(packs):
            pack_task(task, first, columns, depth, b, b_depth, b_column, panels, room[0][tile:])
        for task in range(row_tasks):
            row_task(
                task, rows, columns, depth, a, a_row, a_depth, b, b_depth, first, panels, bias, relu, out,
                room[0][:tile],
            )  # fmt: skip


@driver
def gemm(rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column, bias, relu, out, workspace, parallel):
    """out = relu(a b + bias): out (rows x columns) row-major, depth >= 1, bias flat per column or empty.

    a[i, k] lies at i * a_row + k * a_depth, b[k, j] at k * b_depth + j * b_column. workspace: (threads, elements).
    """
    row_block, column_block = _blocks(rows, columns, depth, TILE_BYTES // workspace.itemsize)
    tasks = -(-rows // row_block) * -(-columns // column_block)
    if parallel:
        for task in prange(tasks):
            _gemm_block(
                int64(task), row_block, column_block, rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column,
                bias, relu, out, workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _gemm_block(
                task, row_block, column_block, rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column,
                bias, relu, out, workspace[0],
            )  # fmt: skip
