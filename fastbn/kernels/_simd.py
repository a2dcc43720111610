"""What Numba cannot say and LLVM can: register tiles of matrix products, with explicit vectors."""

import platform

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


def _tile_for_host() -> tuple[int, int, int]:
    """Rows, vectors a row and bytes a vector of the register tile: all registers but those for the operands."""
    features = get_host_cpu_features()
    if features.get("avx512f"):  # 32 registers: 28 sums, 2 vectors, 1 broadcast
        return 14, 2, 64
    if features.get("avx2"):  # 16 registers: 12 sums, 2 vectors, 1 broadcast
        return 6, 2, 32
    if platform.machine() in ("aarch64", "arm64"):  # 32 registers
        return 12, 2, 16
    return 6, 2, 16


TILE_ROWS, TILE_VECTORS, VECTOR_BYTES = _tile_for_host()
# Columns of the tile: for float32, and half of them for float64.
TILE_BYTES = TILE_VECTORS * VECTOR_BYTES


# Rows and columns of the tile of dot products: its sums, one row's and all columns' vectors fill the registers.
DOT_ROWS, DOT_COLUMNS = (2, 5) if (TILE_ROWS, VECTOR_BYTES) in ((6, 32), (6, 16)) else (4, 6)

# The tile of few outputs: as many sums, more of them along a row.
LANE_ROWS = 6
LANE_VECTORS = TILE_ROWS * TILE_VECTORS // LANE_ROWS

# Where a prefetch leads, as LLVM counts them.
FIRST_CACHE, SECOND_CACHE = 3, 2

# Channels that a tile of blocks goes on at once, or as many as a vector has lanes, and lines of the panel after its own
# that it asks for meanwhile.
CHANNELS, ASKED = 4, 3

# Rows of the tile of products summed over pixels, where a vector has as many lanes.
OUTER_ROWS = 8 if TILE_ROWS >= 12 else 4


def _index(value):
    return ir.Constant(ir.IntType(64), value)


def _data(context, builder, array_type, array):
    return context.make_array(array_type)(context, builder, array).data


class _Vectors:
    """Loads, stores and multiply-adds of whole vectors of one element type."""

    def __init__(self, context, builder, dtype):
        self.builder = builder
        self.itemsize = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.itemsize
        self.type = ir.VectorType(context.get_value_type(dtype), self.lanes)
        self.zero = ir.Constant(self.type, [0.0] * self.lanes)

    def _at(self, pointer, offset):
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), self.type.as_pointer())

    def load(self, pointer, offset):
        return self.builder.load(self._at(pointer, offset), align=self.itemsize)

    def store(self, value, pointer, offset):
        self.builder.store(value, self._at(pointer, offset), align=self.itemsize)

    def broadcast(self, scalar):
        undefined = ir.Constant(self.type, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, lanes)

    def registers(self, count):
        """Variables that LLVM keeps in registers."""
        return [cgutils.alloca_once(self.builder, self.type) for _ in range(count)]

    def stream(self, value, pointer, offset):
        """Store past the caches, at a multiple of a vector's size."""
        written = self.builder.store(value, self._at(pointer, offset), align=VECTOR_BYTES)
        written.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))

    def prefetch(self, pointer, offset, level=FIRST_CACHE, write=False):
        """Have the cache line at ``offset`` read soon; it may lie beyond the array."""
        integer = ir.IntType(32)
        place = self.builder.bitcast(self.builder.gep(pointer, [offset]), ir.IntType(8).as_pointer())
        function_type = ir.FunctionType(ir.VoidType(), [place.type, integer, integer, integer])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, "llvm.prefetch.p0")
        self.builder.call(function, [place, *(ir.Constant(integer, number) for number in (int(write), level, 1))])

    def add_product(self, total, a, b):
        product = self.builder.fmul(a, b, flags=("contract",))
        self.builder.store(self.builder.fadd(self.builder.load(total), product, flags=("contract",)), total)


def _tile(context, builder, dtype, rows_at, columns_at, depth, sums):
    """The register tile's loop over ``depth``; ``rows_at(k)`` are pointers to the left operand's numbers of step k,
    ``columns_at(k)`` to the right one's vectors.
    """
    vectors = _Vectors(context, builder, dtype)
    with cgutils.for_range(builder, depth) as loop:
        rows = rows_at(loop.index)
        columns = [vectors.load(pointer, _index(0)) for pointer in columns_at(loop.index)]
        for i, pointer in enumerate(rows):
            row = vectors.broadcast(builder.load(pointer))
            for j, column in enumerate(columns):
                vectors.add_product(sums[i * len(columns) + j], row, column)


def _packed_rows(builder, a_panel, rows):
    """``rows_at`` of a packed panel of so many rows."""

    def rows_at(k):
        a_row = builder.gep(a_panel, [builder.mul(k, _index(rows))])
        return [builder.gep(a_row, [_index(i)]) for i in range(rows)]

    return rows_at


def _whole_tile(context, builder, dtype, rows_at, b_row_at, depth, tile):
    """A tile of TILE_ROWS and TILE_VECTORS, whose right operand has its columns side by side from ``b_row_at(k)``."""
    vectors = _Vectors(context, builder, dtype)
    sums = vectors.registers(TILE_ROWS * TILE_VECTORS)
    for total in sums:
        builder.store(vectors.zero, total)

    def columns_at(k):
        b_row = b_row_at(k)
        return [builder.gep(b_row, [_index(j * vectors.lanes)]) for j in range(TILE_VECTORS)]

    _tile(context, builder, dtype, rows_at, columns_at, depth, sums)
    for position, total in enumerate(sums):
        vectors.store(builder.load(total), tile, _index(position * vectors.lanes))


@intrinsic
def tile_product(typingctx, a, a_start, b, b_start, depth, tile):
    """tile[i, j] = sum over k < depth of a[a_start + k * TILE_ROWS + i] * b[b_start + k * columns + j].

    a, b: flat arrays holding packed panels; tile: flat, TILE_ROWS * columns, overwritten.
    columns = TILE_BYTES / itemsize.
    """

    def codegen(context, builder, signature, arguments):
        a_type, _, b_type, _, _, tile_type = signature.args
        a_array, a_first, b_array, b_first, count, tile_array = arguments
        a_panel = builder.gep(_data(context, builder, a_type, a_array), [a_first])
        b_panel = builder.gep(_data(context, builder, b_type, b_array), [b_first])
        width = _index(TILE_BYTES // (a_type.dtype.bitwidth // 8))

        def b_row_at(k):
            return builder.gep(b_panel, [builder.mul(k, width)])

        rows_at, tile_data = _packed_rows(builder, a_panel, TILE_ROWS), _data(context, builder, tile_type, tile_array)
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
        a_panel = builder.gep(_data(context, builder, a_type, a_array), [a_first])
        b_origin = builder.gep(_data(context, builder, b_type, b_array), [b_first])
        table = context.make_array(offsets_type)(context, builder, offsets_array)

        def b_row_at(k):
            return builder.gep(b_origin, [builder.load(builder.gep(table.data, [k]))])

        rows_at, tile_data = _packed_rows(builder, a_panel, TILE_ROWS), _data(context, builder, tile_type, tile_array)
        _whole_tile(context, builder, a_type.dtype, rows_at, b_row_at, table.nitems, tile_data)
        return context.get_dummy_value()

    return types.void(a, types.int64, b, types.int64, offsets, tile), codegen


@intrinsic
def tile_product_in_place(typingctx, a, a_start, a_row, a_depth, rows, b, b_start, b_depth, depth, tile):
    """tile[i, j] = sum over k < depth of a[a_start + i * a_row + k * a_depth] * b[b_start + k * b_depth + j].

    As ``tile_product``, but both operands lie where they are, a row of the right one side by side. rows: 1 or more; the
    last of them stands for those of the tile that are too many.
    """

    def codegen(context, builder, signature, arguments):
        a_type, b_type, tile_type = signature.args[0], signature.args[5], signature.args[9]
        a_array, a_first, row_step, a_step, used, b_array, b_first, b_step, count, tile_array = arguments
        origin = builder.gep(_data(context, builder, a_type, a_array), [a_first])
        b_origin = builder.gep(_data(context, builder, b_type, b_array), [b_first])
        last = builder.sub(used, _index(1))
        numbers = [builder.select(builder.icmp_signed("<", _index(i), last), _index(i), last) for i in range(TILE_ROWS)]
        a_rows = [builder.gep(origin, [builder.mul(number, row_step)]) for number in numbers]

        def rows_at(k):
            at = builder.mul(k, a_step)
            return [builder.gep(row, [at]) for row in a_rows]

        def b_row_at(k):
            return builder.gep(b_origin, [builder.mul(k, b_step)])

        tile_data = _data(context, builder, tile_type, tile_array)
        _whole_tile(context, builder, a_type.dtype, rows_at, b_row_at, count, tile_data)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, i64, i64, b, i64, i64, i64, tile), codegen


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
        vectors = _Vectors(context, builder, types_of[0].dtype)
        biases = builder.gep(_data(context, builder, types_of[0], a_array), [a_first])
        origin = builder.gep(_data(context, builder, types_of[2], b_array), [b_first])
        target = builder.gep(_data(context, builder, types_of[12], out_array), [out_first])
        distances = builder.gep(_data(context, builder, types_of[4], table), [t_first])
        numbers = builder.gep(_data(context, builder, types_of[10], place_array), [p_first])
        read = [builder.load(builder.gep(numbers, [_index(j)])) for j in range(2 * LANE_VECTORS)]
        sources = [builder.gep(origin, [number]) for number in read[:LANE_VECTORS]]
        sums = vectors.registers(LANE_ROWS * LANE_VECTORS)
        for i in range(LANE_ROWS):
            bias = vectors.broadcast(builder.load(builder.gep(biases, [_index(i)])))
            for j in range(LANE_VECTORS):
                builder.store(bias, sums[i * LANE_VECTORS + j])
        with cgutils.for_range(builder, line_count) as line:
            begin = builder.add(k_first, builder.mul(line.index, line_step))
            a_panel = builder.gep(biases, [builder.mul(builder.add(begin, _index(1)), _index(LANE_ROWS))])
            line_distances = builder.gep(distances, [begin])

            def columns_at(k):
                distance = builder.load(builder.gep(line_distances, [k]))
                return [builder.gep(source, [distance]) for source in sources]

            rows_at = _packed_rows(builder, a_panel, LANE_ROWS)
            _tile(context, builder, types_of[0].dtype, rows_at, columns_at, count, sums)
        for i in range(LANE_ROWS):
            row = builder.gep(target, [builder.mul(out_rows, _index(i))])
            for j, number in enumerate(read[LANE_VECTORS:]):
                vectors.store(builder.load(sums[i * LANE_VECTORS + j]), row, number)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, b, i64, offsets, i64, i64, i64, i64, i64, places, i64, out, i64, i64), codegen


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
            vectors.prefetch(builder.gep(self.panel, [place]), _index(line * vectors.lanes), SECOND_CACHE)
        if not self.rows:
            return
        row = builder.select(builder.icmp_signed("<", group, _index(rows)), group, _index(rows - 1))
        place = builder.add(self.at, builder.mul(row, self.step))
        for origin, write in self.rows:
            for v in range(width):
                vectors.prefetch(builder.gep(origin, [place]), _index(v * vectors.lanes), write=write)


def _block_tile(
    context, builder, a_type, a_rows, a_step, b_type, b_origin, b_step, offsets, taps, count, targets, add, ahead
):
    """Tiles of the pixels at the pointers ``a_rows`` and as many panels, ``b_step`` apart, as ``targets`` name.

    targets: for each panel a pointer to each pixel's columns; written over, or added to if ``add``. offsets: data;
    taps: the first, and the one after the last. ahead: an ``_Ahead``.
    """
    vectors = _Vectors(context, builder, a_type.dtype)
    lanes, columns, panels = vectors.lanes, TILE_VECTORS * vectors.lanes, len(targets)
    unrolled, rows = min(CHANNELS, lanes), len(a_rows)
    lines = -(-rows * unrolled // lanes) if panels == 1 else 0  # to be asked for, where pixels lie side by side
    places = [(panel, v) for panel in range(panels) for v in range(TILE_VECTORS)]
    sums = {(i, *place): cgutils.alloca_once(builder, vectors.type) for i in range(rows) for place in places}
    for (i, panel, v), total in sums.items():
        start = vectors.load(targets[panel][i], _index(v * lanes)) if add else vectors.zero
        builder.store(start, total)
    with cgutils.for_range(builder, taps[1], taps[0]) as loop:
        tap = builder.load(builder.gep(offsets, [loop.index]))
        b_tap = builder.gep(b_origin, [builder.mul(builder.mul(loop.index, count), _index(lanes * columns))])
        with cgutils.for_range(builder, count) as channels:
            pixel = builder.add(tap, builder.mul(channels.index, a_step))
            b_rows = builder.gep(b_tap, [builder.mul(channels.index, _index(lanes * columns))])
            with cgutils.for_range(builder, _index(lanes // unrolled)) as steps:
                column = builder.add(pixel, builder.mul(steps.index, _index(unrolled)))
                b_row = builder.gep(b_rows, [builder.mul(steps.index, _index(unrolled * columns))])
                b_panels = [builder.gep(b_row, [builder.mul(b_step, _index(panel))]) for panel in range(panels)]
                group = builder.add(builder.mul(builder.sub(loop.index, taps[0]), count), channels.index)
                group = builder.add(builder.mul(group, _index(lanes // unrolled)), steps.index)
                ahead.ask(vectors, group, rows, len(places))
                # What the next block of channels will read: the hardware does not follow streams so short.
                a_next = builder.gep(a_rows[0], [builder.add(pixel, a_step)])
                a_next = builder.gep(a_next, [builder.mul(steps.index, _index(lines * lanes))])
                for line in range(lines):
                    vectors.prefetch(a_next, _index(line * lanes))
                for k in range(unrolled):
                    for panel, v in places:
                        vectors.prefetch(b_panels[panel], _index((lanes + k) * columns + v * lanes))
                    right = {
                        (panel, v): vectors.load(b_panels[panel], _index(k * columns + v * lanes))
                        for panel, v in places
                    }
                    for i, a_row in enumerate(a_rows):
                        value = builder.load(builder.gep(builder.gep(a_row, [column]), [_index(k)]))
                        left = vectors.broadcast(value)
                        for place, vector in right.items():
                            vectors.add_product(sums[i, *place], left, vector)
    for (i, panel, v), total in sums.items():
        vectors.store(builder.load(total), targets[panel][i], _index(v * lanes))


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
        origin = builder.gep(_data(context, builder, a_type, a_array), [a_first])
        lanes = VECTOR_BYTES // (a_type.dtype.bitwidth // 8)
        rows = [builder.gep(origin, [_index(i * lanes)]) for i in range(TILE_ROWS)]
        b_data = _data(context, builder, b_type, b_array)
        right = b_type, builder.gep(b_data, [b_first]), _index(0)
        target = _data(context, builder, tile_type, tile_array)
        targets = [[builder.gep(target, [_index(i * TILE_VECTORS * lanes)]) for i in range(TILE_ROWS)]]
        taps = _index(0), table.nitems
        given = zip(row_types, row_arrays, (True, False), strict=True)
        asked = [(_data(context, builder, t, array), write) for t, array, write in given if t != types.none]
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
            origin = _data(context, builder, array_type, array)
            numbers = builder.gep(_data(context, builder, table_type, table), [first])
            read = [builder.load(builder.gep(numbers, [_index(i)])) for i in range(TILE_ROWS // 2)]
            return [builder.gep(origin, [builder.mul(number, _index(scale))]) for number in read]

        rows = pointers(types_of[0], a_array, types_of[1], places_array, 1)
        sums_of = pointers(types_of[12], sums_array, types_of[2], targets_array, TILE_VECTORS * lanes)
        goals = [sums_of, [builder.gep(goal, [step]) for goal in sums_of]]
        b_data = _data(context, builder, types_of[5], b_array)
        right = types_of[5], builder.gep(b_data, [b_first]), b_step
        table, taps = _data(context, builder, types_of[8], offsets_array), (first_tap, last_tap)
        ahead = _Ahead(builder, builder.gep(b_data, [first_ahead]), pace)
        _block_tile(context, builder, types_of[0], rows, a_step, *right, table, taps, count, goals, True, ahead)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(
        a, places, targets, i64, i64, b, i64, i64, offsets, i64, i64, i64, sums, i64, i64, i64
    ), codegen  # fmt: skip


def _add_products(context, builder, dtype, a_at, b_at, b_block, count, target):
    """Add, for each pixel, the products of OUTER_ROWS channels from ``a_at(pixel)`` and the vectors from ``b_at``."""
    vectors = _Vectors(context, builder, dtype)
    lanes = vectors.lanes
    rows = min(OUTER_ROWS, lanes)
    totals = vectors.registers(rows * TILE_VECTORS)
    for position, total in enumerate(totals):
        builder.store(vectors.load(target, _index(position * lanes)), total)
    with cgutils.for_range(builder, count) as loop:
        left, first = a_at(loop.index), b_at(loop.index)
        right = [vectors.load(first, builder.mul(b_block, _index(j))) for j in range(TILE_VECTORS)]
        for i in range(rows):
            row = vectors.broadcast(builder.load(builder.gep(left, [_index(i)])))
            for j, vector in enumerate(right):
                vectors.add_product(totals[i * TILE_VECTORS + j], row, vector)
    for position, total in enumerate(totals):
        vectors.store(builder.load(total), target, _index(position * lanes))


def _pixels(context, builder, array_type, array, start, scale, table=None):
    """A function from a pixel's number to its place: ``table`` (type, array, start) says where, or they follow on."""
    origin = builder.gep(_data(context, builder, array_type, array), [start])
    if table is None:
        return lambda pixel: builder.gep(origin, [builder.mul(pixel, _index(scale))])
    table_type, numbers, first = table
    numbers = builder.gep(_data(context, builder, table_type, numbers), [first])

    def at(pixel):
        return builder.gep(origin, [builder.mul(builder.load(builder.gep(numbers, [pixel])), _index(scale))])

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
        target = builder.gep(_data(context, builder, sums_type, sums_array), [sums_first])
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
        target = builder.gep(_data(context, builder, sums_type, sums_array), [sums_first])
        _add_products(context, builder, a_type.dtype, a_at, b_at, b_step, count, target)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, places, b, i64, targets, i64, i64, i64, sums, i64), codegen


@intrinsic
def add_dot_products(typingctx, a, a_start, a_rows, a_at, a_line, b, b_start, b_rows, b_at, b_line, steps, lines, sums):
    """sums[i, j, lane] += sum over line and step of a[a_start + a_rows[a_at + i] + line * a_line + q] * b[...].

    q = step * lanes + lane, line < ``lines``, step < ``steps``; b likewise, with j. a_rows, b_rows: int64, DOT_ROWS
    and DOT_COLUMNS of which are read. sums: flat, DOT_ROWS * DOT_COLUMNS vectors.
    """

    def codegen(context, builder, signature, arguments):
        a_type, b_type, sums_type = signature.args[0], signature.args[5], signature.args[12]
        count, line_count, sums_array = arguments[10:]
        vectors = _Vectors(context, builder, a_type.dtype)
        sums_data = _data(context, builder, sums_type, sums_array)

        def rows_of(array_type, table_type, rows, array, start, table, at):
            origin = builder.gep(_data(context, builder, array_type, array), [start])
            numbers = builder.gep(_data(context, builder, table_type, table), [at])
            return [builder.gep(origin, [builder.load(builder.gep(numbers, [_index(i)]))]) for i in range(rows)]

        a_data = rows_of(a_type, signature.args[2], DOT_ROWS, *arguments[:4])
        b_data = rows_of(b_type, signature.args[7], DOT_COLUMNS, *arguments[5:9])
        totals = vectors.registers(DOT_ROWS * DOT_COLUMNS)
        for position, total in enumerate(totals):
            builder.store(vectors.load(sums_data, _index(position * vectors.lanes)), total)
        with cgutils.for_range(builder, line_count) as line:
            a_first, b_first = builder.mul(line.index, arguments[4]), builder.mul(line.index, arguments[9])
            with cgutils.for_range(builder, count) as loop:
                q = builder.mul(loop.index, _index(vectors.lanes))
                columns = [vectors.load(pointer, builder.add(b_first, q)) for pointer in b_data]
                for i, pointer in enumerate(a_data):
                    row = vectors.load(pointer, builder.add(a_first, q))
                    for j, column in enumerate(columns):
                        vectors.add_product(totals[i * DOT_COLUMNS + j], row, column)
        for position, total in enumerate(totals):
            vectors.store(builder.load(total), sums_data, _index(position * vectors.lanes))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, a_rows, i64, i64, b, i64, b_rows, i64, i64, i64, i64, sums), codegen


@intrinsic
def transpose(typingctx, source, start, stride, target, at, apart, streaming):
    """target[at + j * apart + i] = source[start + i * stride + j], for i and j below the lanes of a vector.

    By perfect shuffles: log2(lanes) times, the first half of the rows is interleaved with the second. streaming: past
    the caches, into whole vectors.
    """

    def codegen(context, builder, signature, arguments):
        source_type, _, _, target_type, *_ = signature.args
        source_array, first, step, target_array, place, target_step, streaming = arguments
        vectors = _Vectors(context, builder, source_type.dtype)
        lanes = vectors.lanes
        origin = builder.gep(_data(context, builder, source_type, source_array), [first])
        goal = builder.gep(_data(context, builder, target_type, target_array), [place])
        rows = [vectors.load(origin, builder.mul(step, _index(i))) for i in range(lanes)]
        halves = [[i // 2 + half * lanes // 2 + i % 2 * lanes for i in range(lanes)] for half in range(2)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), lanes), half) for half in halves]
        for _ in range(lanes.bit_length() - 1):
            pairs = zip(rows[: lanes // 2], rows[lanes // 2 :], strict=True)
            rows = [builder.shuffle_vector(upper, lower, mask) for upper, lower in pairs for mask in masks]
        with builder.if_else(streaming) as (streamed, kept):
            for branch, write in (streamed, vectors.stream), (kept, vectors.store):
                with branch:
                    for j, row in enumerate(rows):
                        write(row, goal, builder.mul(target_step, _index(j)))
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(source, i64, i64, target, i64, i64, types.boolean), codegen
