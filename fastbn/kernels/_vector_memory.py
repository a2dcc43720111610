"""Vectors read from memory, asked for ahead and written; see ``_vector``.

Offsets count elements from the start of a C-contiguous array of any rank. ``load_two`` and ``load_four`` read as many
registers that lie side by side.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import (
    DOUBLE,
    HALF,
    I16,
    I32,
    I64,
    below,
    call,
    constant,
    integers,
    joined,
    lanes_of,
    parts_of,
    vector_of,
)


class Memory:
    """An array as registers lie in it: the stored type, and the way to the computed one and back."""

    def __init__(self, context, builder, array_type, array, offset):
        self.builder = builder
        self.dtype = array_type.dtype
        self.vector = context.get_value_type(vector_of(array_type))
        lanes = self.vector.count
        self.stored = self.vector if self.dtype in (types.float32, types.float64) else integers(lanes, I16)
        self.itemsize = self.dtype.bitwidth // 8
        data = context.make_array(array_type)(context, builder, array).data
        self.pointer = builder.bitcast(builder.gep(data, [offset]), self.stored.as_pointer())
        kind = {types.float32: "f32", types.float64: "f64"}.get(self.dtype, "i16")
        self.suffix = f"v{lanes}{kind}.p0"

    def load(self, vector):
        """The vector of type ``vector``, its registers in the order in which they lie."""
        places = (self.place(k) for k in range(vector.lanes // self.vector.count))
        registers = [self.computed(self.builder.load(place, align=self.itemsize)) for place in places]
        return joined(self.builder, registers)

    def store(self, value, align):
        """Write a vector, as ``load`` reads it; the instructions."""
        registers = enumerate(parts_of(self.builder, value, self.vector.count))
        return [self.builder.store(self.rounded(register), self.place(k), align=align) for k, register in registers]

    def place(self, k):
        return self.builder.gep(self.pointer, [ir.Constant(I64, k)]) if k else self.pointer

    def computed(self, stored):
        builder, lanes = self.builder, self.vector.count
        if self.dtype == types.uint16:
            return builder.fpext(builder.bitcast(stored, ir.VectorType(HALF, lanes)), self.vector)
        if self.dtype == types.int16:
            wide = builder.shl(builder.zext(stored, integers(lanes)), constant(integers(lanes), 16))
            return builder.bitcast(wide, self.vector)
        return stored

    def rounded(self, value):
        """To the stored type, to the nearest, ties to even."""
        builder, lanes = self.builder, self.vector.count
        if self.dtype == types.uint16:
            return builder.bitcast(builder.fptrunc(value, ir.VectorType(HALF, lanes)), self.stored)
        if self.dtype == types.int16:
            wide = integers(lanes)
            bits = builder.bitcast(value, wide)
            odd = builder.and_(builder.lshr(bits, constant(wide, 16)), constant(wide, 1))
            carried = builder.add(builder.add(bits, constant(wide, 0x7FFF)), odd)
            quiet = builder.or_(bits, constant(wide, 0x400000))  # a NaN must not be carried into infinity
            kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, carried)
            return builder.trunc(builder.lshr(kept, constant(wide, 16)), self.stored)
        return value


def _load(registers):
    @intrinsic
    def load(typingctx, array, offset):
        """The vector at ``offset``."""
        vector = vector_of(array, registers)

        def codegen(context, builder, signature, arguments):
            return Memory(context, builder, array, *arguments).load(vector)

        return vector(array, types.int64), codegen

    return load


load, load_two, load_four = _load(1), _load(2), _load(4)


@intrinsic
def load_like(typingctx, array, offset, like):
    """The vector at ``offset``, of as many elements as ``like``."""

    def codegen(context, builder, signature, arguments):
        return Memory(context, builder, array, *arguments[:2]).load(like)

    return like(array, types.int64, like), codegen


def _ask(builder, place, *hints):
    numbers = [ir.Constant(I32, number) for number in (*hints, 1)]  # data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [builder.bitcast(place, ir.IntType(8).as_pointer()), *numbers])


def _prefetch(*hints):
    @intrinsic
    def prefetch(typingctx, array, offset):
        """Have the cache line at ``offset`` ready soon; it may lie beyond the array."""

        def codegen(context, builder, signature, arguments):
            _ask(builder, Memory(context, builder, array, *arguments).pointer, *hints)
            return context.get_dummy_value()

        return types.void(array, types.int64), codegen

    return prefetch


prefetch = _prefetch(0, 3)  # to be read, into every cache


prefetch_far = _prefetch(0, 2)  # to be read, into all caches but the first


prefetch_to_write = _prefetch(1, 3)


@intrinsic
def prefetch_far_like(typingctx, array, offset, like):
    """``prefetch_far`` of the vector at ``offset``, of as many elements as ``like``."""

    def codegen(context, builder, signature, arguments):
        memory = Memory(context, builder, array, *arguments[:2])
        for k in range(like.lanes // memory.vector.count):
            _ask(builder, memory.place(k), 0, 2)
        return context.get_dummy_value()

    return types.void(array, types.int64, like), codegen


@intrinsic
def load_first(typingctx, array, offset, count, fill):
    """The first ``count`` elements at ``offset``, then ``fill``; nothing beyond them is read."""

    def codegen(context, builder, signature, arguments):
        memory = Memory(context, builder, array, *arguments[:2])
        mask = below(builder, arguments[2], memory.vector.count)
        align, nothing = ir.Constant(I32, memory.itemsize), ir.Constant(memory.stored, ir.Undefined)
        operands = [memory.pointer, align, mask, nothing]
        stored = call(builder, f"llvm.masked.load.{memory.suffix}", memory.stored, operands)
        return builder.select(mask, memory.computed(stored), arguments[3])

    vector = vector_of(array)
    return vector(array, types.int64, types.int64, vector), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """Write a vector at ``offset``."""

    def codegen(context, builder, signature, arguments):
        memory = Memory(context, builder, array, *arguments[:2])
        memory.store(arguments[2], memory.itemsize)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def stream(typingctx, array, offset, value):
    """Write a vector past the caches at ``offset``, a multiple of a register in address; ``fence`` after all."""

    def codegen(context, builder, signature, arguments):
        memory = Memory(context, builder, array, *arguments[:2])
        for written in memory.store(arguments[2], memory.itemsize * memory.vector.count):
            written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@inlined
def put(array, offset, value, streaming):
    """``stream`` or ``store``."""
    if streaming:
        stream(array, offset, value)
    else:
        store(array, offset, value)


@intrinsic
def store_first(typingctx, array, offset, value, count):
    """Write the first ``count`` elements of a vector at ``offset`` and nothing beyond them."""

    def codegen(context, builder, signature, arguments):
        memory = Memory(context, builder, array, *arguments[:2])
        mask = below(builder, arguments[3], memory.vector.count)
        operands = [memory.rounded(arguments[2]), memory.pointer, ir.Constant(I32, memory.itemsize), mask]
        call(builder, f"llvm.masked.store.{memory.suffix}", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector_of(array), types.int64), codegen


@inlined
def load_part(array, offset, count, fill):
    """``load``, or ``load_first`` where ``count`` is less than a vector."""
    if count == lanes_of(array):
        return load(array, offset)
    return load_first(array, offset, count, fill)


@inlined
def store_part(array, offset, value, count):
    """``store``, or ``store_first`` where ``count`` is less than a vector."""
    if count == lanes_of(array):
        store(array, offset, value)
    else:
        store_first(array, offset, value, count)


@intrinsic
def fence(typingctx):
    """Let other threads see what was streamed."""

    def codegen(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def element(typingctx, array, offset):
    """One element, in float64."""

    def codegen(context, builder, signature, arguments):
        memory = Memory(context, builder, array, *arguments)
        stored = builder.load(builder.bitcast(memory.pointer, memory.stored.element.as_pointer()))
        lane = builder.insert_element(ir.Constant(memory.stored, ir.Undefined), stored, ir.Constant(I32, 0))
        number = builder.extract_element(memory.computed(lane), ir.Constant(I32, 0))
        return number if number.type == DOUBLE else builder.fpext(number, DOUBLE)

    return types.float64(array, types.int64), codegen


@intrinsic
def set_to(typingctx, sums, offset, value):
    """sums[offset :] = value, lane by lane; float64."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(sums)(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), arguments[2].type.as_pointer())
        builder.store(arguments[2], pointer, align=8)
        return context.get_dummy_value()

    return types.void(sums, types.int64, value), codegen


@intrinsic
def add_to(typingctx, sums, offset, value):
    """sums[offset :] += value, lane by lane; float64."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(sums)(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), arguments[2].type.as_pointer())
        builder.store(builder.fadd(builder.load(pointer, align=8), arguments[2]), pointer, align=8)
        return context.get_dummy_value()

    return types.void(sums, types.int64, value), codegen
