"""Register tiles of matrix products."""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import TILE_BYTES, TILE_ROWS, TILE_VECTORS, Vectors, data_of, index


def emit_tile(context, builder, dtype, rows_at, columns_at, depth, sums):
    """The register tile's loop over ``depth``; ``rows_at(k)`` are pointers to the left operand's numbers of step k,
    ``columns_at(k)`` to the right one's vectors.
    """
    vectors = Vectors(context, builder, dtype)
    with cgutils.for_range(builder, depth) as loop:
        rows = rows_at(loop.index)
        columns = [vectors.load(pointer, index(0)) for pointer in columns_at(loop.index)]
        for i, pointer in enumerate(rows):
            row = vectors.broadcast(builder.load(pointer))
            for j, column in enumerate(columns):
                vectors.add_product(sums[i * len(columns) + j], row, column)


def packed_rows(builder, a_panel, rows):
    """``rows_at`` of a packed panel of so many rows."""

    def rows_at(k):
        a_row = builder.gep(a_panel, [builder.mul(k, index(rows))])
        return [builder.gep(a_row, [index(i)]) for i in range(rows)]

    return rows_at


def _whole_tile(context, builder, dtype, rows_at, b_row_at, depth, tile, width=TILE_VECTORS):
    """A tile of TILE_ROWS and ``width`` vectors; the right operand's columns lie side by side from ``b_row_at(k)``."""
    vectors = Vectors(context, builder, dtype)
    sums = vectors.registers(TILE_ROWS * width)
    for total in sums:
        builder.store(vectors.zero, total)

    def columns_at(k):
        b_row = b_row_at(k)
        return [builder.gep(b_row, [index(j * vectors.lanes)]) for j in range(width)]

    emit_tile(context, builder, dtype, rows_at, columns_at, depth, sums)
    for position, total in enumerate(sums):
        vectors.store(builder.load(total), tile, index(position * vectors.lanes))


@intrinsic
def tile_product(typingctx, a, a_start, b, b_start, depth, tile):
    """tile[i, j] = sum over k < depth of a[a_start + k * TILE_ROWS + i] * b[b_start + k * columns + j].

    a, b: flat arrays holding packed panels; tile: flat, TILE_ROWS * columns, overwritten.
    columns = TILE_BYTES / itemsize.
    """

    def codegen(context, builder, signature, arguments):
        a_type, _, b_type, _, _, tile_type = signature.args
        a_array, a_first, b_array, b_first, count, tile_array = arguments
        a_panel = builder.gep(data_of(context, builder, a_type, a_array), [a_first])
        b_panel = builder.gep(data_of(context, builder, b_type, b_array), [b_first])
        width = index(TILE_BYTES // (a_type.dtype.bitwidth // 8))

        def b_row_at(k):
            return builder.gep(b_panel, [builder.mul(k, width)])

        rows_at, tile_data = packed_rows(builder, a_panel, TILE_ROWS), data_of(context, builder, tile_type, tile_array)
        _whole_tile(context, builder, a_type.dtype, rows_at, b_row_at, count, tile_data)
        return context.get_dummy_value()

    return types.void(a, types.int64, b, types.int64, types.int64, tile), codegen


@intrinsic
def tile_product_at(typingctx, a, a_start, b, b_start, offsets, tile):
    """tile[i, j] = sum over k of a[a_start + k * TILE_ROWS + i] * b[b_start + offsets[k] + j].

    As ``tile_product``, but row k of the right operand lies where ``offsets`` (int64) says, in place.
    """

    def codegen(context, builder, signature, arguments):
        a_type, _, b_type, _, offsets_type, tile_type = signature.args
        a_array, a_first, b_array, b_first, offsets_array, tile_array = arguments
        a_panel = builder.gep(data_of(context, builder, a_type, a_array), [a_first])
        b_origin = builder.gep(data_of(context, builder, b_type, b_array), [b_first])
        table = context.make_array(offsets_type)(context, builder, offsets_array)

        def b_row_at(k):
            return builder.gep(b_origin, [builder.load(builder.gep(table.data, [k]))])

        rows_at, tile_data = packed_rows(builder, a_panel, TILE_ROWS), data_of(context, builder, tile_type, tile_array)
        _whole_tile(context, builder, a_type.dtype, rows_at, b_row_at, table.nitems, tile_data)
        return context.get_dummy_value()

    return types.void(a, types.int64, b, types.int64, offsets, tile), codegen


def _tile_in_place(width):
    @intrinsic
    def tile_product_in_place(typingctx, a, a_start, a_row, a_depth, rows, b, b_start, b_depth, depth, tile):
        """tile[i, j] = sum over k < depth of a[a_start + i * a_row + k * a_depth] * b[b_start + k * b_depth + j].

        As ``tile_product``, of ``width`` vectors, but both operands lie where they are, a row of the right one side by
        side. rows: 1 or more; the last of them stands for those of the tile that are too many.
        """

        def codegen(context, builder, signature, arguments):
            a_type, b_type, tile_type = signature.args[0], signature.args[5], signature.args[9]
            a_array, a_first, row_step, a_step, used, b_array, b_first, b_step, count, tile_array = arguments
            origin = builder.gep(data_of(context, builder, a_type, a_array), [a_first])
            b_origin = builder.gep(data_of(context, builder, b_type, b_array), [b_first])
            last = builder.sub(used, index(1))
            within = [builder.icmp_signed("<", index(i), last) for i in range(TILE_ROWS)]
            numbers = [builder.select(inside, index(i), last) for i, inside in enumerate(within)]
            a_rows = [builder.gep(origin, [builder.mul(number, row_step)]) for number in numbers]

            def rows_at(k):
                at = builder.mul(k, a_step)
                return [builder.gep(row, [at]) for row in a_rows]

            def b_row_at(k):
                return builder.gep(b_origin, [builder.mul(k, b_step)])

            tile_data = data_of(context, builder, tile_type, tile_array)
            _whole_tile(context, builder, a_type.dtype, rows_at, b_row_at, count, tile_data, width)
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(a, i64, i64, i64, i64, b, i64, i64, i64, tile), codegen

    return tile_product_in_place


tile_product_in_place, slim_product_in_place = _tile_in_place(TILE_VECTORS), _tile_in_place(1)
