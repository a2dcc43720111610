"""Products of a depthwise convolution for a tile of pixels, for as many channels as a vector has lanes.

A tile has OUTER_ROWS pixels, or half as many; where each lies, and each tap from there, tables say.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import OUTER_ROWS, _data, _index, _Vectors

PIXELS = OUTER_ROWS // 2


class _Taps:
    """Where the taps of a tile find their pixels and weights."""

    def __init__(self, context, builder, array_types, arguments):
        a_type, place_type, table_type, w_type = array_types
        a_array, places, p_first, table, t_first, self.count, w_array, w_first, self.w_step = arguments
        self.builder = builder
        self.origin = _data(context, builder, a_type, a_array)
        self.places = builder.gep(_data(context, builder, place_type, places), [p_first])
        self.table = builder.gep(_data(context, builder, table_type, table), [t_first])
        self.weights = builder.gep(_data(context, builder, w_type, w_array), [w_first])

    def pixels(self, count):
        """Pointers to the first ``count`` pixels, without a tap."""
        builder = self.builder
        numbers = [builder.load(builder.gep(self.places, [_index(i)])) for i in range(count)]
        return [builder.gep(self.origin, [number]) for number in numbers]

    def offset(self, tap):
        return self.builder.load(self.builder.gep(self.table, [tap]))

    def weight(self, vectors, tap):
        return vectors.load(self.weights, self.builder.mul(tap, self.w_step))


def _of_both_sizes(builder, wide, tile):
    """Emit ``tile(pixels)`` for a whole tile, if ``wide``, and for a half."""
    whole = builder.icmp_signed("!=", wide, ir.Constant(wide.type, 0))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            tile(OUTER_ROWS)
        with otherwise:
            tile(PIXELS)


@intrinsic
def tile_products(typingctx, a, places, place, offsets, first, taps, weights, w_start, w_step, wide, start, tile):
    """tile[i, lane] = start[lane] + sum over t < taps of a[places[place + i] + offsets[first + t] + lane] * w[t, lane].

    i < OUTER_ROWS if ``wide``, else PIXELS; w[t, lane] = weights[w_start + t * w_step + lane].
    """

    def codegen(context, builder, signature, arguments):
        vectors = _Vectors(context, builder, a.dtype)
        share = _Taps(context, builder, (a, places, offsets, weights), arguments[:9])
        target = _data(context, builder, signature.args[11], arguments[11])

        def emit(pixels):
            sums = vectors.registers(pixels)
            for total in sums:
                builder.store(arguments[10], total)
            sources = share.pixels(pixels)
            with cgutils.for_range(builder, share.count) as loop:
                weight, offset = share.weight(vectors, loop.index), share.offset(loop.index)
                for source, total in zip(sources, sums, strict=True):
                    vectors.add_product(total, vectors.load(source, offset), weight)
            for i, total in enumerate(sums):
                vectors.store(builder.load(total), target, _index(i * vectors.lanes))

        _of_both_sizes(builder, arguments[9], emit)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, places, i64, offsets, i64, i64, weights, i64, i64, i64, start, tile), codegen


@intrinsic
def tile_gradients(
    typingctx, g, places, place, offsets, first, taps, weights, w_start, w_step, wide, tile, sums, s_start
):
    """``tile_products`` of g, from 0, in the place of the x that ``tile`` holds, and sums[s_start + t * lanes + lane]
    += sum over i of g[places[place + i] + offsets[first + t] + lane] * x[i, lane].
    """

    def codegen(context, builder, signature, arguments):
        vectors = _Vectors(context, builder, g.dtype)
        lanes = vectors.lanes
        share = _Taps(context, builder, (g, places, offsets, weights), arguments[:9])
        target = _data(context, builder, signature.args[10], arguments[10])
        totals = builder.gep(_data(context, builder, signature.args[11], arguments[11]), [arguments[12]])

        def emit(pixels):
            values = [vectors.load(target, _index(i * lanes)) for i in range(pixels)]
            products, sums = vectors.registers(pixels), vectors.registers(2)
            for product in products:
                builder.store(vectors.zero, product)
            sources = share.pixels(pixels)
            with cgutils.for_range(builder, share.count) as loop:
                weight, offset = share.weight(vectors, loop.index), share.offset(loop.index)
                total = builder.mul(loop.index, _index(lanes))
                builder.store(vectors.load(totals, total), sums[0])
                builder.store(vectors.zero, sums[1])
                for i, (source, product) in enumerate(zip(sources, products, strict=True)):
                    gradient = vectors.load(source, offset)
                    vectors.add_product(product, gradient, weight)
                    vectors.add_product(sums[i % 2], gradient, values[i])
                vectors.store(builder.fadd(builder.load(sums[0]), builder.load(sums[1])), totals, total)
            for i, product in enumerate(products):
                vectors.store(builder.load(product), target, _index(i * lanes))

        _of_both_sizes(builder, arguments[9], emit)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(g, places, i64, offsets, i64, i64, weights, i64, i64, i64, tile, sums, i64), codegen
