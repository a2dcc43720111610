"""Products of a depthwise convolution for a tile of pixels, for as many channels as a vector has lanes.

A tile is a vector with a register for each of PIXELS pixels. Where they lie, and each tap from there, tables say.
"""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import OUTER_ROWS as PIXELS
from fastbn.kernels._simd import Vectors, data_of, index
from fastbn.kernels._vector import Vector, joined, parts_of


class _Taps:
    """Where the taps of a tile find their pixels and weights."""

    def __init__(self, context, builder, array_types, arguments):
        a_type, place_type, table_type, w_type = array_types
        a_array, places, p_first, table, t_first, self.count, w_array, w_first, self.w_step = arguments
        self.builder = builder
        self.origin = data_of(context, builder, a_type, a_array)
        self.places = builder.gep(data_of(context, builder, place_type, places), [p_first])
        self.table = builder.gep(data_of(context, builder, table_type, table), [t_first])
        self.weights = builder.gep(data_of(context, builder, w_type, w_array), [w_first])

    def pixels(self):
        """Pointers to the pixels, without a tap."""
        builder = self.builder
        numbers = [builder.load(builder.gep(self.places, [index(i)])) for i in range(PIXELS)]
        return [builder.gep(self.origin, [number]) for number in numbers]

    def offset(self, tap):
        return self.builder.load(self.builder.gep(self.table, [tap]))

    def weight(self, vectors, tap):
        return vectors.load(self.weights, self.builder.mul(tap, self.w_step))


@intrinsic
def in_tile(typingctx, register):
    """The tile that has the same for each pixel."""

    def codegen(context, builder, signature, arguments):
        return joined(builder, [arguments[0]] * PIXELS)

    return Vector(register.dtype, PIXELS * register.lanes)(register), codegen


@intrinsic
def tile_products(typingctx, a, places, place, offsets, first, taps, weights, w_start, w_step, start):
    """tile[i, lane] = start[lane] + sum over t < taps of a[places[place + i] + offsets[first + t] + lane] * w[t, lane].

    w[t, lane] = weights[w_start + t * w_step + lane].
    """

    def codegen(context, builder, signature, arguments):
        vectors = Vectors(context, builder, a.dtype)
        share = _Taps(context, builder, (a, places, offsets, weights), arguments[:9])
        sums = vectors.registers(PIXELS)
        for total in sums:
            builder.store(arguments[9], total)
        sources = share.pixels()
        with cgutils.for_range(builder, share.count) as loop:
            weight, offset = share.weight(vectors, loop.index), share.offset(loop.index)
            for source, total in zip(sources, sums, strict=True):
                vectors.add_product(total, vectors.load(source, offset), weight)
        return joined(builder, [builder.load(total) for total in sums])

    i64, tile = types.int64, Vector(start.dtype, PIXELS * start.lanes)
    return tile(a, places, i64, offsets, i64, i64, weights, i64, i64, start), codegen


@intrinsic
def tile_gradients(typingctx, g, places, place, offsets, first, taps, weights, w_start, w_step, tile, sums, s_start):
    """``tile_products`` of g, from 0, and sums[s_start + t * lanes + lane] += sum over i of
    g[places[place + i] + offsets[first + t] + lane] * tile[i, lane].
    """

    def codegen(context, builder, signature, arguments):
        vectors = Vectors(context, builder, g.dtype)
        share = _Taps(context, builder, (g, places, offsets, weights), arguments[:9])
        values = parts_of(builder, arguments[9], vectors.lanes)
        totals = builder.gep(data_of(context, builder, signature.args[10], arguments[10]), [arguments[11]])
        products, sums = vectors.registers(PIXELS), vectors.registers(2)
        for product in products:
            builder.store(vectors.zero, product)
        sources = share.pixels()
        with cgutils.for_range(builder, share.count) as loop:
            weight, offset = share.weight(vectors, loop.index), share.offset(loop.index)
            total = builder.mul(loop.index, index(vectors.lanes))
            builder.store(vectors.load(totals, total), sums[0])
            builder.store(vectors.zero, sums[1])
            for i, (source, product) in enumerate(zip(sources, products, strict=True)):
                gradient = vectors.load(source, offset)
                vectors.add_product(product, gradient, weight)
                vectors.add_product(sums[i % 2], gradient, values[i])
            vectors.store(builder.fadd(builder.load(sums[0]), builder.load(sums[1])), totals, total)
        return joined(builder, [builder.load(product) for product in products])

    i64 = types.int64
    return tile(g, places, i64, offsets, i64, i64, weights, i64, i64, tile, sums, i64), codegen
