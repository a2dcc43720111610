"""Registers of float64, whatever float an array holds: for the algebra of channels, some of them at a time.

They are vectors of ``_vector``, of as many lanes as ``lanes_of`` a float64 array. Offsets count elements, as there.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbn.kernels._vector import DOUBLE, DOUBLES, FLOAT, I32, below, call, constant, splatted


def _place(context, builder, array_type, array, offset):
    """Pointer to a register's elements at ``offset``, their type, and its suffix in names of LLVM."""
    single = array_type.dtype == types.float32
    stored = ir.VectorType(FLOAT if single else DOUBLE, DOUBLES.lanes)
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.bitcast(builder.gep(data, [offset]), stored.as_pointer())
    return pointer, stored, f"v{DOUBLES.lanes}{'f32' if single else 'f64'}.p0"


@intrinsic
def load_doubles(typingctx, array, offset, count, fill):
    """The first ``count`` elements at ``offset``, then ``fill``; nothing beyond them is read."""

    def codegen(context, builder, signature, arguments):
        pointer, stored, suffix = _place(context, builder, array, *arguments[:2])
        align = ir.Constant(I32, array.dtype.bitwidth // 8)
        rest = splatted(builder, context.cast(builder, arguments[3], fill, array.dtype), DOUBLES.lanes)
        operands = [pointer, align, below(builder, arguments[2], DOUBLES.lanes), rest]
        value = call(builder, f"llvm.masked.load.{suffix}", stored, operands)
        return value if stored.element == DOUBLE else builder.fpext(value, context.get_value_type(DOUBLES))

    return DOUBLES(array, types.int64, types.int64, fill), codegen


@intrinsic
def store_doubles(typingctx, array, offset, value, count):
    """Write the first ``count`` lanes at ``offset``, rounded to what ``array`` holds, and nothing beyond them."""

    def codegen(context, builder, signature, arguments):
        pointer, stored, suffix = _place(context, builder, array, *arguments[:2])
        value = arguments[2] if stored.element == DOUBLE else builder.fptrunc(arguments[2], stored)
        align = ir.Constant(I32, array.dtype.bitwidth // 8)
        operands = [value, pointer, align, below(builder, arguments[3], DOUBLES.lanes)]
        call(builder, f"llvm.masked.store.{suffix}", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(array, types.int64, DOUBLES, types.int64), codegen


@intrinsic
def inverse_root(typingctx, value):
    """1 / sqrt(value) in each lane, 0 where ``value`` is 0."""

    def codegen(context, builder, signature, arguments):
        (value,) = arguments
        root = call(builder, f"llvm.sqrt.v{DOUBLES.lanes}f64", value.type, [value])
        zero = constant(value.type, 0.0)
        is_zero = builder.fcmp_ordered("==", value, zero)
        return builder.select(is_zero, zero, builder.fdiv(constant(value.type, 1.0), root))

    return DOUBLES(DOUBLES), codegen
