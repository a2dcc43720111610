"""The processor's matrix unit (Intel AMX): products of float32 matrices from products of bfloat16 ones.

A float32 is the sum of three bfloat16, x = x1 + x2 + x3, each what the ones before leave: 3 * 8 bits hold its 24. Of
the nine products of two such sums, the six above 2^-24 of the whole are added up in float32; see Henry, Tang and
Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations", ARITH 2019. The
unit adds 16 pairs before it rounds to the sum, so that the result is nearer to the exact one than a chain of
multiply-adds. What an Inf leaves is NaN: so is each sum that one is part of. Parts below 2^-126 are 0.

The unit multiplies tiles, 16 x 32 by 32 x 16, in rows of 64 bytes: a lane of 4 bytes holds two numbers that are next to
each other on the summed axis. Which two does not matter if both operands agree: here those that lie SIDE apart, so that
``store_parts`` makes a row of two vectors without moving lanes.
"""

import ctypes
import os
import platform
import sys
from functools import cache

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import data_of, index
from fastbn.kernels._vector import FLOAT, I8, I32, SINGLES, call, constant, integers

SIDE = 16  # rows and lanes of a tile
DEPTH = 2 * SIDE  # of the summed axis, in a tile
TILE = SIDE * SIDE  # elements of a tile, of 4 bytes
PARTS = 3  # of a float32
SPLIT = PARTS * TILE  # elements of the tiles of all parts
BLOCK = 2 * SIDE  # rows and columns of a product, at most
KEPT = 0xFFFF0000  # the bits of a float32 that a bfloat16 has
HALF_BIT = 0x8000  # half of the last of them

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


@cache
def matrix_unit() -> bool | None:
    """True where there is such a unit, this process may use it and FASTBN_AMX is not 0; else None."""
    features = get_host_cpu_features()
    compiled = numba.config.CPU_NAME is None and numba.config.CPU_FEATURES is None  # type: ignore[attr-defined]
    if not (features.get("amx-bf16") and features.get("avx512f") and compiled):
        return None
    if sys.platform != "linux" or platform.machine() != "x86_64" or os.environ.get("FASTBN_AMX") == "0":
        return None
    return True if ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0 else None


def _number(value):
    return ir.Constant(I8, value)


def _unit(builder, name, *operands):
    call(builder, f"llvm.x86.{name}", ir.VoidType(), operands)


@intrinsic
def open_unit(typingctx):
    """Eight tiles of SIDE rows, for this thread until ``close_unit``."""

    def codegen(context, builder, signature, arguments):
        palette, rows, row_bytes = 1, [SIDE] * 8 + [0] * 8, [64] * 8 + [0] * 8
        widths = [byte for size in row_bytes for byte in (size, 0)]
        shape = bytearray([palette, *[0] * 15, *widths, *rows])
        settings = cgutils.global_constant(builder.module, "tiles", cgutils.make_bytearray(shape))
        _unit(builder, "ldtilecfg", builder.bitcast(settings, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def close_unit(typingctx):
    """Leave the unit without tiles: whoever switches threads need not keep them."""

    def codegen(context, builder, signature, arguments):
        _unit(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def store_parts(typingctx, first, second, target, at):
    """A row of a tile of each part of two vectors, the tiles one behind the other from ``at`` on."""

    vector = ir.VectorType(FLOAT, SINGLES.lanes)

    def codegen(context, builder, signature, arguments):
        *values, array, place = arguments
        lanes = integers(SINGLES.lanes)
        kept, half = constant(lanes, KEPT), constant(lanes, HALF_BIT)
        origin = builder.gep(data_of(context, builder, target, array), [place])
        for part in range(PARTS):
            bits = [builder.bitcast(value, lanes) for value in values]
            if part < PARTS - 1:
                # The first is cut off: rounded, the greatest finite numbers would be Inf. The second is rounded: what
                # the products leave out has either sign.
                tops = [builder.add(value, half) for value in bits] if part else bits
                cut = [builder.bitcast(builder.and_(value, kept), vector) for value in tops]
                values = [builder.fsub(value, top) for value, top in zip(values, cut, strict=True)]
                bits = tops
            low = builder.lshr(bits[0], constant(lanes, 16))
            row = call(builder, "llvm.x86.avx512.pternlog.d.512", lanes, [low, bits[1], kept, ir.Constant(I32, 0xF8)])
            goal = builder.bitcast(builder.gep(origin, [index(part * TILE)]), lanes.as_pointer())
            builder.store(row, goal, align=4)
        return context.get_dummy_value()

    return types.void(first, second, target, types.int64), codegen


class _Tiles:
    """The registers of a product of ``rows`` by ``columns`` tiles, and how they are read and written."""

    def __init__(self, builder, rows, columns):
        self.builder = builder
        self.sums = [[_number(2 * i + j) for j in range(columns)] for i in range(rows)]
        self.left = [_number(4 + i) for i in range(rows)]
        self.right = [_number(6 + j) for j in range(columns)]

    def unit(self, name, *operands):
        _unit(self.builder, name, *operands)

    def clear(self):
        for row in self.sums:
            for tile in row:
                self.unit("tilezero", tile)

    def move(self, name, origin):
        """Sums read from memory or written to it, in rows of BLOCK elements."""
        for i, row in enumerate(self.sums):
            for j, tile in enumerate(row):
                place = self.builder.gep(origin, [index((i * BLOCK + j) * SIDE)])
                self.unit(name, tile, self.builder.bitcast(place, I8.as_pointer()), index(4 * BLOCK))

    def read(self, tiles, origin, apart, part):
        """A part of an operand, whose tiles are ``apart`` elements from each other."""
        for i, tile in enumerate(tiles):
            place = self.builder.gep(origin, [self.builder.add(self.builder.mul(apart, index(i)), index(part * TILE))])
            self.unit("tileloadd64", tile, self.builder.bitcast(place, I8.as_pointer()), index(64))

    def multiply(self):
        for row, left in zip(self.sums, self.left, strict=True):
            for tile, right in zip(row, self.right, strict=True):
                self.unit("tdpbf16ps", tile, left, right)

    def stage(self, number, a, a_apart, b, b_apart):
        """One of STAGES products of parts, in order: from the least on, an operand kept from one to the next."""
        for side, part in ORDER[number]:
            if side == "a":
                self.read(self.left, a, a_apart, part)
            else:
                self.read(self.right, b, b_apart, part)
        self.multiply()


# What each stage reads: parts of a and b.
ORDER = ((("a", 2), ("b", 0)), (("a", 1),), (("b", 1),), (("a", 0),), (("b", 2),), (("b", 0),))
STAGES = len(ORDER)


def _pointer(context, builder, array_type, array, offset):
    return builder.gep(data_of(context, builder, array_type, array), [offset])


def _kinds(builder, kind, per_kind, emit):
    """One of the ways to multiply: ``emit(tiles, number)`` for each kind and each number below ``per_kind``."""
    behind = builder.append_basic_block("behind")
    choice = builder.switch(kind, behind)
    for position, (rows, columns) in enumerate(SHAPES):
        for number in range(per_kind):
            with builder.goto_block(builder.append_basic_block(f"kind{position}_{number}")):
                choice.add_case(index(position * per_kind + number), builder.block)
                emit(_Tiles(builder, rows, columns), number)
                builder.branch(behind)
    builder.position_at_end(behind)


# Tiles of rows and of columns of a product, by its kind: all, or those of the first SIDE columns, rows, or both.
SHAPES = (2, 2), (2, 1), (1, 2), (1, 1)
SLIM, LOW = 1, 2  # to add up


@intrinsic
def clear_tiles(typingctx):
    """Begin a product of BLOCK rows and columns with 0."""

    def codegen(context, builder, signature, arguments):
        _Tiles(builder, 2, 2).clear()
        return context.get_dummy_value()

    return types.void(), codegen


def _move_tiles(name):
    @intrinsic
    def move_tiles(typingctx, kind, array, at):
        """A product of that kind, from or to rows of BLOCK elements from ``at`` on."""

        def codegen(context, builder, signature, arguments):
            origin = _pointer(context, builder, array, *arguments[1:])
            _kinds(builder, arguments[0], 1, lambda tiles, _: tiles.move(name, origin))
            return context.get_dummy_value()

        return types.void(types.int64, array, types.int64), codegen

    return move_tiles


load_tiles, store_tiles = _move_tiles("tileloadd64"), _move_tiles("tilestored64")


@intrinsic
def add_stage(typingctx, stage, a, a_start, a_tile, b, b_start, b_tile):
    """A stage of a step of DEPTH numbers: the product, of a kind, += the products of some parts of a and b.

    stage: from kind * STAGES on, each of STAGES. a, b: tiles of three parts, ``a_tile`` elements from those of SIDE
    rows to the next, and ``b_tile`` likewise. The unit is busy with it for some 60 to 80 cycles; what comes next does
    not wait, unless it needs the unit.
    """

    def codegen(context, builder, signature, arguments):
        number, a_array, a_first, a_apart, b_array, b_first, b_apart = arguments
        left, right = _pointer(context, builder, a, a_array, a_first), _pointer(context, builder, b, b_array, b_first)
        _kinds(builder, number, STAGES, lambda tiles, k: tiles.stage(k, left, a_apart, right, b_apart))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, a, i64, i64, b, i64, i64), codegen
