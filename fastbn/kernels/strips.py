"""Strips of pixels for the matrix unit: split into parts, see ``_matrix_unit``, piece by piece.

A strip is BLOCK pixels. Along, for sums over channels, its tiles have SIDE pixels as rows and DEPTH channels. Across,
for sums over pixels, they have SIDE channels and all its pixels; turned, channels are the rows.
"""

from numba import int64

from fastbn.kernels._jit import inlined, part
from fastbn.kernels._matrix_unit import BLOCK, DEPTH, PARTS, SIDE, SPLIT, TILE, store_parts
from fastbn.kernels._simd import transpose
from fastbn.kernels._vector import splat, widen
from fastbn.kernels._vector_memory import add_to, prefetch_far
from fastbn.kernels.pixels import behind_prologue

SOON = 8192  # elements ahead of what is split, that come into the second cache: memory answers late
PIECE = 4  # blocks of SIDE channels of a piece of a strip, at most


@inlined
def along_elements(channels, strips):
    """Of so many strips for sums over channels."""
    return -(-channels // DEPTH) * 2 * SPLIT * strips


@inlined
def across_elements(channels, strips):
    """Of so many strips for sums over pixels."""
    return -(-channels // SIDE) * SPLIT * strips


@inlined
def _pieces_of_row(channels):
    """Pieces that so many channels of a pixel are."""
    return -(-channels // (PIECE * SIDE))


@inlined
def _pieces(channels):
    """Of a strip of so many channels, before any is turned."""
    return SIDE * _pieces_of_row(channels)


@part
def _ask(x, at, count):
    """For what is split soon."""
    for i in range(at + SOON, at + SOON + min(count, DEPTH), SIDE):
        prefetch_far(x, i)


@part
def _pixel(there, x, partner, relu, affine, slopes, floor, pixel, width, c, count, zero):
    """``count`` channels from c on of a pixel, through their prologue; 0 behind them, or if it is not there."""
    value = zero
    if there and count > 0:
        value = behind_prologue(x, partner, relu, affine, slopes, floor, pixel * width + c, c, min(count, SIDE), zero)
    return value


@part
def _split_columns(
    c, count, p, here, behind, x, partner, relu, affine, slopes, floor, first, width, channel, along, across, apart,
    sums, row, work,
):  # fmt: skip
    """DEPTH channels from c on, of which there are ``count``, of pixels p and p + SIDE of a strip.

    here, behind: whether these pixels are there.
    """
    zero, block, rest = splat(x, 0.0), c // SIDE, count - SIDE
    pixel, other, at, behind_at = first + p, first + p + SIDE, channel + c, channel + c + SIDE
    if across is None:
        _ask(x, pixel * width + at, count)
        _ask(x, other * width + at, count)
    upper = _pixel(here, x, partner, relu, affine, slopes, floor, pixel, width, at, count, zero)
    upper_rest = _pixel(here, x, partner, relu, affine, slopes, floor, pixel, width, behind_at, rest, zero)
    lower = _pixel(behind, x, partner, relu, affine, slopes, floor, other, width, at, count, zero)
    lower_rest = _pixel(behind, x, partner, relu, affine, slopes, floor, other, width, behind_at, rest, zero)
    if sums is not None and row >= 0:
        add_to(sums, row * sums.shape[1] + c, widen(upper) + widen(lower))
        if rest > 0:
            add_to(sums, row * sums.shape[1] + c + SIDE, widen(upper_rest) + widen(lower_rest))
    if along is not None:
        store_parts(upper, upper_rest, work, along + block * SPLIT + p * SIDE)
        store_parts(lower, lower_rest, work, along + (block + 1) * SPLIT + p * SIDE)
    if across is not None:
        store_parts(upper, lower, work, across + block * apart + p * SIDE)
        if rest > 0:
            store_parts(upper_rest, lower_rest, work, across + (block + 1) * apart + p * SIDE)


@part
def _split_piece(
    piece, x, partner, relu, affine, slopes, floor, first, pixels, width, channel, channels, along, across, apart, sums,
    row, work,
):  # fmt: skip
    """A piece of a strip, from pixel ``first`` on: PIECE blocks of channels of two pixels, SIDE apart.

    width: channels of a pixel, of which ``channels`` are taken, from ``channel`` on.
    along, across: where the strip goes, or None; across, a block of channels is ``apart`` from the next.
    sums: those of pixels are added to their ``row``, unless either is None or negative.
    """
    p, begin = divmod(piece, _pieces_of_row(channels))
    begin *= PIECE * SIDE
    if p + SIDE < pixels and begin + PIECE * SIDE <= channels:
        for c in range(begin, begin + PIECE * SIDE, DEPTH):
            _split_columns(
                c, DEPTH, p, True, True, x, partner, relu, affine, slopes, floor, first, width, channel, along, across,
                apart, sums, row, work,
            )  # fmt: skip
    else:
        for c in range(begin, min(channels, begin + PIECE * SIDE), DEPTH):
            _split_columns(
                c, channels - c, p, p < pixels, p + SIDE < pixels, x, partner, relu, affine, slopes, floor, first,
                width, channel, along, across, apart, sums, row, work,
            )  # fmt: skip


@inlined
def pieces_of_strip(channels):
    """Of ``split_strip``, of so many channels."""
    return _pieces(channels)


@part
def split_strip(
    begin, end, x, partner, relu, affine, slopes, floor, first, pixels, width, channel, channels, along, work,
):  # fmt: skip
    """The pieces from ``begin`` to ``end`` of a strip, as ``_split_piece`` has it, along only."""
    for piece in range(begin, end):
        _split_piece(
            piece, x, partner, relu, affine, slopes, floor, first, pixels, width, channel, channels, along, None,
            int64(0), None, -1, work,
        )  # fmt: skip


@part
def _turn_part(number, spare, turned, apart, work):
    """A part of a block of channels, from ``spare`` to ``turned``."""
    block, tile = number // PARTS, number % PARTS * TILE
    transpose(work, spare + block * SPLIT + tile, SIDE, work, turned + block * apart + tile, SIDE, False)


@part
def split_pieces(
    begin, end, x, partner, relu, affine, slopes, floor, channels, panels, first, pixels, strips, at_once, spare, along,
    across, turned, beside, beside_relu, beside_affine, beside_floor, beside_width, channel, used, turns, x_sums, work,
):  # fmt: skip
    """The pieces from ``begin`` to ``end`` of a run of pixels, which begin at ``first``, to ``work``.

    strips: for so many there is room across; turns: whether x is turned, and not ``beside``, a literal.
    """
    plain, other_plain = _pieces(channels), _pieces(used)
    of_strip, apart = pieces_of(channels, beside, used, turns), strips * SPLIT
    operand = (x, partner, relu, affine, slopes, floor)
    other = (beside, None, beside_relu, beside_affine, None, beside_floor)
    for number in range(begin, end):
        strip, piece = divmod(number, of_strip)
        pixel, there = first + strip * BLOCK, pixels - strip * BLOCK
        x_along, at, to = along + along_elements(channels, strip), across + strip * SPLIT, turned + strip * SPLIT
        whole = (pixel, there, channels, int64(0), channels)
        cut = (pixel, there, beside_width, channel, used)
        row = pixel // at_once if channel == 0 else -1
        if beside is None:
            _split_piece(piece, *operand, *whole, x_along, None, apart, None, -1, work)
        elif turns is None:
            if piece >= plain + other_plain:
                _turn_part(piece - plain - other_plain, spare, to, apart, work)
            elif piece >= plain:
                _split_piece(piece - plain, *other, *cut, None, spare, SPLIT, None, -1, work)
            elif panels is None:
                _split_piece(piece, *operand, *whole, None, at, apart, x_sums, row, work)
            else:
                _split_piece(piece, *operand, *whole, x_along, at, apart, x_sums, row, work)
        elif piece >= plain + other_plain:
            _turn_part(piece - plain - other_plain, spare, to, apart, work)
        elif piece >= plain:
            _split_piece(piece - plain, *other, *cut, None, at, apart, None, -1, work)
        elif panels is None:
            _split_piece(piece, *operand, *whole, None, spare, SPLIT, x_sums, row, work)
        else:
            _split_piece(piece, *operand, *whole, x_along, spare, SPLIT, x_sums, row, work)


@inlined
def pieces_of(channels, beside, used, turns):
    """Of a strip."""
    count = _pieces(channels)
    if beside is not None:
        count += _pieces(used) + -(-(used if turns is None else channels) // SIDE) * PARTS
    return count
