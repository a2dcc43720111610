"""Register tiles of few outputs, and of dot products, for images whose pixels are vectors."""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS, VECTOR_BYTES, Vectors, data_of, index
from fastbn.kernels._simd_gemm import emit_tile, packed_rows

# Rows and columns of the tile of dot products: its sums, one row's and all columns' vectors fill the registers.
DOT_ROWS, DOT_COLUMNS = (2, 5) if (TILE_ROWS, VECTOR_BYTES) in ((6, 32), (6, 16)) else (4, 6)

# The tile of few outputs: as many sums, more of them along a row.
LANE_ROWS = 6
LANE_VECTORS = TILE_ROWS * TILE_VECTORS // LANE_ROWS


@intrinsic
def lane_tile(
    typingctx, a, a_start, b, b_start, offsets, place, first, lines, step, run, places, at, out, out_start, out_step
):
    """out[out_start + i * out_step + targets[j] + lane] = a[a_start + i] + sum over k of
    a[a_start + (1 + k) * LANE_ROWS + i] * b[b_start + offsets[place + k] + sources[j] + lane].

    k = first + line * step + number, line < ``lines``, number < ``run``; i < LANE_ROWS, j < LANE_VECTORS; sources and
    targets follow one another in ``places`` (int64) from ``at``.
    """

    def codegen(context, builder, signature, arguments):
        types_of = signature.args
        a_array, a_first, b_array, b_first, table, t_first, k_first, line_count, line_step, count = arguments[:10]
        place_array, p_first, out_array, out_first, out_rows = arguments[10:]
        vectors = Vectors(context, builder, types_of[0].dtype)
        biases = builder.gep(data_of(context, builder, types_of[0], a_array), [a_first])
        origin = builder.gep(data_of(context, builder, types_of[2], b_array), [b_first])
        target = builder.gep(data_of(context, builder, types_of[12], out_array), [out_first])
        distances = builder.gep(data_of(context, builder, types_of[4], table), [t_first])
        numbers = builder.gep(data_of(context, builder, types_of[10], place_array), [p_first])
        read = [builder.load(builder.gep(numbers, [index(j)])) for j in range(2 * LANE_VECTORS)]
        sources = [builder.gep(origin, [number]) for number in read[:LANE_VECTORS]]
        sums = vectors.registers(LANE_ROWS * LANE_VECTORS)
        for i in range(LANE_ROWS):
            bias = vectors.broadcast(builder.load(builder.gep(biases, [index(i)])))
            for j in range(LANE_VECTORS):
                builder.store(bias, sums[i * LANE_VECTORS + j])
        with cgutils.for_range(builder, line_count) as line:
            begin = builder.add(k_first, builder.mul(line.index, line_step))
            a_panel = builder.gep(biases, [builder.mul(builder.add(begin, index(1)), index(LANE_ROWS))])
            line_distances = builder.gep(distances, [begin])

            def columns_at(k):
                distance = builder.load(builder.gep(line_distances, [k]))
                return [builder.gep(source, [distance]) for source in sources]

            rows_at = packed_rows(builder, a_panel, LANE_ROWS)
            emit_tile(context, builder, types_of[0].dtype, rows_at, columns_at, count, sums)
        for i in range(LANE_ROWS):
            row = builder.gep(target, [builder.mul(out_rows, index(i))])
            for j, number in enumerate(read[LANE_VECTORS:]):
                vectors.store(builder.load(sums[i * LANE_VECTORS + j]), row, number)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, offsets, i64, i64, i64, i64, i64, places, i64, out, i64, i64), codegen


@intrinsic
def add_dot_products(typingctx, a, a_start, a_rows, a_at, a_line, b, b_start, b_rows, b_at, b_line, steps, lines, sums):
    """sums[i, j, lane] += sum over line and step of a[a_start + a_rows[a_at + i] + line * a_line + q] * b[...].

    q = step * lanes + lane, line < ``lines``, step < ``steps``; b likewise, with j. a_rows, b_rows: int64, DOT_ROWS
    and DOT_COLUMNS of which are read. sums: flat, DOT_ROWS * DOT_COLUMNS vectors.
    """

    def codegen(context, builder, signature, arguments):
        a_type, b_type, sums_type = signature.args[0], signature.args[5], signature.args[12]
        count, line_count, sums_array = arguments[10:]
        vectors = Vectors(context, builder, a_type.dtype)
        sums_data = data_of(context, builder, sums_type, sums_array)

        def rows_of(array_type, table_type, rows, array, start, table, at):
            origin = builder.gep(data_of(context, builder, array_type, array), [start])
            numbers = builder.gep(data_of(context, builder, table_type, table), [at])
            return [builder.gep(origin, [builder.load(builder.gep(numbers, [index(i)]))]) for i in range(rows)]

        a_data = rows_of(a_type, signature.args[2], DOT_ROWS, *arguments[:4])
        b_data = rows_of(b_type, signature.args[7], DOT_COLUMNS, *arguments[5:9])
        totals = vectors.registers(DOT_ROWS * DOT_COLUMNS)
        for position, total in enumerate(totals):
            builder.store(vectors.load(sums_data, index(position * vectors.lanes)), total)
        with cgutils.for_range(builder, line_count) as line:
            a_first, b_first = builder.mul(line.index, arguments[4]), builder.mul(line.index, arguments[9])
            with cgutils.for_range(builder, count) as loop:
                q = builder.mul(loop.index, index(vectors.lanes))
                columns = [vectors.load(pointer, builder.add(b_first, q)) for pointer in b_data]
                for i, pointer in enumerate(a_data):
                    row = vectors.load(pointer, builder.add(a_first, q))
                    for j, column in enumerate(columns):
                        vectors.add_product(totals[i * DOT_COLUMNS + j], row, column)
        for position, total in enumerate(totals):
            vectors.store(builder.load(total), sums_data, index(position * vectors.lanes))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, a_rows, i64, i64, b, i64, b_rows, i64, i64, i64, i64, sums), codegen
