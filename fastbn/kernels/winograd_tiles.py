"""Winograd's F(2x2, 3x3): tiles of 2 x 2 outputs from 4 x 4 inputs, by 16 products where the window itself takes 36.

    Y = A^T [(G g G^T) * (B^T d B)] A        (Lavin and Gray 2015, arXiv 1509.09308, equation 8)

Tiles run along the rows of an image, then down, then on to the next image. Planes are those of ``conv_fill``, of
``rows`` x ``across`` tiles and the two rows and columns that the last ones share with nobody.
"""

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._simd import TILE_ROWS, TILE_VECTORS
from fastbn.kernels._vector import bounds_of, lanes_of, splat, within
from fastbn.kernels._vector_memory import load, load_part, store, store_part

POSITIONS = 16


@inlined
def _inputs(d0, d1, d2, d3):
    """B^T d."""
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


@inlined
def _input_column(blocks, i, step):
    return _inputs(load(blocks, i), load(blocks, i + step), load(blocks, i + 2 * step), load(blocks, i + 3 * step))


@inlined
def _store_inputs(values, i, step, d0, d1, d2, d3):
    v0, v1, v2, v3 = _inputs(d0, d1, d2, d3)
    store(values, i, v0)
    store(values, i + step, v1)
    store(values, i + 2 * step, v2)
    store(values, i + 3 * step, v3)


@inlined
def _outputs(m0, m1, m2, m3):
    """A^T m."""
    return m0 + m1 + m2, m1 - m2 - m3


@inlined
def _output_column(m, i, step):
    return _outputs(load(m, i), load(m, i + step), load(m, i + 2 * step), load(m, i + 3 * step))


@inlined
def _input_tile(blocks, i, line, values, at, step):
    """B^T d B."""
    lanes = lanes_of(blocks)
    a0, a1, a2, a3 = _input_column(blocks, i, line)
    b0, b1, b2, b3 = _input_column(blocks, i + lanes, line)
    c0, c1, c2, c3 = _input_column(blocks, i + 2 * lanes, line)
    d0, d1, d2, d3 = _input_column(blocks, i + 3 * lanes, line)
    _store_inputs(values, at, step, a0, b0, c0, d0)
    _store_inputs(values, at + 4 * step, step, a1, b1, c1, d1)
    _store_inputs(values, at + 8 * step, step, a2, b2, c2, d2)
    _store_inputs(values, at + 12 * step, step, a3, b3, c3, d3)


@inlined
def _store_gradients(values, i, step, left, right):
    store(values, i, left)
    store(values, i + step, left + right)
    store(values, i + 2 * step, left - right)
    store(values, i + 3 * step, right)


@inlined
def _gradient_tile(blocks, i, line, values, at, step):
    """A dy A^T, but for the sign of its last row and column."""
    lanes = lanes_of(blocks)
    left, right = load(blocks, i), load(blocks, i + lanes)
    lower_left, lower_right = load(blocks, i + line), load(blocks, i + line + lanes)
    _store_gradients(values, at, step, left, right)
    _store_gradients(values, at + 4 * step, step, left + lower_left, right + lower_right)
    _store_gradients(values, at + 8 * step, step, left - lower_left, right - lower_right)
    _store_gradients(values, at + 12 * step, step, lower_left, lower_right)


@body
def transform_tiles(blocks, block, margin, depth, count, rows, across, height, values):
    """values[group, position, c, tile, lane] of the first ``count`` tiles of the planes, in groups of ``height``.

    The last group is filled up with zeros: what lies there may be subnormal, and slow to multiply.
    margin: 2 for inputs, and 0 for gradients to outputs, whose planes end with the last tile.
    """
    lanes, zero = lanes_of(blocks), splat(blocks, 0.0)
    columns = 2 * across + margin
    line, step = columns * lanes, depth * height * lanes
    for top in range(0, count, height):
        image, rest = divmod(top, rows * across)
        first_row, first_column = divmod(rest, across)
        pixel = (image * (2 * rows + margin) + 2 * first_row) * columns + 2 * first_column
        for c in range(depth):
            row, column = first_row, first_column
            i = c * block + pixel * lanes
            at = (top * POSITIONS * depth + c * height) * lanes
            for _ in range(min(height, count - top)):
                if margin > 0:
                    _input_tile(blocks, i, line, values, at, step)
                else:
                    _gradient_tile(blocks, i, line, values, at, step)
                at += lanes
                i += 2 * lanes
                column += 1
                if column == across:
                    column, row = 0, row + 1
                    i += line + margin * lanes
                    if row == rows:
                        row = 0
                        i += margin * line
            for _ in range(count - top, height):
                for position in range(POSITIONS):
                    store(values, at + position * step, zero)
                at += lanes


@inlined
def _put_pixel(value, bias, channel, residual, bounds, out, at, count):
    if bias is not None:
        value = value + load_part(bias, channel, count, value)
    if residual is not None:
        value = value + load_part(residual, at, count, value)
    store_part(out, at, within(value, bounds), count)


@body
def output_tiles(
    products, first, count, rows, across, height, width, bias, channel, stored, residual, limits, out, origin, strides
):  # fmt: skip
    """A^T m A + bias + residual, within ``limits``, of ``count`` tiles from ``first`` on into a channels-last ``out``.

    products[position, tile, column]; ``stored`` of the columns are channels, from ``channel`` on. height, width: of the
    output's part that begins with tile 0 at ``origin``; strides: of its images, rows and columns.
    """
    lanes = lanes_of(products)
    bounds = bounds_of(products, limits)
    step = TILE_ROWS * TILE_VECTORS * lanes
    image, rest = divmod(first, rows * across)
    row, column = divmod(rest, across)
    for tile in range(count):
        at = origin + image * strides[0] + 2 * row * strides[1] + 2 * column * strides[2]
        high, wide = 2 * row + 1 < height, 2 * column + 1 < width
        for v in range(TILE_VECTORS):
            part = min(lanes, stored - v * lanes)
            if part > 0:
                i = (tile * TILE_VECTORS + v) * lanes
                a0, a1 = _output_column(products, i, 4 * step)
                b0, b1 = _output_column(products, i + step, 4 * step)
                c0, c1 = _output_column(products, i + 2 * step, 4 * step)
                d0, d1 = _output_column(products, i + 3 * step, 4 * step)
                left, right = _outputs(a0, b0, c0, d0)
                lower_left, lower_right = _outputs(a1, b1, c1, d1)
                place, c = at + v * lanes, channel + v * lanes
                _put_pixel(left, bias, c, residual, bounds, out, place, part)
                if wide:
                    _put_pixel(right, bias, c, residual, bounds, out, place + strides[2], part)
                if high:
                    _put_pixel(lower_left, bias, c, residual, bounds, out, place + strides[1], part)
                if high and wide:
                    below = place + strides[1] + strides[2]
                    _put_pixel(lower_right, bias, c, residual, bounds, out, below, part)
        column += 1
        if column == across:
            column, row = 0, row + 1
            if row == rows:
                row, image = 0, image + 1
