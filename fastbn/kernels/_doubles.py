"""Registers of float64, whatever float an array holds: for the algebra of channels, some of them at a time.

They are vectors of ``_vector``, of as many lanes as ``lanes_of`` a float64 array. Offsets count elements, as there; of
a ``row`` of a matrix they count from its first.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._vector import DOUBLE, DOUBLES, FLOAT, I32, I64, below, call, constant, splatted


def _place(context, builder, array_type, array, offset):
    """Pointer to a register's elements at ``offset``, their type, and its suffix in names of LLVM."""
    single = array_type.dtype == types.float32
    stored = ir.VectorType(FLOAT if single else DOUBLE, DOUBLES.lanes)
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.bitcast(builder.gep(data, [offset]), stored.as_pointer())
    return pointer, stored, f"v{DOUBLES.lanes}{'f32' if single else 'f64'}.p0"


def _in_row(context, builder, array_type, array, row, offset):
    """Offset in a matrix of an element of a row."""
    _, columns = cgutils.unpack_tuple(builder, context.make_array(array_type)(context, builder, array).shape)
    return builder.add(builder.mul(row, columns), offset)


def _load(context, builder, array_type, array, offset, count, fill=None):
    pointer, stored, suffix = _place(context, builder, array_type, array, offset)
    align = ir.Constant(I32, array_type.dtype.bitwidth // 8)
    rest = constant(stored, 0.0) if fill is None else fill
    operands = [pointer, align, below(builder, count, DOUBLES.lanes), rest]
    value = call(builder, f"llvm.masked.load.{suffix}", stored, operands)
    return value if stored.element == DOUBLE else builder.fpext(value, context.get_value_type(DOUBLES))


def _store(context, builder, array_type, array, offset, value, count):
    pointer, stored, suffix = _place(context, builder, array_type, array, offset)
    value = value if stored.element == DOUBLE else builder.fptrunc(value, stored)
    align = ir.Constant(I32, array_type.dtype.bitwidth // 8)
    operands = [value, pointer, align, below(builder, count, DOUBLES.lanes)]
    call(builder, f"llvm.masked.store.{suffix}", ir.VoidType(), operands)


@intrinsic
def load_doubles(typingctx, array, offset, count, fill):
    """The first ``count`` elements at ``offset``, then ``fill``; nothing beyond them is read."""

    def codegen(context, builder, signature, arguments):
        rest = splatted(builder, context.cast(builder, arguments[3], fill, array.dtype), DOUBLES.lanes)
        return _load(context, builder, array, *arguments[:3], rest)

    return DOUBLES(array, types.int64, types.int64, fill), codegen


@intrinsic
def load_row(typingctx, array, row, offset, count):
    """The first ``count`` elements at ``offset`` of a row, then 0; nothing beyond them is read."""

    def codegen(context, builder, signature, arguments):
        array_value, row, offset, count = arguments
        return _load(
            context, builder, array, array_value, _in_row(context, builder, array, array_value, row, offset), count
        )

    return DOUBLES(array, types.int64, types.int64, types.int64), codegen


@intrinsic
def store_doubles(typingctx, array, offset, value, count):
    """Write the first ``count`` lanes at ``offset``, rounded to what ``array`` holds, and nothing beyond them."""

    def codegen(context, builder, signature, arguments):
        _store(context, builder, array, *arguments)
        return context.get_dummy_value()

    return types.void(array, types.int64, DOUBLES, types.int64), codegen


@intrinsic
def store_row(typingctx, array, row, offset, value, count):
    """As ``store_doubles``, at ``offset`` of a row."""

    def codegen(context, builder, signature, arguments):
        place = _in_row(context, builder, array, *arguments[:3])
        _store(context, builder, array, arguments[0], place, *arguments[3:])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, DOUBLES, types.int64), codegen


@intrinsic
def add_run(typingctx, sums, to, start, count):
    """sums[to : to + count] += sums[start : start + count], of float64; offsets that lie ``count`` apart or more."""

    def codegen(context, builder, signature, arguments):
        array, to, start, count = arguments
        step = ir.Constant(I64, DOUBLES.lanes)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), count, step) as (k, _):
            some = builder.sub(count, k)
            place = builder.add(to, k)
            total, added = (_load(context, builder, sums, array, builder.add(at, k), some) for at in (to, start))
            _store(context, builder, sums, array, place, builder.fadd(total, added), some)
        return context.get_dummy_value()

    return types.void(sums, types.int64, types.int64, types.int64), codegen


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
