"""Matrix products from packed panels: the engine of the linear layer.

A panel holds, for each step k of the summed axis, the values of ``width`` lanes side by side: rows of the left
operand in panels of TILE_ROWS, columns of the right one in panels as wide as the register tile. Lanes past the edge
are zero, so ``tile_product`` needs no case for them. All arrays are flat and addressed by element strides.
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS, tile_product

DEPTH_BLOCK = 256  # steps of the summed axis between two visits to the output; a panel block stays in L2
ROW_TILES = 16
COLUMN_TILES = 8


def tile_columns(itemsize: int) -> int:
    """Columns of the register tile for elements of ``itemsize`` bytes."""
    return TILE_BYTES // itemsize


def gemm_workspace(itemsize: int) -> int:
    """Elements of workspace that one thread of ``gemm`` needs."""
    columns = tile_columns(itemsize)
    return TILE_ROWS * columns + DEPTH_BLOCK * (ROW_TILES * TILE_ROWS + COLUMN_TILES * columns)


@body
def pack(source, start, lane_stride, depth_stride, lanes, depth, width, panels, at):
    """Copy a lanes x depth operand into panels of ``width`` lanes."""
    for first in range(0, lanes, width):
        base = at + first * depth
        used = min(width, lanes - first)
        origin = start + first * lane_stride
        if used < width:
            for k in range(depth * width):
                panels[base + k] = 0
        if lane_stride == 1:
            for k in range(depth):
                for i in range(used):
                    panels[base + k * width + i] = source[origin + k * depth_stride + i]
        else:
            for i in range(used):
                for k in range(depth):
                    panels[base + k * width + i] = source[origin + k * depth_stride + i * lane_stride]


@body
def _store_tile(tile, width, rows, columns, out, start, row_stride, first):
    for i in range(rows):
        base = start + i * row_stride
        for j in range(columns):
            value = tile[i * width + j]
            if first:
                out[base + j] = value
            else:
                out[base + j] += value


@body
def _block_product(a_panels, b_panels, depth, rows, columns, tile, out, start, row_stride, first):
    """out (rows x columns, rows ``row_stride`` apart) = or += the packed left operand times the right one."""
    width = tile.size // TILE_ROWS
    for j in range(0, columns, width):
        for i in range(0, rows, TILE_ROWS):
            tile_product(a_panels, i * depth, b_panels, j * depth, depth, tile)
            height, breadth = min(TILE_ROWS, rows - i), min(width, columns - j)
            _store_tile(tile, width, height, breadth, out, start + i * row_stride + j, row_stride, first)


@body
def _epilogue(rows, columns, bias, bias_start, relu, out, start, row_stride):
    for i in range(rows):
        base = start + i * row_stride
        for j in range(columns):
            value = out[base + j]
            if bias.size:
                value += bias[bias_start + j]
            if relu and value < 0:
                value = 0
            out[base + j] = value


@body
def _gemm_block(
    task, row_block, column_block, rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column, bias, relu, out, work
):
    width = TILE_BYTES // work.itemsize
    tile = work[: TILE_ROWS * width]
    a_panels = work[tile.size : tile.size + DEPTH_BLOCK * ROW_TILES * TILE_ROWS]
    b_panels = work[tile.size + a_panels.size :]
    column_blocks = -(-columns // column_block)
    i = task // column_blocks * row_block
    j = task % column_blocks * column_block
    height = min(row_block, rows - i)
    breadth = min(column_block, columns - j)
    start = i * columns + j
    for k in range(0, depth, DEPTH_BLOCK):
        steps = min(DEPTH_BLOCK, depth - k)
        pack(a, i * a_row + k * a_depth, a_row, a_depth, height, steps, TILE_ROWS, a_panels, 0)
        pack(b, j * b_column + k * b_depth, b_column, b_depth, breadth, steps, width, b_panels, 0)
        _block_product(a_panels, b_panels, steps, height, breadth, tile, out, start, columns, k == 0)
    if bias.size or relu:
        _epilogue(height, breadth, bias, j, relu, out, start, columns)


@body
def _blocks(rows, columns, width):
    """Output block of one task: whole tiles, halved while there are fewer than 16 tasks."""
    row_tiles, column_tiles = ROW_TILES, COLUMN_TILES
    while row_tiles * column_tiles > 1:
        tasks = -(-rows // (row_tiles * TILE_ROWS)) * -(-columns // (column_tiles * width))
        if tasks >= 16:
            break
        if row_tiles >= column_tiles:
            row_tiles //= 2
        else:
            column_tiles //= 2
    return row_tiles * TILE_ROWS, column_tiles * width


@driver
def gemm(rows, columns, depth, a, a_row, a_depth, b, b_depth, b_column, bias, relu, out, workspace, parallel):
    """out = relu(a b + bias): out (rows x columns) row-major, depth >= 1, bias flat per column or empty.

    a[i, k] lies at i * a_row + k * a_depth, b[k, j] at k * b_depth + j * b_column. workspace: (threads, elements).
    """
    row_block, column_block = _blocks(rows, columns, TILE_BYTES // workspace.itemsize)
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
