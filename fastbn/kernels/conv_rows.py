"""Rows of an image, a vector of channels at a time: pixels side by side, with zeros around them.

A convolution that walks down an image keeps the last rows that its window needs and fills each once. Prologues are
those of ``conv_fill``.
"""

from fastbn.kernels._jit import body
from fastbn.kernels._vector import lanes_of, splat, store
from fastbn.kernels.conv_fill import prologue_first, prologue_of


@body
def fill_row(
    x, partner, relu, affine, slopes, floor, at, stride, step, first, last, left, right, columns, rows, target, block
):  # fmt: skip
    """rows[target + c * block + column * lanes + lane] = the prologue of x, of channel first + c * lanes + lane.

    That of column ``left`` lies at ``at``, those of the next ``step`` further, the next channels' ``stride``. Zeros in
    columns outside ``left`` to ``right``, up to ``columns``, and in lanes of channels from ``last`` on.
    """
    lanes, zero, low = lanes_of(x), splat(x, 0.0), splat(x, floor)
    vectors, whole = -(-(last - first) // lanes), (last - first) // lanes
    for vector in range(vectors):
        place = target + vector * block
        for column in range(left):
            store(rows, place + column * lanes, zero)
        for column in range(right, columns):
            store(rows, place + column * lanes, zero)
    if stride == 1:
        for column in range(left, right):
            i, place = at + (column - left) * step, target + column * lanes
            for c in range(0, whole * lanes, lanes):
                value = prologue_of(x, partner, relu, affine, slopes, low, i + c, first + c)
                store(rows, place + c // lanes * block, value)
            if whole < vectors:
                c = whole * lanes
                count = last - first - c
                value = prologue_first(x, partner, relu, affine, slopes, low, i + c, first + c, count, zero)
                store(rows, place + whole * block, value)
    else:
        for c in range(vectors * lanes):
            vector, lane = divmod(c, lanes)
            i, place = at + c * stride, target + vector * block + lane
            for column in range(left, right):
                rows[place + column * lanes] = x[i + (column - left) * step] if c < last - first else 0
