"""The gradients of a small linear layer in one launch, by ``gemm``'s tiles of operands that lie in rows."""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS
from fastbn.kernels._vector import lanes_of, narrow, splat, widen
from fastbn.kernels._vector_memory import load_part, store_part
from fastbn.kernels.gemm import columns_in_place, pack_task, row_task


@body
def _sum_columns(task, dy, rows, outputs, dbias):
    """dbias = the sums of a vector of columns of dy, in float64."""
    zero, first = splat(dy, 0.0), task * lanes_of(dy)
    count, total = min(lanes_of(dy), outputs - first), widen(zero)
    for at in range(first, rows * outputs, outputs):
        total = total + widen(load_part(dy, at, count, zero))
    store_part(dbias, first, narrow(dbias, total), count)


@inlined
def last_columns(inputs, panels):
    """Right operands whose last columns do not fill a tile, of two."""
    return 2 if inputs % (TILE_BYTES // panels.itemsize) else 0


@body
def pack_last_columns(task, shape, x, weight, panels, cut, spare):
    """Pack them, of the weight (task 0) or of x (task 1)."""
    rows, inputs, outputs = shape
    right, depth, room = weight, outputs, panels[:cut]
    if task == 1:
        right, depth, room = x, rows, panels[cut:]
    first = columns_in_place(inputs, 1, TILE_BYTES // panels.itemsize)
    pack_task(0, first, inputs, depth, right, inputs, 1, room, spare)


@body
def _prepare_task(task, packs, shape, dy, x, weight, panels, cut, spare, dbias):
    """Pack last columns, then sum a vector of columns."""
    if task < packs:
        pack_last_columns(task, shape, x, weight, panels, cut, spare)
    else:
        _sum_columns(task - packs, dy, shape[0], shape[2], dbias)


@body
def multiply_part(part, parts, shape, dy, x, weight, panels, cut, dx, dweight, tile):
    """One thread's share of the rows of dx, and of dweight: of as much work, whatever their number."""
    rows, inputs, outputs = shape
    first, nothing = columns_in_place(inputs, 1, TILE_BYTES // panels.itemsize), dy[:0]
    tasks, other = -(-rows // TILE_ROWS) if dx.size else 0, parts - 1 - part
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        row_task(
            task, rows, inputs, outputs, dy, outputs, 1, weight, inputs, first, panels[:cut], nothing, False, dx, tile
        )
    tasks = -(-outputs // TILE_ROWS)
    for task in range(other * tasks // parts, (other + 1) * tasks // parts):
        row_task(
            task, outputs, inputs, rows, dy, 1, outputs, x, inputs, first, panels[cut:], nothing, False, dweight, tile
        )


@driver
def linear_gradients(shape, dy, x, weight, dx, dweight, dbias, panels, cut, room, parts, parallel):
    """dx = dy weight, dweight = dy^T x, dbias = the sum of dy's rows; dx and dbias empty where they are not needed.

    shape: rows, inputs, outputs; all arrays flat. panels: what is packed of the weight, ``cut`` elements, and of x;
    room: (threads, elements); see ``packed_gemm``. parts: threads.
    """
    packs = last_columns(shape[1], panels)
    tasks = packs - (-dbias.size // lanes_of(dy))
    tile = TILE_ROWS * (TILE_BYTES // panels.itemsize)
    if parallel:
        for task in prange(tasks):
            spare = room[get_thread_id()][tile:]
            _prepare_task(int64(task), packs, shape, dy, x, weight, panels, cut, spare, dbias)
        for part in prange(parts):
            multiply_part(
                int64(part), parts, shape, dy, x, weight, panels, cut, dx, dweight, room[get_thread_id()][:tile]
            )
    else:
        for task in range(tasks):
            _prepare_task(task, packs, shape, dy, x, weight, panels, cut, room[0][tile:], dbias)
        multiply_part(0, 1, shape, dy, x, weight, panels, cut, dx, dweight, room[0][:tile])
