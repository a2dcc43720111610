"""Register tiles of convolutions of single pixels; what they share with other tiles is in ``_simd``."""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import OUTER_ROWS, SECOND_CACHE, TILE_ROWS, TILE_VECTORS, Vectors, data_of, index

# Rows of a tile of one vector: it fills the registers with as many sums as one of several.
SLIM_ROWS = TILE_ROWS * TILE_VECTORS
SLIM_OUTER_ROWS = OUTER_ROWS * TILE_VECTORS
# Of the summed axis, that a tile goes at once, or as many as a vector has lanes. Where there are 16 registers, a second
# step would take some from the sums.
STEPS = 4 if TILE_ROWS >= 12 else 1
SOON = 8  # pixels ahead, whose channels come into the first cache for the outer products
ASKING = 2  # steps, for each of which a tile of ``point_tile`` asks for one of the lines that come next


class _Ahead:
    """What tiles have read into the second cache for whoever comes next: arrays, or None, from one place on."""

    def __init__(self, context, builder, array_types, arrays, first, pace):
        self.builder, self.first, self.pace = builder, first, pace
        pairs = zip(array_types, arrays, strict=True)
        self.origins = [
            data_of(context, builder, kind, array) for kind, array in pairs if isinstance(kind, types.Array)
        ]

    def ask(self, vectors, step):
        """The line, or part of one, that is due at a step."""
        place = self.builder.add(self.first, self.builder.mul(self.pace, step))
        for origin in self.origins:
            vectors.prefetch(origin, place, SECOND_CACHE)


def _point_tile(context, builder, signature, arguments, rows, width):
    """The tile of ``rows`` pixels and ``width`` vectors."""
    a_type, _, _, b_type, _, _, out_type, _, _, _, bias_type, _, residual_type, _, limits_type, _, ahead_type, _, _ = (
        signature.args
    )
    a_array, a_first, a_block, b_array, b_first, channels, out_array, out_first, out_step = arguments[:9]
    final, bias_array, bias_first, residual_array, residual_first, limits, streaming = arguments[9:16]
    ahead_array, place, pace = arguments[16:]
    ahead = _Ahead(context, builder, (ahead_type,), (ahead_array,), place, pace)
    vectors = Vectors(context, builder, a_type.dtype)
    lanes, columns = vectors.lanes, TILE_VECTORS * vectors.lanes
    unrolled = min(STEPS, lanes)
    a_origin = builder.gep(data_of(context, builder, a_type, a_array), [a_first])
    b_origin = builder.gep(data_of(context, builder, b_type, b_array), [b_first])
    target = builder.gep(data_of(context, builder, out_type, out_array), [out_first])
    sums = vectors.registers(rows * width)
    for total in sums:
        builder.store(vectors.zero, total)
    count = builder.sdiv(builder.add(channels, index(unrolled - 1)), index(unrolled))
    with cgutils.for_range(builder, count) as loop:
        first = builder.mul(loop.index, index(unrolled))
        block = builder.mul(builder.sdiv(first, index(lanes)), a_block)
        a_column = builder.gep(a_origin, [builder.add(block, builder.and_(first, index(lanes - 1)))])
        b_row = builder.gep(b_origin, [builder.mul(first, index(columns))])
        # What the next block of channels will read: the hardware does not follow streams so short.
        lines = -(-rows * unrolled // lanes)
        done = builder.sdiv(builder.and_(first, index(lanes - 1)), index(unrolled))
        a_next = builder.gep(
            a_origin, [builder.add(builder.add(block, a_block), builder.mul(done, index(lines * lanes)))]
        )
        for line in range(lines):
            vectors.prefetch(a_next, index(line * lanes))
        for k in range(unrolled):
            if k % ASKING == 0:
                ahead.ask(vectors, builder.add(builder.sdiv(first, index(ASKING)), index(k // ASKING)))
            for j in range(width):
                vectors.prefetch(b_row, index((lanes + k) * columns + j * lanes))
            right = [vectors.load(b_row, index(k * columns + j * lanes)) for j in range(width)]
            for i in range(rows):
                left = vectors.broadcast(builder.load(builder.gep(a_column, [index(i * lanes + k)])))
                for j, vector in enumerate(right):
                    vectors.add_product(sums[i * width + j], left, vector)
    results = [builder.load(total) for total in sums]

    def write(values, store):
        for i in range(rows):
            row = builder.gep(target, [builder.mul(out_step, index(i))])
            for j in range(width):
                store(values[i * width + j], row, index(j * lanes))

    with builder.if_else(final) as (whole, raw):
        with whole:
            finished = results
            if isinstance(bias_type, types.Array):
                level = builder.gep(data_of(context, builder, bias_type, bias_array), [bias_first])
                biases = [vectors.load(level, index(j * lanes)) for j in range(width)]
                finished = [builder.fadd(value, biases[k % width]) for k, value in enumerate(finished)]
            if isinstance(residual_type, types.Array):
                added = builder.gep(data_of(context, builder, residual_type, residual_array), [residual_first])
                rows_added = [builder.gep(added, [builder.mul(out_step, index(i))]) for i in range(rows)]
                finished = [
                    builder.fadd(value, vectors.load(rows_added[k // width], index(k % width * lanes)))
                    for k, value in enumerate(finished)
                ]
            if isinstance(limits_type, types.BaseTuple):
                bounds = zip(("<", ">"), limits_type, cgutils.unpack_tuple(builder, limits), strict=True)
                for beyond, kind, limit in bounds:
                    bound = vectors.broadcast(context.cast(builder, limit, kind, a_type.dtype))
                    finished = [
                        builder.select(builder.fcmp_ordered(beyond, value, bound), bound, value) for value in finished
                    ]
            with builder.if_else(streaming) as (streamed, kept):
                with streamed:
                    write(finished, vectors.stream)
                with kept:
                    write(finished, vectors.store)
        with raw:
            write(results, vectors.store)
    return context.get_dummy_value()


def _tile_signature(a, b, out, bias, residual, limits, ahead):
    i64, flag = types.int64, types.boolean
    return types.void(
        a, i64, i64, b, i64, i64, out, i64, i64, flag, bias, i64, residual, i64, limits, flag, ahead, i64, i64
    )  # fmt: skip


@intrinsic
def point_tile(
    typingctx, a, a_start, a_block, b, b_start, channels, out, out_start, out_step, final, bias, bias_start, residual,
    residual_start, limits, streaming, ahead, place, pace,
):  # fmt: skip
    """out[out_start + i * out_step + j] = sum over c < ``channels`` of a[a_start, c, i] * b[b_start + c * columns + j].

    i < TILE_ROWS, j < columns of the register tile. a lies in blocks of as many channels as a vector has lanes, pixel
    by pixel, ``a_block`` elements apart; both operands are 0 from ``channels`` on, up to a multiple of STEPS.
    final: bias[bias_start + j] and residual[residual_start + i * out_step + j] are added and the sum kept within
    ``limits``, none of it if it is None; and ``streaming`` writes whole vectors past the caches.
    ahead: from ``place`` on, ``pace`` elements for ASKING channels come into the second cache meanwhile, unless it is
    None. They may lie beyond the array.
    """

    def codegen(context, builder, signature, arguments):
        return _point_tile(context, builder, signature, arguments, TILE_ROWS, TILE_VECTORS)

    return _tile_signature(a, b, out, bias, residual, limits, ahead), codegen


@intrinsic
def slim_point_tile(
    typingctx, a, a_start, a_block, b, b_start, channels, out, out_start, out_step, final, bias, bias_start, residual,
    residual_start, limits, streaming, ahead, place, pace,
):  # fmt: skip
    """As ``point_tile``, of SLIM_ROWS pixels and the first vector of the columns."""

    def codegen(context, builder, signature, arguments):
        return _point_tile(context, builder, signature, arguments, SLIM_ROWS, 1)

    return _tile_signature(a, b, out, bias, residual, limits, ahead), codegen


def _outer_tile(context, builder, signature, arguments, rows, width):
    """The tile of ``rows`` channels of a and ``width`` vectors of b."""
    a_type, _, b_type, _, _, _, sums_type, _, *ahead_types, _, _ = signature.args
    a_array, a_first, b_array, b_first, b_block, count, sums_array, sums_first, *ahead_arrays, place, pace = arguments
    ahead = _Ahead(context, builder, ahead_types, ahead_arrays, place, pace)
    vectors = Vectors(context, builder, a_type.dtype)
    lanes = vectors.lanes
    a_origin = builder.gep(data_of(context, builder, a_type, a_array), [a_first])
    b_origin = builder.gep(data_of(context, builder, b_type, b_array), [b_first])
    b_blocks = [builder.gep(b_origin, [builder.mul(b_block, index(j))]) for j in range(width)]
    target = builder.gep(data_of(context, builder, sums_type, sums_array), [sums_first])
    places = [index((i * TILE_VECTORS + j) * lanes) for i in range(min(rows, lanes)) for j in range(width)]
    totals = vectors.registers(len(places))
    for place, total in zip(places, totals, strict=True):
        builder.store(vectors.load(target, place), total)
    with cgutils.for_range(builder, count) as loop:
        pixel = builder.mul(loop.index, index(lanes))
        ahead.ask(vectors, loop.index)
        for stream in (a_origin, *b_blocks):
            vectors.prefetch(builder.gep(stream, [pixel]), index(SOON * lanes))
        right = [vectors.load(block, pixel) for block in b_blocks]
        left = builder.gep(a_origin, [pixel])
        for i in range(min(rows, lanes)):
            row = vectors.broadcast(builder.load(builder.gep(left, [index(i)])))
            for j, vector in enumerate(right):
                vectors.add_product(totals[i * width + j], row, vector)
    for place, total in zip(places, totals, strict=True):
        vectors.store(builder.load(total), target, place)
    return context.get_dummy_value()


def _outer_signature(a, b, sums, ahead, beside):
    i64 = types.int64
    return types.void(a, i64, b, i64, i64, i64, sums, i64, ahead, beside, i64, i64)


@intrinsic
def add_point_products(typingctx, a, a_start, b, b_start, b_block, pixels, sums, at, ahead, beside, place, pace):
    """sums[at + i * columns + j] += sum over p < pixels of a[a_start + p * lanes + i] * b[b_start + p * lanes + j].

    i < OUTER_ROWS, j < columns of the register tile; vector v of b lies v * b_block further. Both operands lie in
    blocks of as many channels as a vector has lanes, pixel by pixel.
    ahead, beside: ``pace`` elements a pixel come into the second cache meanwhile, as in ``point_tile``.
    """

    def codegen(context, builder, signature, arguments):
        return _outer_tile(context, builder, signature, arguments, OUTER_ROWS, TILE_VECTORS)

    return _outer_signature(a, b, sums, ahead, beside), codegen


@intrinsic
def add_slim_products(typingctx, a, a_start, b, b_start, b_block, pixels, sums, at, ahead, beside, place, pace):
    """As ``add_point_products``, of the first vector of the columns and so many more rows."""

    def codegen(context, builder, signature, arguments):
        return _outer_tile(context, builder, signature, arguments, SLIM_OUTER_ROWS, 1)

    return _outer_signature(a, b, sums, ahead, beside), codegen
