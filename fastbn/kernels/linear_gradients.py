"""The gradients of a small linear layer in one launch, from packed panels, see ``gemm``."""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS
from fastbn.kernels._vector import lanes_of, load_part, narrow, splat, store_part, widen
from fastbn.kernels.gemm import pack_task, row_task


@body
def _sum_columns(task, dy, rows, outputs, dbias):
    """dbias = the sums of a vector of columns of dy, in float64."""
    zero, first = splat(dy, 0.0), task * lanes_of(dy)
    count, total = min(lanes_of(dy), outputs - first), widen(zero)
    for at in range(first, rows * outputs, outputs):
        total = total + widen(load_part(dy, at, count, zero))
    store_part(dbias, first, narrow(dbias, total), count)


@body
def _prepare_task(task, shape, dy, x, weight, ends, panels, cut, spare, dbias):
    """Pack a panel of an operand of dx, then of dweight; then the sums."""
    rows, inputs, outputs = shape
    if task >= ends[1]:
        _sum_columns(task - ends[1], dy, rows, outputs, dbias)
        return
    at, height, depth, dy_row, dy_depth, other, room = task, rows, outputs, outputs, 1, weight, panels[:cut]
    if task >= ends[0]:
        at, height, depth, dy_row, dy_depth, other, room = task - ends[0], outputs, rows, 1, outputs, x, panels[cut:]
    pack_task(at, height, inputs, depth, dy, dy_row, dy_depth, other, inputs, 1, room, spare)


@body
def _multiply_task(task, shape, row_panels, nothing, panels, cut, dx, dweight, tile):
    """Rows of dx, then of dweight."""
    rows, inputs, outputs = shape
    at, height, depth, room, out = task, rows, outputs, panels[:cut], dx
    if task >= row_panels:
        at, height, depth, room, out = task - row_panels, outputs, rows, panels[cut:], dweight
    row_task(at, height, inputs, depth, room, nothing, False, out, tile)


@driver
def linear_gradients(shape, dy, x, weight, dx, dweight, dbias, panels, cut, room, parallel):
    """dx = dy weight, dweight = dy^T x, dbias = the sum of dy's rows; dx and dbias empty where they are not needed.

    shape: rows, inputs, outputs; all arrays flat. panels: of dx, ``cut`` elements, and of dweight; room: (threads,
    elements); see ``packed_gemm``.
    """
    rows, inputs, outputs = shape
    row_panels = -(-rows // TILE_ROWS) if dx.size else 0
    columns = -(-inputs // (TILE_BYTES // panels.itemsize))
    data = row_panels + columns if dx.size else 0
    ends = data, data - (-outputs // TILE_ROWS) + columns
    sums = -(-dbias.size // lanes_of(dy))
    tile, nothing = TILE_ROWS * (TILE_BYTES // panels.itemsize), dy[:0]
    products = row_panels - (-outputs // TILE_ROWS)
    if parallel:
        for task in prange(ends[1] + sums):
            spare = room[get_thread_id()][tile:]
            _prepare_task(int64(task), shape, dy, x, weight, ends, panels, cut, spare, dbias)
        for task in prange(products):
            _multiply_task(
                int64(task), shape, row_panels, nothing, panels, cut, dx, dweight, room[get_thread_id()][:tile]
            )
    else:
        for task in range(ends[1] + sums):
            _prepare_task(task, shape, dy, x, weight, ends, panels, cut, room[0][tile:], dbias)
        for task in range(products):
            _multiply_task(task, shape, row_panels, nothing, panels, cut, dx, dweight, room[0][:tile])
