"""Register tiles of convolutions, on operands in blocks of channels."""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn.kernels._simd import (
    OUTER_ROWS,
    SECOND_CACHE,
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    Vectors,
    data_of,
    index,
)

# Channels that a tile of blocks goes on at once, or as many as a vector has lanes, and lines of the panel after its own
# that it asks for meanwhile.
CHANNELS, ASKED = 4, 3


class _Ahead:
    """What is read after a tile of blocks, and asked for meanwhile; see ``block_tile``."""

    def __init__(self, builder, panel, pace, rows=(), at=None, step=None):
        """panel: a pointer; rows: of (data, whether it is to be written)."""
        self.builder, self.panel, self.pace, self.rows, self.at, self.step = builder, panel, pace, rows, at, step

    def ask(self, vectors, group, rows, width):
        """For lines of the panel, and a row of ``width`` vectors, as long as there are any."""
        builder = self.builder
        place = builder.mul(group, self.pace)
        for line in range(ASKED):
            vectors.prefetch(builder.gep(self.panel, [place]), index(line * vectors.lanes), SECOND_CACHE)
        if not self.rows:
            return
        row = builder.select(builder.icmp_signed("<", group, index(rows)), group, index(rows - 1))
        place = builder.add(self.at, builder.mul(row, self.step))
        for origin, write in self.rows:
            for v in range(width):
                vectors.prefetch(builder.gep(origin, [place]), index(v * vectors.lanes), write=write)


def _block_tile(
    context, builder, a_type, a_rows, a_step, b_type, b_origin, b_step, offsets, taps, count, targets, add, ahead
):
    """Tiles of the pixels at the pointers ``a_rows`` and as many panels, ``b_step`` apart, as ``targets`` name.

    targets: for each panel a pointer to each pixel's columns; written over, or added to if ``add``. offsets: data;
    taps: the first, and the one after the last. ahead: an ``_Ahead``.
    """
    vectors = Vectors(context, builder, a_type.dtype)
    lanes, columns, panels = vectors.lanes, TILE_VECTORS * vectors.lanes, len(targets)
    unrolled, rows = min(CHANNELS, lanes), len(a_rows)
    lines = -(-rows * unrolled // lanes) if panels == 1 else 0  # to be asked for, where pixels lie side by side
    places = [(panel, v) for panel in range(panels) for v in range(TILE_VECTORS)]
    sums = {(i, *place): cgutils.alloca_once(builder, vectors.type) for i in range(rows) for place in places}
    for (i, panel, v), total in sums.items():
        start = vectors.load(targets[panel][i], index(v * lanes)) if add else vectors.zero
        builder.store(start, total)
    with cgutils.for_range(builder, taps[1], taps[0]) as loop:
        tap = builder.load(builder.gep(offsets, [loop.index]))
        b_tap = builder.gep(b_origin, [builder.mul(builder.mul(loop.index, count), index(lanes * columns))])
        with cgutils.for_range(builder, count) as channels:
            pixel = builder.add(tap, builder.mul(channels.index, a_step))
            b_rows = builder.gep(b_tap, [builder.mul(channels.index, index(lanes * columns))])
            with cgutils.for_range(builder, index(lanes // unrolled)) as steps:
                column = builder.add(pixel, builder.mul(steps.index, index(unrolled)))
                b_row = builder.gep(b_rows, [builder.mul(steps.index, index(unrolled * columns))])
                b_panels = [builder.gep(b_row, [builder.mul(b_step, index(panel))]) for panel in range(panels)]
                group = builder.add(builder.mul(builder.sub(loop.index, taps[0]), count), channels.index)
                group = builder.add(builder.mul(group, index(lanes // unrolled)), steps.index)
                ahead.ask(vectors, group, rows, len(places))
                # What the next block of channels will read: the hardware does not follow streams so short.
                a_next = builder.gep(a_rows[0], [builder.add(pixel, a_step)])
                a_next = builder.gep(a_next, [builder.mul(steps.index, index(lines * lanes))])
                for line in range(lines):
                    vectors.prefetch(a_next, index(line * lanes))
                for k in range(unrolled):
                    for panel, v in places:
                        vectors.prefetch(b_panels[panel], index((lanes + k) * columns + v * lanes))
                    right = {
                        (panel, v): vectors.load(b_panels[panel], index(k * columns + v * lanes)) for panel, v in places
                    }
                    for i, a_row in enumerate(a_rows):
                        value = builder.load(builder.gep(builder.gep(a_row, [column]), [index(k)]))
                        left = vectors.broadcast(value)
                        for place, vector in right.items():
                            vectors.add_product(sums[i, *place], left, vector)
    for (i, panel, v), total in sums.items():
        vectors.store(builder.load(total), targets[panel][i], index(v * lanes))


@intrinsic
def block_tile(
    typingctx, a, a_start, a_block, b, b_start, offsets, blocks, tile, ahead, pace, out, residual, at, step
):  # fmt: skip
    """tile[i, j] = sum over t, c, k of a[a_start + offsets[t] + c * a_block + i * lanes + k] * b[t, c, k, j].

    i < TILE_ROWS, c < ``blocks``, k < lanes of a vector; b: flat (offsets.size, blocks, lanes, columns) from b_start.
    As ``tile_product``, but the left operand lies in blocks of as many channels as a vector has lanes, pixel by pixel.

    Meanwhile caches are asked for what comes next: of b, from ``ahead`` on, ``pace`` elements for CHANNELS channels, no
    more than ASKED vectors of which are read; of out, to be written, and residual, unless None, the tile's rows from
    ``at`` on, ``step`` apart. All of it may lie beyond the arrays.
    """

    def codegen(context, builder, signature, arguments):
        a_type, _, _, b_type, _, offsets_type, _, tile_type, _, _, *row_types, _, _ = signature.args
        a_array, a_first, a_step, b_array, b_first, offsets_array, count, tile_array = arguments[:8]
        first_ahead, pace, *row_arrays, row_at, row_step = arguments[8:]
        table = context.make_array(offsets_type)(context, builder, offsets_array)
        origin = builder.gep(data_of(context, builder, a_type, a_array), [a_first])
        lanes = VECTOR_BYTES // (a_type.dtype.bitwidth // 8)
        rows = [builder.gep(origin, [index(i * lanes)]) for i in range(TILE_ROWS)]
        b_data = data_of(context, builder, b_type, b_array)
        right = b_type, builder.gep(b_data, [b_first]), index(0)
        target = data_of(context, builder, tile_type, tile_array)
        targets = [[builder.gep(target, [index(i * TILE_VECTORS * lanes)]) for i in range(TILE_ROWS)]]
        taps = index(0), table.nitems
        given = zip(row_types, row_arrays, (True, False), strict=True)
        asked = [(data_of(context, builder, t, array), write) for t, array, write in given if t != types.none]
        ahead = _Ahead(builder, builder.gep(b_data, [first_ahead]), pace, asked, row_at, row_step)
        _block_tile(context, builder, a_type, rows, a_step, *right, table.data, taps, count, targets, False, ahead)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, b, i64, offsets, i64, tile, i64, i64, out, residual, i64, i64), codegen


@intrinsic
def add_pixel_tile(
    typingctx, a, places, targets, at, a_block, b, b_start, b_panel, offsets, tap, last, blocks, sums, apart, ahead,
    pace,
):  # fmt: skip
    """As ``block_tile``, of half as many pixels, two panels and the taps from ``tap`` to ``last``, added to ``sums``.

    Pixel i lies at places[at + i] in a, its sums at targets[at + i] * columns; panels lie ``b_panel`` apart, their sums
    ``apart``. Of out and residual nothing is asked for.
    """

    def codegen(context, builder, signature, arguments):
        types_of = signature.args
        a_array, places_array, targets_array, first, a_step, b_array, b_first, b_step = arguments[:8]
        offsets_array, first_tap, last_tap, count, sums_array, step, first_ahead, pace = arguments[8:]
        lanes = VECTOR_BYTES // (types_of[0].dtype.bitwidth // 8)

        def pointers(array_type, array, table_type, table, scale):
            origin = data_of(context, builder, array_type, array)
            numbers = builder.gep(data_of(context, builder, table_type, table), [first])
            read = [builder.load(builder.gep(numbers, [index(i)])) for i in range(TILE_ROWS // 2)]
            return [builder.gep(origin, [builder.mul(number, index(scale))]) for number in read]

        rows = pointers(types_of[0], a_array, types_of[1], places_array, 1)
        sums_of = pointers(types_of[12], sums_array, types_of[2], targets_array, TILE_VECTORS * lanes)
        goals = [sums_of, [builder.gep(goal, [step]) for goal in sums_of]]
        b_data = data_of(context, builder, types_of[5], b_array)
        right = types_of[5], builder.gep(b_data, [b_first]), b_step
        table, taps = data_of(context, builder, types_of[8], offsets_array), (first_tap, last_tap)
        ahead = _Ahead(builder, builder.gep(b_data, [first_ahead]), pace)
        _block_tile(context, builder, types_of[0], rows, a_step, *right, table, taps, count, goals, True, ahead)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        a, places, targets, i64, i64, b, i64, i64, offsets, i64, i64, i64, sums, i64, i64, i64
    ), codegen  # fmt: skip


def _add_products(context, builder, dtype, a_at, b_at, b_block, count, target):
    """Add, for each pixel, the products of OUTER_ROWS channels from ``a_at(pixel)`` and the vectors from ``b_at``."""
    vectors = Vectors(context, builder, dtype)
    lanes = vectors.lanes
    rows = min(OUTER_ROWS, lanes)
    totals = vectors.registers(rows * TILE_VECTORS)
    for position, total in enumerate(totals):
        builder.store(vectors.load(target, index(position * lanes)), total)
    with cgutils.for_range(builder, count) as loop:
        left, first = a_at(loop.index), b_at(loop.index)
        right = [vectors.load(first, builder.mul(b_block, index(j))) for j in range(TILE_VECTORS)]
        for i in range(rows):
            row = vectors.broadcast(builder.load(builder.gep(left, [index(i)])))
            for j, vector in enumerate(right):
                vectors.add_product(totals[i * TILE_VECTORS + j], row, vector)
    for position, total in enumerate(totals):
        vectors.store(builder.load(total), target, index(position * lanes))


def _pixels(context, builder, array_type, array, start, scale, table=None):
    """A function from a pixel's number to its place: ``table`` (type, array, start) says where, or they follow on."""
    origin = builder.gep(data_of(context, builder, array_type, array), [start])
    if table is None:
        return lambda pixel: builder.gep(origin, [builder.mul(pixel, index(scale))])
    table_type, numbers, first = table
    numbers = builder.gep(data_of(context, builder, table_type, numbers), [first])

    def at(pixel):
        return builder.gep(origin, [builder.mul(builder.load(builder.gep(numbers, [pixel])), index(scale))])

    return at


@intrinsic
def add_block_products(typingctx, a, a_start, b, b_start, b_block, pixels, sums, at):
    """sums[at + i * columns + j] += sum over p < pixels of a[a_start + p * lanes + i] * b[b_start + p * lanes + j].

    i < OUTER_ROWS, j < columns of the register tile; vector v of b lies v * b_block further. Both operands lie in
    blocks of as many channels as a vector has lanes, pixel by pixel.
    """

    def codegen(context, builder, signature, arguments):
        a_type, _, b_type, _, _, _, sums_type, _ = signature.args
        a_array, a_first, b_array, b_first, b_step, count, sums_array, sums_first = arguments
        lanes = VECTOR_BYTES // (a_type.dtype.bitwidth // 8)
        a_at = _pixels(context, builder, a_type, a_array, a_first, lanes)
        b_at = _pixels(context, builder, b_type, b_array, b_first, lanes)
        target = builder.gep(data_of(context, builder, sums_type, sums_array), [sums_first])
        _add_products(context, builder, a_type.dtype, a_at, b_at, b_step, count, target)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, i64, i64, sums, i64), codegen


@intrinsic
def add_pixel_products(typingctx, a, a_start, places, b, b_start, targets, at, b_block, pixels, sums, sums_at):
    """As ``add_block_products``, but pixel p lies at places[at + p] in a, and is number targets[at + p] in b."""

    def codegen(context, builder, signature, arguments):
        a_type, _, places_type, b_type, _, targets_type, _, _, _, sums_type, _ = signature.args
        a_array, a_first, places_array, b_array, b_first, targets_array, first = arguments[:7]
        b_step, count, sums_array, sums_first = arguments[7:]
        lanes = VECTOR_BYTES // (a_type.dtype.bitwidth // 8)
        a_at = _pixels(context, builder, a_type, a_array, a_first, 1, (places_type, places_array, first))
        b_at = _pixels(context, builder, b_type, b_array, b_first, lanes, (targets_type, targets_array, first))
        target = builder.gep(data_of(context, builder, sums_type, sums_array), [sums_first])
        _add_products(context, builder, a_type.dtype, a_at, b_at, b_step, count, target)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, places, b, i64, targets, i64, i64, i64, sums, i64), codegen
