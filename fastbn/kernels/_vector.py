"""Whole SIMD registers as values in Numba code: ``v = fma(load(x, i) - mean, scale, shift)``.

A vector holds the elements that fit a register of the host, in the dtype that its array computes in: float64 for
float64 arrays, float32 for float32 and for 16-bit floats, which lie as uint16 (IEEE float16) or int16 (bfloat16).
``widen`` makes as many float64 of them, for sums. A vector may have several registers: to Numba and LLVM that is one
value, compiled in a fraction of the time of several. Nothing here is reordered or contracted: ``fma`` is one rounding
where it is written and nowhere else, so two kernels that share a formula share its bits.

How vectors are read and written: ``_vector_memory``, ``_vector_apart``; lanes that are chosen: ``_vector_choice``.
"""

import operator

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from fastbn.kernels._jit import inlined
from fastbn.kernels._simd import VECTOR_BYTES

FLOAT, DOUBLE, HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HAS_FMA = get_host_cpu_features().get("fma", True)  # absent from the features of Arm, where every CPU has it


class Vector(types.Type):
    """The Numba type of ``lanes`` numbers of ``dtype``."""

    def __init__(self, dtype, lanes):
        self.dtype = dtype
        self.lanes = lanes
        super().__init__(f"vector({dtype} x {self.lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        element = {types.float32: FLOAT, types.int32: I32}.get(vector.dtype, DOUBLE)
        super().__init__(manager, vector, ir.VectorType(element, vector.lanes))


SINGLES, DOUBLES = Vector(types.float32, VECTOR_BYTES // 4), Vector(types.float64, VECTOR_BYTES // 8)


def vector_of(array, registers=1):
    """The type of what ``array`` computes in, of so many registers."""
    register = DOUBLES if array.dtype == types.float64 else SINGLES
    return Vector(register.dtype, registers * register.lanes)


def parts_of(builder, value, lanes):
    """The registers of a vector, each of ``lanes``."""
    if value.type.count == lanes:
        return [value]
    masks = (ir.Constant(integers(lanes), list(range(k, k + lanes))) for k in range(0, value.type.count, lanes))
    return [builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask) for mask in masks]


def joined(builder, parts):
    """One vector of registers, of which there are a power of two."""
    while len(parts) > 1:
        both = ir.Constant(integers(2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
        parts = [builder.shuffle_vector(*pair, both) for pair in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _define_operator(operation, instruction):
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    infer_global(operation)(Template)

    @lower_builtin(operation, Vector, Vector)
    def lower(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments)


_define_operator(operator.add, "fadd")


_define_operator(operator.sub, "fsub")


_define_operator(operator.mul, "fmul")


_define_operator(operator.truediv, "fdiv")


def integers(count, width=I32):
    return ir.VectorType(width, count)


def splatted(builder, scalar, count):
    undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(integers(count), [0] * count))


def constant(vector_type, value):
    """One number in every lane, for code that makes intrinsics."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def below(builder, count, lanes):
    """The mask of the first ``count`` lanes."""
    numbers = ir.Constant(integers(lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splatted(builder, builder.trunc(count, I32), lanes))


def call(builder, name, result, arguments, **options):
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments, **options)


@intrinsic
def lanes_of(typingctx, array):
    """Elements in a vector of ``array``."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(I64, vector_of(array).lanes)

    return types.int64(array), codegen


@intrinsic
def splat(typingctx, array, scalar):
    """A vector, as ``array`` computes in, of one number."""
    vector = vector_of(array)

    def codegen(context, builder, signature, arguments):
        return splatted(builder, context.cast(builder, arguments[1], scalar, vector.dtype), vector.lanes)

    return vector(array, scalar), codegen


@intrinsic
def widen(typingctx, value):
    """The same numbers in float64."""
    vector = Vector(types.float64, value.lanes)

    def codegen(context, builder, signature, arguments):
        return arguments[0] if vector == value else builder.fpext(arguments[0], context.get_value_type(vector))

    return vector(value), codegen


@intrinsic
def narrow(typingctx, array, value):
    """What ``widen`` made, rounded to what ``array`` computes in."""
    vector = vector_of(array)

    def codegen(context, builder, signature, arguments):
        return builder.fptrunc(arguments[1], context.get_value_type(vector)) if vector == SINGLES else arguments[1]

    return vector(array, value), codegen


def _shuffled(chosen):
    """An intrinsic that takes from two vectors, side by side, the lanes that ``chosen(lanes)`` lists."""

    @intrinsic
    def shuffle(typingctx, first, second):
        def codegen(context, builder, signature, arguments):
            mask = ir.Constant(integers(first.lanes), chosen(first.lanes))
            return builder.shuffle_vector(*arguments, mask)

        return first(first, first), codegen

    return shuffle


evens = _shuffled(lambda lanes: list(range(0, 2 * lanes, 2)))


odds = _shuffled(lambda lanes: list(range(1, 2 * lanes, 2)))


# The first and second half of the lanes of two vectors in turns.
zipped_low = _shuffled(lambda lanes: [i // 2 + i % 2 * lanes for i in range(lanes)])


zipped_high = _shuffled(lambda lanes: [lanes // 2 + i // 2 + i % 2 * lanes for i in range(lanes)])


@intrinsic
def quotient(typingctx, value, divisor):
    """Each lane divided by one number."""

    def codegen(context, builder, signature, arguments):
        number = context.cast(builder, arguments[1], divisor, value.dtype)
        return builder.fdiv(arguments[0], splatted(builder, number, value.lanes))

    return value(value, divisor), codegen


@intrinsic
def root(typingctx, value):
    """The square root of each lane."""

    def codegen(context, builder, signature, arguments):
        kind = "f32" if value.dtype == types.float32 else "f64"
        return call(builder, f"llvm.sqrt.v{value.lanes}{kind}", arguments[0].type, arguments)

    return value(value), codegen


def fused(builder, a, b, c):
    """``fma``, for code that makes intrinsics."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(a, b), c)
    kind = "f32" if a.type.element == FLOAT else "f64"
    return call(builder, f"llvm.fma.v{a.type.count}{kind}", a.type, [a, b, c])


@intrinsic
def fma(typingctx, a, b, c):
    """a * b + c, rounded once (twice on a CPU without the instruction)."""

    def codegen(context, builder, signature, arguments):
        return fused(builder, *arguments)

    return a(a, a, a), codegen


@intrinsic
def finite_or_zero(typingctx, value):
    """``value`` with 0 in the lanes that hold a NaN or an infinity."""

    def codegen(context, builder, signature, arguments):
        zero = constant(arguments[0].type, 0.0)
        nothing = builder.fsub(arguments[0], arguments[0])
        return builder.select(builder.fcmp_ordered("==", nothing, zero), arguments[0], zero)

    return value(value), codegen


@intrinsic
def at_least(typingctx, value, low):
    """max(value, low) in each lane, ``low`` a vector or a number; a NaN in ``value`` stays."""

    def codegen(context, builder, signature, arguments):
        value, low = arguments
        if isinstance(signature.args[1], types.Float):
            low = in_every_lane(builder, value, low)
        return builder.select(builder.fcmp_ordered("<", value, low), low, value)

    return value(value, low), codegen


@intrinsic
def _clamped(typingctx, value, low, high):
    def codegen(context, builder, signature, arguments):
        value, low, high = arguments
        value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
        return builder.select(builder.fcmp_ordered(">", value, high), high, value)

    return value(value, value, value), codegen


@inlined
def bounds_of(array, limits):
    """A least and a greatest number as ``within`` takes them, for vectors of ``array``."""
    return splat(array, limits[0]), splat(array, limits[1])


@inlined
def within(value, bounds):
    """Each lane no less than the first of ``bounds_of`` and no more than the second; a NaN stays."""
    return _clamped(value, bounds[0], bounds[1])


@intrinsic
def at_most(typingctx, value, ceiling):
    """min(value, ceiling) in each lane, ``value`` if ``ceiling`` is no number; a NaN in ``value`` stays."""

    def codegen(context, builder, signature, arguments):
        value, ceiling = arguments
        if not isinstance(signature.args[1], types.Float):
            return value
        limit = in_every_lane(builder, value, ceiling)
        return builder.select(builder.fcmp_ordered(">", value, limit), limit, value)

    return value(value, ceiling), codegen


def in_every_lane(builder, vector, number):
    """A float64 in every lane of a vector like ``vector``."""
    element = vector.type.element
    return splatted(builder, number if element == DOUBLE else builder.fptrunc(number, element), vector.type.count)


@intrinsic
def total(typingctx, value):
    """The sum of the lanes of a wide vector."""

    def codegen(context, builder, signature, arguments):
        return _sum_lanes(builder, arguments[0])

    return types.float64(value), codegen


@intrinsic
def mean(typingctx, value):
    """The mean of the lanes of a wide vector; exact where they are equal."""

    def codegen(context, builder, signature, arguments):
        shares = builder.fmul(arguments[0], constant(arguments[0].type, 1.0 / value.lanes))
        return _sum_lanes(builder, shares)

    return types.float64(value), codegen


def _sum_lanes(builder, vector):
    operands = [ir.Constant(DOUBLE, -0.0), vector]
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f64"
    return call(builder, name, DOUBLE, operands, fastmath=("reassoc",))
