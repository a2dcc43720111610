"""Rows of an image, pixel by pixel as in channels-last memory, with zeros around them.

A convolution that walks down an image keeps the last rows that its window needs and fills each once. Prologues are
those of ``conv_fill``.
"""

from fastbn.kernels._jit import body
from fastbn.kernels._vector import lanes_of, splat, store
from fastbn.kernels.conv_fill import prologue_first, prologue_of


@body
def fill_rows(
    x, partner, relu, affine, slopes, floor, images, origin, image_step, stride, step, height, width, first, last, top,
    lead, begin, end, rows, kept, columns, pitch,
):  # fmt: skip
    """Rows ``begin`` to ``end`` of every image, of which the first ``top`` lie above it; row v is kept as v % ``kept``.

    rows[((image * kept + row) * columns + column) * pitch + c] = the prologue of x, of channel first + c. That channel
    of the first image, of ``height`` x ``width``, begins at ``origin``, the next image ``image_step`` further; pixels
    are ``step`` apart, channels ``stride``. Zeros outside an image, in ``lead`` columns before it, and in channels from
    ``last`` to a whole vector.
    """
    lanes, zero, low = lanes_of(x), splat(x, 0.0), splat(x, floor)
    whole = (last - first) // lanes * lanes
    count = last - first - whole
    filled = whole + (lanes if count else 0)
    for image in range(images):
        for v in range(begin, end):
            place, h = (image * kept + v % kept) * columns * pitch, v - top
            inside = 0 <= h < height
            left = lead if inside else columns
            right = min(columns, lead + width) if inside else columns
            for column in range(left):
                for c in range(0, filled, lanes):
                    store(rows, place + column * pitch + c, zero)
            for column in range(right, columns):
                for c in range(0, filled, lanes):
                    store(rows, place + column * pitch + c, zero)
            i, place = origin + image * image_step + h * width * step, place + left * pitch
            for _ in range(left, right):
                if stride == 1:
                    for c in range(0, whole, lanes):
                        store(rows, place + c, prologue_of(x, partner, relu, affine, slopes, low, i + c, first + c))
                    if count:
                        at, c = i + whole, first + whole
                        value = prologue_first(x, partner, relu, affine, slopes, low, at, c, count, zero)
                        store(rows, place + whole, value)
                else:
                    for c in range(filled):
                        rows[place + c] = x[i + c * stride] if c < last - first else 0
                i += step
                place += pitch
