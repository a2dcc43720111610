"""What Numba cannot say and LLVM can: explicit vectors, and the shape of register tiles on this host."""

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

# Where a prefetch leads, as LLVM counts them.
FIRST_CACHE, SECOND_CACHE = 3, 2

# Rows of the tile of products summed over pixels, where a vector has as many lanes.
OUTER_ROWS = 8 if TILE_ROWS >= 12 else 4


def index(value):
    """A constant that addresses are reckoned with."""
    return ir.Constant(ir.IntType(64), value)


def data_of(context, builder, array_type, array):
    """The pointer to an array's first element."""
    return context.make_array(array_type)(context, builder, array).data


class Vectors:
    """Loads, stores and multiply-adds of whole vectors of one element type."""

    def __init__(self, context, builder, dtype):
        self.builder = builder
        self.itemsize = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.itemsize
        self.type = ir.VectorType(context.get_value_type(dtype), self.lanes)
        self.zero = ir.Constant(self.type, [0.0] * self.lanes)

    def _at(self, pointer, offset):
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.type.as_pointer())

    def load(self, pointer, offset):
        return self.builder.load(self._at(pointer, offset), align=self.itemsize)

    def store(self, value, pointer, offset):
        self.builder.store(value, self._at(pointer, offset), align=self.itemsize)

    def broadcast(self, scalar):
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def registers(self, count):
        """Variables that LLVM keeps in registers."""
        return [cgutils.alloca_once(self.builder, self.type) for _ in range(count)]

    def stream(self, value, pointer, offset):
        """Store past the caches, at a multiple of a vector's size."""
        written = self.builder.store(value, self._at(pointer, offset), align=VECTOR_BYTES)
        written.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))

    def prefetch(self, pointer, offset, level=FIRST_CACHE, write=False):
        """Have the cache line at ``offset`` read soon; it may lie beyond the array."""
        integer = ir.IntType(32)
        place = self.builder.bitcast(self.builder.gep(pointer, [offset]), ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [place.type, integer, integer, integer])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, "llvm.prefetch.p0")
        self.builder.call(function, [place, *(ir.Constant(integer, number) for number in (int(write), level, 1))])

    def add_product(self, total, a, b):
        product = self.builder.fmul(a, b, flags=("contract",))
        self.builder.store(self.builder.fadd(self.builder.load(total), product, flags=("contract",)), total)


@intrinsic
def transpose(typingctx, source, start, stride, target, at, apart, streaming):
    """target[at + j * apart + i] = source[start + i * stride + j], for i and j below the lanes of a vector.

    By perfect shuffles: log2(lanes) times, the first half of the rows is interleaved with the second. streaming: past
    the caches, into whole vectors.
    """

    def codegen(context, builder, signature, arguments):
        source_type, _, _, target_type, *_ = signature.args
        source_array, first, step, target_array, place, target_step, streaming = arguments
        vectors = Vectors(context, builder, source_type.dtype)
        lanes = vectors.lanes
        origin = builder.gep(data_of(context, builder, source_type, source_array), [first])
        goal = builder.gep(data_of(context, builder, target_type, target_array), [place])
        rows = [vectors.load(origin, builder.mul(step, index(i))) for i in range(lanes)]
        halves = [[i // 2 + half * lanes // 2 + i % 2 * lanes for i in range(lanes)] for half in range(2)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), half) for half in halves]
        for _ in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [builder.shuffle_vector(upper, lower, mask) for upper, lower in pairs for mask in masks]
        with builder.if_else(streaming) as (streamed, kept):
            for branch, write in (streamed, vectors.stream), (kept, vectors.store):
                with branch:
                    for j, row in enumerate(rows):
                        write(row, goal, builder.mul(target_step, index(j)))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, i64, target, i64, i64, types.boolean), codegen
