"""What ``conv_point`` and ``conv_point_backward`` multiply with vectors, multiplied by the matrix unit.

Pixels go strip by strip, see ``strips``. While the unit multiplies a run of strips, the next one is split and what was
multiplied before is written, piece by piece: the unit waits for nobody, and nobody for the unit.
"""

from numba import int64

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._matrix_unit import (
    BLOCK,
    DEPTH,
    LOW,
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
from fastbn.kernels._vector_memory import fence, prefetch, prefetch_to_write
from fastbn.kernels.pixels import finish_pixels
from fastbn.kernels.strips import across_elements, along_elements, pieces_of, split_pieces

PRODUCT = BLOCK * BLOCK  # elements
FINISHED = 4  # rows of a product that are written at a time
STRIPS = 2 * PRODUCT  # where in a workspace, behind two products, the strips of two runs and one to be turned lie


def workspace_elements(channels: int, strips: int) -> int:
    """Of a task of ``multiply_runs`` that sums over channels alone."""
    return STRIPS + 2 * along_elements.py_func(channels, strips)


def sums_elements(channels: int, beside: int, strips: int) -> int:
    """What it takes besides to sum over the pixels of so many strips; beside: channels of the other array."""
    size = across_elements.py_func(channels, strips) + across_elements.py_func(beside, strips)
    return across_elements.py_func(max(channels, beside), 1) + 2 * size


@inlined
def _ask(array, at, pixels, channels, width):
    """A product's share of ``array``, if it is not None, is read soon."""
    if array is not None:
        for p in range(pixels):
            for j in range(0, channels, SIDE):
                prefetch(array, at + p * width + j)


@body
def multiply_runs(
    first, pixels, strips, gathered, at_once, x, partner, relu, affine, slopes, floor, channels, panels, outputs,
    begin, end, bias, residual, limits, out, streaming, shifts, source, source_relu, source_affine, partials, beside,
    beside_relu, beside_affine, beside_floor, beside_width, channel, used, turns, sums, filled, x_sums, work,
):  # fmt: skip
    """out[p, o] = the sum over channels c of x[p, c] * panels[c, o], + bias + residual, within ``limits``; and
    sums[c', c] = the sum over pixels p of beside[p, c'] * x[p, c].

    first <= p < first + ``pixels``, in runs of so many ``strips``; sums over p are of as many runs at a time as are
    ``gathered``, one if panels is None. begin <= o < end, of ``outputs``; channel <= c' < channel + used, of
    ``beside_width``. Either may be left out: panels or beside is None.
    x and beside go through their prologues, as ``pixels.fill_pixels`` has them; panels: those of
    ``conv_point_weights.split_weights``.
    bias to partials: as ``conv_point.multiply_pixels`` has them, a piece being ``at_once`` pixels.
    sums: panels of BLOCK c, each of ``filled`` rows, one for each c' of all; or, if ``turns`` is not None, of BLOCK c',
    with a row for each c: whichever of the arrays is turned has the rows. x_sums, unless None: of ``at_once`` pixels a
    row, x is summed where ``channel`` is 0. work: see ``workspace_elements``.
    """
    steps = -(-channels // DEPTH)
    pieces = pieces_of(channels, beside, used, turns)
    run_pixels = strips * BLOCK
    together = gathered * strips
    columns = size = across_size = turned_size = sum_panels = sum_blocks = 0
    wide, high = (channels, used) if turns is None else (used, channels)  # of sums
    if panels is not None:
        columns, size = -(-(end - begin) // BLOCK), along_elements(channels, strips)
    if beside is not None:
        sum_panels, sum_blocks = -(-wide // BLOCK), -(-high // BLOCK)
        across_size, turned_size = across_elements(wide, together), across_elements(high, together)
    groups, group_size = STRIPS + 2 * size, across_size + turned_size
    spare = groups + 2 * group_size
    split_pieces(
        int64(0), -(-min(pixels, run_pixels) // BLOCK) * pieces, x, partner, relu, affine, slopes, floor, channels,
        panels, first, min(pixels, run_pixels), together, at_once, spare, STRIPS, groups, groups + across_size, beside,
        beside_relu, beside_affine, beside_floor, beside_width, channel, used, turns, x_sums, work,
    )  # fmt: skip
    last_o, last_at, last_used, last_piece, last_first = begin, 0, 0, 0, True
    product = 0
    open_unit()
    for q in range(0, pixels, run_pixels):
        here, there = min(run_pixels, pixels - q), max(0, min(run_pixels, pixels - q - run_pixels))
        run = q // run_pixels
        along, following = STRIPS + run % 2 * size, STRIPS + (1 - run % 2) * size
        (group, place), (next_group, next_place) = divmod(run, gathered), divmod(run + 1, gathered)
        across = groups + group % 2 * group_size
        next_across = groups + next_group % 2 * group_size + next_place * strips * SPLIT
        turned, next_turned = across + across_size, next_across + across_size
        strips_here = -(-here // BLOCK)
        summed = place * strips + strips_here
        products = strips_here * columns
        sum_products = sum_panels * sum_blocks if next_place == 0 or there == 0 else 0
        stages = STAGES * (strips_here * columns * steps + summed * sum_products)
        wanted, split, owed = -(-there // BLOCK) * pieces, 0, 0
        for number in range(products + sum_products):
            finished = unfinished = kind = o = at = 0
            depth, left, left_tile, left_step = steps, along, SPLIT, 2 * SPLIT
            right, right_tile = 0, steps * SPLIT
            strip = goal = 0
            if panels is None:
                right_array = work
            else:
                right_array = panels
                if number < products:
                    panel, strip = divmod(number, strips_here)
                    o, left = begin + panel * BLOCK, along + along_elements(channels, strip)
                    at, right = (first + q + strip * BLOCK) * outputs + o, o // SIDE * steps * SPLIT
                    kind = SLIM if end - o <= SIDE else 0
                    _ask(residual, at, min(BLOCK, here - strip * BLOCK), min(BLOCK, end - o), outputs)
                    _ask(source, at, min(BLOCK, here - strip * BLOCK), min(BLOCK, end - o), outputs)
                    clear_tiles()
            if beside is not None and number >= products:
                right_array = work
                panel, block = divmod(number - products, sum_blocks)
                depth, left_tile, left_step, right_tile = summed, together * SPLIT, SPLIT, together * SPLIT
                left, right = turned + block * 2 * left_tile, across + panel * 2 * right_tile
                kind = (SLIM if wide - panel * BLOCK <= SIDE else 0) + (LOW if high - block * BLOCK <= SIDE else 0)
                goal = (panel * filled + block * BLOCK) * BLOCK
                if group == 0:
                    clear_tiles()
                else:
                    load_tiles(kind, sums, goal)
            last_tile = (1 - product % 2) * PRODUCT
            lines = -(-PRODUCT // (SIDE * STAGES * depth))
            for turn in range(STAGES * depth):
                step, stage = divmod(turn, STAGES)
                add_stage(
                    kind * STAGES + stage, work, left + step * left_step, left_tile, right_array, right + step * SPLIT,
                    right_tile,
                )  # fmt: skip
                if beside is not None and number >= products and group == 0:
                    for line in range(turn * lines, min(PRODUCT // SIDE, (turn + 1) * lines)):
                        prefetch_to_write(sums, goal + line * SIDE)
                if panels is not None:
                    unfinished += BLOCK
                    while unfinished > 0 and finished < last_used:
                        finish_pixels(
                            work[last_tile + finished * BLOCK :], BLOCK, min(FINISHED, last_used - finished),
                            min(BLOCK, end - last_o), last_first and finished == 0, bias, residual, limits, out,
                            last_at + finished * outputs, outputs, last_o, streaming, shifts, source, source_relu,
                            source_affine, partials, last_piece,
                        )  # fmt: skip
                        finished += FINISHED
                        unfinished -= FINISHED * STAGES * depth
                soon = min(wanted, split + -(-(owed + wanted) // stages))
                if soon > split:
                    split_pieces(
                        split, soon, x, partner, relu, affine, slopes, floor, channels, panels, first + q + run_pixels,
                        there, together, at_once, spare, following, next_across, next_turned, beside, beside_relu,
                        beside_affine, beside_floor, beside_width, channel, used, turns, x_sums, work,
                    )  # fmt: skip
                owed += wanted - (soon - split) * stages
                split = soon
            if panels is not None:
                last_used = 0
                if number < products:
                    store_tiles(kind, work, product % 2 * PRODUCT)
                    pixel = q + strip * BLOCK
                    last_o, last_at, last_used = o, at, min(BLOCK, pixels - pixel)
                    last_piece, last_first = (first + pixel) // at_once, pixel % at_once == 0
                    product += 1
            if beside is not None and number >= products:
                store_tiles(kind, sums, goal)
    if panels is not None and last_used > 0:
        finish_pixels(
            work[(1 - product % 2) * PRODUCT :], BLOCK, last_used, min(BLOCK, end - last_o), last_first, bias, residual,
            limits, out, last_at, outputs, last_o, streaming, shifts, source, source_relu, source_affine, partials,
            last_piece,
        )  # fmt: skip
    close_unit()
    if panels is not None and streaming:
        fence()
