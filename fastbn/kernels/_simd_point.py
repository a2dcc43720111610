"""Register tiles of convolutions of single pixels; what they share with other tiles is in ``_simd``."""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import OUTER_ROWS, TILE_ROWS, TILE_VECTORS, _data, _index, _Vectors

# Rows of a tile of one vector: it fills the registers with as many sums as one of several.
SLIM_ROWS = TILE_ROWS * TILE_VECTORS
SLIM_OUTER_ROWS = OUTER_ROWS * TILE_VECTORS
STEPS = 4  # of the summed axis that a tile goes at once, or as many as a vector has lanes


def _point_tile(context, builder, signature, arguments, rows, width):
    """The tile of ``rows`` pixels and ``width`` vectors."""
    a_type, _, _, b_type, _, _, out_type, _, _ = signature.args
    a_array, a_first, a_block, b_array, b_first, channels, out_array, out_first, out_step = arguments
    vectors = _Vectors(context, builder, a_type.dtype)
    lanes, columns = vectors.lanes, TILE_VECTORS * vectors.lanes
    unrolled = min(STEPS, lanes)
    a_origin = builder.gep(_data(context, builder, a_type, a_array), [a_first])
    b_origin = builder.gep(_data(context, builder, b_type, b_array), [b_first])
    target = builder.gep(_data(context, builder, out_type, out_array), [out_first])
    sums = vectors.registers(rows * width)
    for total in sums:
        builder.store(vectors.zero, total)
    count = builder.sdiv(builder.add(channels, _index(unrolled - 1)), _index(unrolled))
    with cgutils.for_range(builder, count) as loop:
        first = builder.mul(loop.index, _index(unrolled))
        block = builder.mul(builder.sdiv(first, _index(lanes)), a_block)
        a_column = builder.gep(a_origin, [builder.add(block, builder.and_(first, _index(lanes - 1)))])
        b_row = builder.gep(b_origin, [builder.mul(first, _index(columns))])
        for k in range(unrolled):
            right = [vectors.load(b_row, _index(k * columns + j * lanes)) for j in range(width)]
            for i in range(rows):
                left = vectors.broadcast(builder.load(builder.gep(a_column, [_index(i * lanes + k)])))
                for j, vector in enumerate(right):
                    vectors.add_product(sums[i * width + j], left, vector)
    for i in range(rows):
        row = builder.gep(target, [builder.mul(out_step, _index(i))])
        for j in range(width):
            vectors.store(builder.load(sums[i * width + j]), row, _index(j * lanes))
    return context.get_dummy_value()


@intrinsic
def point_tile(typingctx, a, a_start, a_block, b, b_start, channels, out, out_start, out_step):
    """out[out_start + i * out_step + j] = sum over c < ``channels`` of a[a_start, c, i] * b[b_start + c * columns + j].

    i < TILE_ROWS, j < columns of the register tile. a lies in blocks of as many channels as a vector has lanes, pixel
    by pixel, ``a_block`` elements apart; both operands are 0 from ``channels`` on, up to a multiple of STEPS.
    """

    def codegen(context, builder, signature, arguments):
        return _point_tile(context, builder, signature, arguments, TILE_ROWS, TILE_VECTORS)

    i64 = types.int64
    return types.void(a, i64, i64, b, i64, i64, out, i64, i64), codegen


@intrinsic
def slim_point_tile(typingctx, a, a_start, a_block, b, b_start, channels, out, out_start, out_step):
    """As ``point_tile``, of SLIM_ROWS pixels and the first vector of the columns."""

    def codegen(context, builder, signature, arguments):
        return _point_tile(context, builder, signature, arguments, SLIM_ROWS, 1)

    i64 = types.int64
    return types.void(a, i64, i64, b, i64, i64, out, i64, i64), codegen


@intrinsic
def add_slim_products(typingctx, a, a_start, b, b_start, pixels, sums, at):
    """As ``add_block_products``, of the first vector of the columns and so many more rows."""

    def codegen(context, builder, signature, arguments):
        a_type, _, b_type, _, _, sums_type, _ = signature.args
        a_array, a_first, b_array, b_first, count, sums_array, sums_first = arguments
        vectors = _Vectors(context, builder, a_type.dtype)
        lanes = vectors.lanes
        a_origin = builder.gep(_data(context, builder, a_type, a_array), [a_first])
        b_origin = builder.gep(_data(context, builder, b_type, b_array), [b_first])
        target = builder.gep(_data(context, builder, sums_type, sums_array), [sums_first])
        places = [_index(i * TILE_VECTORS * lanes) for i in range(min(SLIM_OUTER_ROWS, lanes))]
        totals = vectors.registers(len(places))
        for place, total in zip(places, totals, strict=True):
            builder.store(vectors.load(target, place), total)
        with cgutils.for_range(builder, count) as loop:
            pixel = builder.mul(loop.index, _index(lanes))
            right = vectors.load(b_origin, pixel)
            left = builder.gep(a_origin, [pixel])
            for i, total in enumerate(totals):
                row = vectors.broadcast(builder.load(builder.gep(left, [_index(i)])))
                vectors.add_product(total, row, right)
        for place, total in zip(places, totals, strict=True):
            vectors.store(builder.load(total), target, place)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, i64, sums, i64), codegen
