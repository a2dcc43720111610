"""Products of a depthwise convolution along one row, for as many channels as a vector has lanes.

Pixels are taken OUTER_ROWS at a time, then half as many: a row is computed up to a multiple of that half.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import OUTER_ROWS, _data, _index, _Vectors

PIXELS = OUTER_ROWS // 2


def _tiles(builder, count, tile):
    """Emit ``tile(first, pixels)`` for every tile of a row of ``count`` pixels."""
    wide = builder.and_(count, ir.Constant(count.type, -OUTER_ROWS))
    for first, last, pixels in ((_index(0), wide, OUTER_ROWS), (wide, count, PIXELS)):
        with cgutils.for_range_slice(builder, first, last, _index(pixels)) as (place, _):
            tile(place, pixels)


class _Taps:
    """Where the taps of a row find their pixels and weights."""

    def __init__(self, context, builder, array_types, arguments):
        a_type, table_type, w_type = array_types
        a_array, a_first, table, t_first, self.count, w_array, w_first, self.w_step = arguments
        self.builder = builder
        self.origin = builder.gep(_data(context, builder, a_type, a_array), [a_first])
        self.table = builder.gep(_data(context, builder, table_type, table), [t_first])
        self.weights = builder.gep(_data(context, builder, w_type, w_array), [w_first])

    def pixels(self, tap, first):
        """A pointer to the pixel of a tap under the output pixel that begins with element ``first``."""
        builder = self.builder
        return builder.gep(builder.gep(self.origin, [first]), [builder.load(builder.gep(self.table, [tap]))])

    def weight(self, vectors, tap):
        return vectors.load(self.weights, self.builder.mul(tap, self.w_step))


@intrinsic
def row_products(typingctx, a, start, offsets, first, taps, weights, w_start, w_step, count, row):
    """row[i * lanes + lane] = sum over t < taps of a[start + offsets[first + t] + i * lanes + lane] * w[t, lane].

    i < ``count``; w[t, lane] = weights[w_start + t * w_step + lane].
    """

    def codegen(context, builder, signature, arguments):
        types_of = signature.args
        vectors = _Vectors(context, builder, a.dtype)
        share = _Taps(context, builder, (a, offsets, weights), arguments[:8])
        count, target = arguments[8], _data(context, builder, types_of[9], arguments[9])

        def tile(place, pixels):
            begin = builder.mul(place, _index(vectors.lanes))
            sums = vectors.registers(pixels)
            for total in sums:
                builder.store(vectors.zero, total)
            with cgutils.for_range(builder, share.count) as loop:
                weight, source = share.weight(vectors, loop.index), share.pixels(loop.index, begin)
                for i, total in enumerate(sums):
                    vectors.add_product(total, vectors.load(source, _index(i * vectors.lanes)), weight)
            goal = builder.gep(target, [begin])
            for i, total in enumerate(sums):
                vectors.store(builder.load(total), goal, _index(i * vectors.lanes))

        _tiles(builder, count, tile)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, offsets, i64, i64, weights, i64, i64, i64, row), codegen


@intrinsic
def row_gradients(
    typingctx, g, start, offsets, first, taps, weights, w_start, w_step, count, x, x_start, dx, sums, s_start
):
    """``row_products`` of g into ``dx``, and sums[s_start + t * lanes + lane] += sum over i of
    g[start + offsets[first + t] + i * lanes + lane] * x[x_start + i * lanes + lane].

    i goes on to a multiple of PIXELS, where g must be finite and x 0.
    """

    def codegen(context, builder, signature, arguments):
        types_of = signature.args
        vectors = _Vectors(context, builder, g.dtype)
        lanes = vectors.lanes
        share = _Taps(context, builder, (g, offsets, weights), arguments[:8])
        count, dx_row = arguments[8], _data(context, builder, types_of[11], arguments[11])
        x_row = builder.gep(_data(context, builder, types_of[9], arguments[9]), [arguments[10]])
        totals = builder.gep(_data(context, builder, types_of[12], arguments[12]), [arguments[13]])

        def tile(place, pixels):
            begin = builder.mul(place, _index(lanes))
            left, right = builder.gep(x_row, [begin]), builder.gep(dx_row, [begin])
            values = [vectors.load(left, _index(i * lanes)) for i in range(pixels)]
            products, sums = vectors.registers(pixels), vectors.registers(2)
            for product in products:
                builder.store(vectors.zero, product)
            with cgutils.for_range(builder, share.count) as loop:
                weight, source = share.weight(vectors, loop.index), share.pixels(loop.index, begin)
                total = builder.mul(loop.index, _index(lanes))
                builder.store(vectors.load(totals, total), sums[0])
                builder.store(vectors.zero, sums[1])
                for i, product in enumerate(products):
                    gradient = vectors.load(source, _index(i * lanes))
                    vectors.add_product(product, gradient, weight)
                    vectors.add_product(sums[i % 2], gradient, values[i])
                vectors.store(builder.fadd(builder.load(sums[0]), builder.load(sums[1])), totals, total)
            for i, product in enumerate(products):
                vectors.store(builder.load(product), right, _index(i * lanes))

        _tiles(builder, count, tile)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(g, i64, offsets, i64, i64, weights, i64, i64, i64, x, i64, dx, sums, i64), codegen
