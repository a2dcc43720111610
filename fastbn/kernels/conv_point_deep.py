"""Products of large matrices by the matrix unit: sums over so many channels at a time, kept between.

Weights whose parts the second cache cannot hold are read panel by panel, each for all strips of a run of pixels. The
parts of these strips, of so many channels, stay in the second cache; see ``strips``.
"""

from numba import int64

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._matrix_unit import (
    BLOCK,
    DEPTH,
    SIDE,
    SLIM,
    SPLIT,
    STAGES,
    add_stage,
    clear_tiles,
    close_unit,
    load_tiles,
    open_unit,
    store_tiles,
)
from fastbn.kernels._vector_memory import fence, prefetch_far
from fastbn.kernels.conv_point_parts import PRODUCT
from fastbn.kernels.pixels import finish_pixels
from fastbn.kernels.strips import along_elements, pieces_of_strip, split_strip

LINES = SPLIT // SIDE // STAGES  # of a tile's parts, for each stage


def workspace_elements(strips: int, wide: int, deep: int) -> int:
    """Of a task of ``multiply_deep``."""
    return PRODUCT + strips * (along_elements.py_func(deep, 1) + -(-wide // BLOCK) * PRODUCT)


@inlined
def _ask(panels, at, panel, begin, end):
    """For these lines of both halves of a panel."""
    for line in range(begin, end):
        prefetch_far(panels, at + line * SIDE)
        prefetch_far(panels, at + panel + line * SIDE)


@body
def multiply_deep(
    first, pixels, x, ceiling, affine, floor, channels, deep, panels, outputs, begin, end, bias, residual, limits, out,
    streaming, shifts, partials, piece, work,
):  # fmt: skip
    """out[p, o] = the sum over channels c of x[p, c] * panels[c, o], + bias + residual, within ``limits``.

    first <= p < first + ``pixels``, which are ``piece``; begin <= o < end, of ``outputs``. ``deep`` channels, in whole
    tiles, are summed at a time. Others: as ``conv_point_parts.multiply_runs`` has them.
    work: see ``workspace_elements``.
    """
    strips, columns, half = -(-pixels // BLOCK), -(-(end - begin) // BLOCK), -(-channels // DEPTH) * SPLIT
    operand = (x, None, ceiling, affine, None, floor)
    strip_size = along_elements(deep, 1)
    kept = PRODUCT + strips * strip_size
    open_unit()
    for c in range(0, channels, deep):
        depth, depth_behind = min(deep, channels - c), max(0, min(deep, channels - c - deep))
        stages = STAGES * -(-depth // DEPTH)
        if c == 0 or strips == 1:
            split_strip(int64(0), pieces_of_strip(depth), *operand, first, pixels, channels, c, depth, PRODUCT, work)
        for number in range(columns * strips):
            column, strip = divmod(number, strips)
            o, p = begin + column * BLOCK, strip * BLOCK
            kind = SLIM if end - o <= SIDE else 0
            left, right = PRODUCT + strip * strip_size, o // SIDE * half + c // DEPTH * SPLIT
            soon = right + 2 * half if column + 1 < columns else begin // SIDE * half + (c + deep) // DEPTH * SPLIT
            asked = strip * stages * LINES // strips
            split_at, split_depth = c, depth if column == 0 and strip + 1 < strips else 0
            if column == columns - 1 and 0 < strip == strips - 1:
                split_at, split_depth = c + deep, depth_behind
            split_next, split, pieces = (strip + 1) % strips, 0, pieces_of_strip(split_depth)
            if c == 0:
                clear_tiles()
            else:
                load_tiles(kind, work, kept + number * PRODUCT)
            for turn in range(stages):
                step, stage = divmod(turn, STAGES)
                add_stage(
                    kind * STAGES + stage, work, left + step * 2 * SPLIT, SPLIT, panels, right + step * SPLIT, half
                )
                lines = (strip * stages + turn + 1) * LINES // strips
                _ask(panels, soon, half, asked, lines)
                asked = lines
                if pieces > 0:
                    goal = (turn + 1) * pieces // stages
                    split_strip(
                        split, goal, *operand, first + split_next * BLOCK, pixels - split_next * BLOCK, channels,
                        split_at, split_depth, PRODUCT + split_next * strip_size, work,
                    )  # fmt: skip
                    split = goal
            if depth_behind > 0:
                store_tiles(kind, work, kept + number * PRODUCT)
            else:
                store_tiles(kind, work, 0)
                finish_pixels(
                    work, BLOCK, min(BLOCK, pixels - p), min(BLOCK, end - o), strip == 0, bias, residual, limits, out,
                    (first + p) * outputs + o, outputs, o, streaming, shifts, None, None, None, partials, piece,
                )  # fmt: skip
    close_unit()
    if streaming:
        fence()
