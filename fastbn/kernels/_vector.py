"""Whole SIMD registers as values in Numba code: ``v = fma(load(x, i) - mean, scale, shift)``.

A vector holds the elements that fit a register of the host, in the dtype that its array computes in: float64 for
float64 arrays, float32 for float32 and for 16-bit floats, which lie as uint16 (IEEE float16) or int16 (bfloat16).
``widen`` makes as many float64 of them, for sums. ``load_two`` and ``load_four`` make one vector of as many registers
that lie side by side: to Numba and LLVM that is one value, compiled in a fraction of the time of several.
Offsets count elements from the start of a C-contiguous array of any rank. Nothing here is reordered or contracted:
``fma`` is one rounding where it is written and nowhere else, so two kernels that share a formula share its bits.
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
I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
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


def _vector_of(array, registers=1):
    register = DOUBLES if array.dtype == types.float64 else SINGLES
    return Vector(register.dtype, registers * register.lanes)


def _parts(builder, value, lanes):
    """The registers of a vector, each of ``lanes``."""
    if value.type.count == lanes:
        return [value]
    masks = (ir.Constant(_integers(lanes), list(range(k, k + lanes))) for k in range(0, value.type.count, lanes))
    return [builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask) for mask in masks]


def _joined(builder, parts):
    """One vector of 1, 2 or 4 registers."""
    while len(parts) > 1:
        both = ir.Constant(_integers(2 * parts[0].type.count), list(range(2 * parts[0].type.count)))
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


def _integers(count, width=I32):
    return ir.VectorType(width, count)


def splatted(builder, scalar, count):
    undefined = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_integers(count), [0] * count))


def constant(vector_type, value):
    """One number in every lane, for code that makes intrinsics."""
    return ir.Constant(vector_type, [value] * vector_type.count)


def below(builder, count, lanes):
    """The mask of the first ``count`` lanes."""
    numbers = ir.Constant(_integers(lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splatted(builder, builder.trunc(count, I32), lanes))


def call(builder, name, result, arguments, **options):
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments, **options)


class _Memory:
    """An array as registers lie in it: the stored type, and the way to the computed one and back."""

    def __init__(self, context, builder, array_type, array, offset):
        self.builder = builder
        self.dtype = array_type.dtype
        self.vector = context.get_value_type(_vector_of(array_type))
        lanes = self.vector.count
        self.stored = self.vector if self.dtype in (types.float32, types.float64) else _integers(lanes, I16)
        self.itemsize = self.dtype.bitwidth // 8
        data = context.make_array(array_type)(context, builder, array).data
        self.pointer = builder.bitcast(builder.gep(data, [offset]), self.stored.as_pointer())
        kind = {types.float32: "f32", types.float64: "f64"}.get(self.dtype, "i16")
        self.suffix = f"v{lanes}{kind}.p0"

    def load(self, vector):
        """The vector of type ``vector``, its registers in the order in which they lie."""
        places = (self.place(k) for k in range(vector.lanes // self.vector.count))
        registers = [self.computed(self.builder.load(place, align=self.itemsize)) for place in places]
        return _joined(self.builder, registers)

    def store(self, value, align):
        """Write a vector, as ``load`` reads it; the instructions."""
        registers = enumerate(_parts(self.builder, value, self.vector.count))
        return [self.builder.store(self.rounded(register), self.place(k), align=align) for k, register in registers]

    def place(self, k):
        return self.builder.gep(self.pointer, [ir.Constant(I64, k)]) if k else self.pointer

    def computed(self, stored):
        builder, lanes = self.builder, self.vector.count
        if self.dtype == types.uint16:
            return builder.fpext(builder.bitcast(stored, ir.VectorType(HALF, lanes)), self.vector)
        if self.dtype == types.int16:
            wide = builder.shl(builder.zext(stored, _integers(lanes)), constant(_integers(lanes), 16))
            return builder.bitcast(wide, self.vector)
        return stored

    def rounded(self, value):
        """To the stored type, to the nearest, ties to even."""
        builder, lanes = self.builder, self.vector.count
        if self.dtype == types.uint16:
            return builder.bitcast(builder.fptrunc(value, ir.VectorType(HALF, lanes)), self.stored)
        if self.dtype == types.int16:
            wide = _integers(lanes)
            bits = builder.bitcast(value, wide)
            odd = builder.and_(builder.lshr(bits, constant(wide, 16)), constant(wide, 1))
            carried = builder.add(builder.add(bits, constant(wide, 0x7FFF)), odd)
            quiet = builder.or_(bits, constant(wide, 0x400000))  # a NaN must not be carried into infinity
            kept = builder.select(builder.fcmp_unordered("uno", value, value), quiet, carried)
            return builder.trunc(builder.lshr(kept, constant(wide, 16)), self.stored)
        return value


@intrinsic
def lanes_of(typingctx, array):
    """Elements in a vector of ``array``."""

    def codegen(context, builder, signature, arguments):
        return ir.Constant(I64, _vector_of(array).lanes)

    return types.int64(array), codegen


@intrinsic
def splat(typingctx, array, scalar):
    """A vector, as ``array`` computes in, of one number."""
    vector = _vector_of(array)

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
    vector = _vector_of(array)

    def codegen(context, builder, signature, arguments):
        return builder.fptrunc(arguments[1], context.get_value_type(vector)) if vector == SINGLES else arguments[1]

    return vector(array, value), codegen


def _shuffled(chosen):
    """An intrinsic that takes from two vectors, side by side, the lanes that ``chosen(lanes)`` lists."""

    @intrinsic
    def shuffle(typingctx, first, second):
        def codegen(context, builder, signature, arguments):
            mask = ir.Constant(_integers(first.lanes), chosen(first.lanes))
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


def _load(registers):
    @intrinsic
    def load(typingctx, array, offset):
        """The vector at ``offset``."""
        vector = _vector_of(array, registers)

        def codegen(context, builder, signature, arguments):
            return _Memory(context, builder, array, *arguments).load(vector)

        return vector(array, types.int64), codegen

    return load


load, load_two, load_four = _load(1), _load(2), _load(4)


@intrinsic
def load_like(typingctx, array, offset, like):
    """The vector at ``offset``, of as many elements as ``like``."""

    def codegen(context, builder, signature, arguments):
        return _Memory(context, builder, array, *arguments[:2]).load(like)

    return like(array, types.int64, like), codegen


def _ask(builder, place, *hints):
    numbers = [ir.Constant(I32, number) for number in (*hints, 1)]  # data
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [builder.bitcast(place, ir.IntType(8).as_pointer()), *numbers])


def _prefetch(*hints):
    @intrinsic
    def prefetch(typingctx, array, offset):
        """Have the cache line at ``offset`` ready soon; it may lie beyond the array."""

        def codegen(context, builder, signature, arguments):
            _ask(builder, _Memory(context, builder, array, *arguments).pointer, *hints)
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
        memory = _Memory(context, builder, array, *arguments[:2])
        for k in range(like.lanes // memory.vector.count):
            _ask(builder, memory.place(k), 0, 2)
        return context.get_dummy_value()

    return types.void(array, types.int64, like), codegen


@intrinsic
def load_first(typingctx, array, offset, count, fill):
    """The first ``count`` elements at ``offset``, then ``fill``; nothing beyond them is read."""

    def codegen(context, builder, signature, arguments):
        memory = _Memory(context, builder, array, *arguments[:2])
        mask = below(builder, arguments[2], memory.vector.count)
        align, nothing = ir.Constant(I32, memory.itemsize), ir.Constant(memory.stored, ir.Undefined)
        operands = [memory.pointer, align, mask, nothing]
        stored = call(builder, f"llvm.masked.load.{memory.suffix}", memory.stored, operands)
        return builder.select(mask, memory.computed(stored), arguments[3])

    vector = _vector_of(array)
    return vector(array, types.int64, types.int64, vector), codegen


@intrinsic
def store(typingctx, array, offset, value):
    """Write a vector at ``offset``."""

    def codegen(context, builder, signature, arguments):
        memory = _Memory(context, builder, array, *arguments[:2])
        memory.store(arguments[2], memory.itemsize)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), codegen


@intrinsic
def stream(typingctx, array, offset, value):
    """Write a vector past the caches at ``offset``, a multiple of a register in address; ``fence`` after all."""

    def codegen(context, builder, signature, arguments):
        memory = _Memory(context, builder, array, *arguments[:2])
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
        memory = _Memory(context, builder, array, *arguments[:2])
        mask = below(builder, arguments[3], memory.vector.count)
        operands = [memory.rounded(arguments[2]), memory.pointer, ir.Constant(I32, memory.itemsize), mask]
        call(builder, f"llvm.masked.store.{memory.suffix}", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(array, types.int64, _vector_of(array), types.int64), codegen


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
            low = _in_every_lane(builder, value, low)
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
            mask = builder.and_(mask, builder.fcmp_unordered("<", sign, _in_every_lane(builder, sign, relu)))
        return builder.select(mask, value, constant(value.type, 0.0))

    return value(value, value, relu), codegen


@intrinsic
def at_most(typingctx, value, ceiling):
    """min(value, ceiling) in each lane, ``value`` if ``ceiling`` is no number; a NaN in ``value`` stays."""

    def codegen(context, builder, signature, arguments):
        value, ceiling = arguments
        if not isinstance(signature.args[1], types.Float):
            return value
        limit = _in_every_lane(builder, value, ceiling)
        return builder.select(builder.fcmp_ordered(">", value, limit), limit, value)

    return value(value, ceiling), codegen


def _in_every_lane(builder, vector, number):
    """A float64 in every lane of a vector like ``vector``."""
    element = vector.type.element
    return splatted(builder, number if element == DOUBLE else builder.fptrunc(number, element), vector.type.count)


@intrinsic
def places(typingctx, array, place):
    """An int32 for each lane of a vector of ``array``."""
    vector = Vector(types.int32, _vector_of(array).lanes)

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
    registers = _parts(builder, vector, lanes)
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
        return _joined(builder, kept)

    return value(bits, types.int64, value), codegen


@intrinsic
def element(typingctx, array, offset):
    """One element, in float64."""

    def codegen(context, builder, signature, arguments):
        memory = _Memory(context, builder, array, *arguments)
        stored = builder.load(builder.bitcast(memory.pointer, memory.stored.element.as_pointer()))
        lane = builder.insert_element(ir.Constant(memory.stored, ir.Undefined), stored, ir.Constant(I32, 0))
        number = builder.extract_element(memory.computed(lane), ir.Constant(I32, 0))
        return number if number.type == DOUBLE else builder.fpext(number, DOUBLE)

    return types.float64(array, types.int64), codegen


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
