"""What Numba cannot say and LLVM can: a register tile of a matrix product, with explicit vectors."""

import platform

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _tile_for_host() -> tuple[int, int, int]:
    """Rows, vectors a row and bytes a vector of the register tile: all registers but those for the operands."""
    features = get_host_cpu_features()
    if features.get("avx512f"):  # 32 registers: 28 sums, 2 vectors, 1 broadcast
        return 14, 2, 64
    if features.get("avx2"):  # 16 registers: 12 sums, 2 vectors, 1 broadcast
        return 6, 2, 32
    if platform.machine() in ("aarch64", "arm64"):  # 32 registers
        return 12, 2, 16
    return 6, 2, 16


TILE_ROWS, TILE_VECTORS, VECTOR_BYTES = _tile_for_host()
# Columns of the tile: for float32, and half of them for float64.
TILE_BYTES = TILE_VECTORS * VECTOR_BYTES


@intrinsic
def tile_product(typingctx, a, a_start, b, b_start, depth, tile):
    """tile[i, j] = sum over k < depth of a[a_start + k * TILE_ROWS + i] * b[b_start + k * columns + j].

    a, b: flat arrays holding packed panels; tile: flat, TILE_ROWS * columns, overwritten.
    columns = TILE_BYTES / itemsize.
    """

    def codegen(context, builder, signature, arguments):
        a_type, _, b_type, _, _, tile_type = signature.args
        a_array, a_first, b_array, b_first, count, tile_array = arguments

        def data(array_type, array):
            return context.make_array(array_type)(context, builder, array).data

        def index(value):
            return ir.Constant(ir.IntType(64), value)

        itemsize = a_type.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // itemsize
        vector = ir.VectorType(context.get_value_type(a_type.dtype), lanes)
        broadcast = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        undefined = ir.Constant(vector, ir.Undefined)

        def vector_at(pointer, offset):
            return builder.bitcast(builder.gep(pointer, [offset]), vector.as_pointer())

        a_panel = builder.gep(data(a_type, a_array), [a_first])
        b_panel = builder.gep(data(b_type, b_array), [b_first])
        tile_data = data(tile_type, tile_array)

        sums = [cgutils.alloca_once(builder, vector) for _ in range(TILE_ROWS * TILE_VECTORS)]
        for total in sums:
            builder.store(ir.Constant(vector, [0.0] * lanes), total)
        with cgutils.for_range(builder, count) as loop:
            a_row = builder.gep(a_panel, [builder.mul(loop.index, index(TILE_ROWS))])
            b_row = builder.gep(b_panel, [builder.mul(loop.index, index(TILE_VECTORS * lanes))])
            columns = [builder.load(vector_at(b_row, index(j * lanes)), align=itemsize) for j in range(TILE_VECTORS)]
            for i in range(TILE_ROWS):
                scalar = builder.load(builder.gep(a_row, [index(i)]))
                first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
                row = builder.shuffle_vector(first, undefined, broadcast)
                for j, column in enumerate(columns):
                    total = sums[i * TILE_VECTORS + j]
                    product = builder.fmul(row, column, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        for position, total in enumerate(sums):
            builder.store(builder.load(total), vector_at(tile_data, index(position * lanes)), align=itemsize)
        return context.get_dummy_value()

    return types.void(a, types.int64, b, types.int64, types.int64, tile), codegen
