"""Lanes that are chosen: by the sign of others, as a ReLU does, by stored bits, by which is larger."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbn.kernels._vector import (
    DOUBLE,
    DOUBLES,
    I32,
    I64,
    SINGLES,
    Vector,
    below,
    call,
    constant,
    in_every_lane,
    joined,
    parts_of,
    splatted,
    vector_of,
)


def _positive(builder, value):
    """The mask of what a ReLU lets pass: above 0, or NaN."""
    return builder.fcmp_unordered(">", value, constant(value.type, 0.0))


@intrinsic
def where_positive(typingctx, sign, value):
    """``value`` where ``sign`` is above 0 or NaN, else 0."""

    def codegen(context, builder, signature, arguments):
        return builder.select(_positive(builder, arguments[0]), arguments[1], constant(arguments[1].type, 0.0))

    return value(value, value), codegen


@intrinsic
def where_passed(typingctx, sign, value, relu):
    """``value`` where a ReLU lets ``sign`` pass: above 0, below ``relu`` if that is a number, or NaN; else 0."""

    def codegen(context, builder, signature, arguments):
        sign, value, relu = arguments
        mask = _positive(builder, sign)
        if isinstance(signature.args[2], types.Float):
            mask = builder.and_(mask, builder.fcmp_unordered("<", sign, in_every_lane(builder, sign, relu)))
        return builder.select(mask, value, constant(value.type, 0.0))

    return value(value, value, relu), codegen


@intrinsic
def places(typingctx, array, place):
    """An int32 for each lane of a vector of ``array``."""
    vector = Vector(types.int32, vector_of(array).lanes)

    def codegen(context, builder, signature, arguments):
        return splatted(builder, builder.trunc(arguments[1], I32), vector.lanes)

    return vector(array, types.int64), codegen


def _is_larger(builder, best, value):
    """The mask of what replaces the best so far: a larger value, or the first NaN."""
    number = builder.fcmp_ordered("ord", best, best)
    return builder.and_(number, builder.fcmp_unordered(">", value, best))


@intrinsic
def larger(typingctx, best, value):
    """max(best, value) in each lane; a NaN wins."""

    def codegen(context, builder, signature, arguments):
        best, value = arguments
        return builder.select(_is_larger(builder, best, value), value, best)

    return best(best, best), codegen


@intrinsic
def place_of_larger(typingctx, best, index, value, place):
    """``place`` where ``larger(best, value)`` takes ``value``, else ``index``."""

    def codegen(context, builder, signature, arguments):
        best, index, value, place = arguments
        here = splatted(builder, builder.trunc(place, I32), index.type.count)
        return builder.select(_is_larger(builder, best, value), here, index)

    return index(best, index, best, types.int64), codegen


@intrinsic
def store_places(typingctx, indices, offset, index, count):
    """Write the first ``count`` of a vector of ``places`` at ``offset`` and nothing beyond them."""

    def codegen(context, builder, signature, arguments):
        value = arguments[2]
        data = context.make_array(indices)(context, builder, arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), value.type.as_pointer())
        operands = [value, pointer, ir.Constant(I32, 4), below(builder, arguments[3], index.lanes)]
        call(builder, f"llvm.masked.store.v{index.lanes}i32.p0", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(indices, types.int64, index, types.int64), codegen


def _words(context, builder, bits_type, bits, position, vector):
    """The registers of ``vector``, each with a pointer to its word; the type of a word and of as many bits as lanes."""
    data = context.make_array(bits_type)(context, builder, bits).data
    lanes = DOUBLES.lanes if vector.type.element == DOUBLE else SINGLES.lanes
    registers = parts_of(builder, vector, lanes)
    pointers = [builder.gep(data, [builder.add(position, ir.Constant(I64, k))]) for k in range(len(registers))]
    return zip(registers, pointers, strict=True), ir.IntType(bits_type.dtype.bitwidth), ir.IntType(lanes)


@intrinsic
def store_signs(typingctx, bits, position, sign):
    """bits[position] = one bit a lane, set where ``where_positive(sign, ...)`` keeps; a word for every register."""

    def codegen(context, builder, signature, arguments):
        registers, word, narrow = _words(context, builder, bits, *arguments)
        for register, pointer in registers:
            mask = builder.bitcast(_positive(builder, register), narrow)
            builder.store(builder.zext(mask, word) if word != narrow else mask, pointer)
        return context.get_dummy_value()

    return types.void(bits, types.int64, sign), codegen


@intrinsic
def where_bits(typingctx, bits, position, value):
    """``value`` where a bit of ``store_signs`` is set, else 0."""

    def codegen(context, builder, signature, arguments):
        registers, word, narrow = _words(context, builder, bits, *arguments)
        kept = []
        for register, pointer in registers:
            mask = builder.load(pointer)
            mask = builder.trunc(mask, narrow) if word != narrow else mask
            mask = builder.bitcast(mask, ir.VectorType(ir.IntType(1), narrow.width))
            kept.append(builder.select(mask, register, constant(register.type, 0.0)))
        return joined(builder, kept)

    return value(bits, types.int64, value), codegen
