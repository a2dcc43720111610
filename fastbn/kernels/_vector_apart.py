"""Registers that lie apart in memory as one vector: a tile of pixels, a register each, as arithmetic sees it.

``step``: elements from one register to the next. ``table``: where they lie from ``start`` on, entry ``at`` the first.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import I32, I64, joined, parts_of, vector_of
from fastbn.kernels._vector_memory import Memory


def _count(array, value):
    """Registers of a vector."""
    return value.lanes // vector_of(array).lanes


def _by_step(builder, start, step, count):
    return [builder.add(start, builder.mul(step, ir.Constant(I64, k))) for k in range(count)]


def _by_table(context, builder, start, table_type, table, at, count):
    first = builder.gep(context.make_array(table_type)(context, builder, table).data, [at])
    return [builder.add(start, builder.load(builder.gep(first, [ir.Constant(I64, k)]))) for k in range(count)]


def _load(context, builder, array_type, array, offsets):
    registers = []
    for offset in offsets:
        memory = Memory(context, builder, array_type, array, offset)
        registers.append(memory.load(vector_of(array_type)))
    return joined(builder, registers)


@intrinsic
def load_by_step(typingctx, array, start, step, like):
    """A vector of as many registers as ``like``."""

    def codegen(context, builder, signature, arguments):
        offsets = _by_step(builder, *arguments[1:3], _count(array, like))
        return _load(context, builder, array, arguments[0], offsets)

    return like(array, types.int64, types.int64, like), codegen


@intrinsic
def load_by_table(typingctx, array, start, table, at, like):
    """A vector of as many registers as ``like``."""

    def codegen(context, builder, signature, arguments):
        offsets = _by_table(context, builder, arguments[1], table, *arguments[2:4], _count(array, like))
        return _load(context, builder, array, arguments[0], offsets)

    return like(array, types.int64, table, types.int64, like), codegen


def _store(context, builder, array_type, array, offsets, value, streaming):
    for offset, register in zip(offsets, parts_of(builder, value, vector_of(array_type).lanes), strict=True):
        memory = Memory(context, builder, array_type, array, offset)
        align = memory.itemsize * (memory.vector.count if streaming else 1)
        for written in memory.store(register, align):
            if streaming:
                written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))


def _stores_by_step(streaming):
    @intrinsic
    def store(typingctx, array, start, step, value):
        def codegen(context, builder, signature, arguments):
            offsets = _by_step(builder, *arguments[1:3], _count(array, value))
            _store(context, builder, array, arguments[0], offsets, arguments[3], streaming)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64, value), codegen

    return store


def _stores_by_table(streaming):
    @intrinsic
    def store(typingctx, array, start, table, at, value):
        def codegen(context, builder, signature, arguments):
            offsets = _by_table(context, builder, arguments[1], table, *arguments[2:4], _count(array, value))
            _store(context, builder, array, arguments[0], offsets, arguments[4], streaming)
            return context.get_dummy_value()

        return types.void(array, types.int64, table, types.int64, value), codegen

    return store


_store_by_step, _stream_by_step = _stores_by_step(False), _stores_by_step(True)
_store_by_table, _stream_by_table = _stores_by_table(False), _stores_by_table(True)


@inlined
def put_by_step(array, start, step, value, streaming):
    """Write every register: past the caches if ``streaming``, to whole lines."""
    if streaming:
        _stream_by_step(array, start, step, value)
    else:
        _store_by_step(array, start, step, value)


@inlined
def put_by_table(array, start, table, at, value, streaming):
    """Write every register: past the caches if ``streaming``, to whole lines."""
    if streaming:
        _stream_by_table(array, start, table, at, value)
    else:
        _store_by_table(array, start, table, at, value)


@intrinsic
def first_register(typingctx, array, value):
    """Of a vector that ``array`` computes in."""
    register = vector_of(array)

    def codegen(context, builder, signature, arguments):
        return parts_of(builder, arguments[1], register.lanes)[0]

    return register(array, value), codegen


@intrinsic
def sum_of_registers(typingctx, array, value):
    """Lane by lane, of a vector that ``array`` computes in; pairs first."""
    register = vector_of(array)

    def codegen(context, builder, signature, arguments):
        parts = parts_of(builder, arguments[1], register.lanes)
        while len(parts) > 1:
            parts = [builder.fadd(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return register(array, value), codegen
