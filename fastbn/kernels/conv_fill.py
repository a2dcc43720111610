"""Blocks: the rows of an image that a convolution needs, in planes of as many channels as a vector has lanes.

Planes are those of ``kernels.conv``; element (row, column) of a plane is one vector, a pixel's. So the values that a
kernel multiplies lie at constant distances, in the first and second cache, however the image lies in memory; padding,
stride and dilation are places in the planes.

A *prologue* changes channels-last values on their way:
affine (3, C) alone: max((x - near) * scale + shift, floor), the batch norm and ReLU of the layer before, at most
``relu`` if that is a number;
slopes (4, C) as well: batch norm's gradient, where x is dy and ``partner`` the batch norm's input; dy passes where a
ReLU let it, unless ``relu`` is None: above 0, and below ``relu`` if that is a number.
Zeros outside the image stay zeros. What does not apply is None. See ``channels``.
"""

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._vector import at_most, lanes_of, splat
from fastbn.kernels._vector_memory import load, load_first, store
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K


@inlined
def prologue_of(x, partner, relu, affine, slopes, low, i, c):
    """What a prologue makes of the vector at i, whose channels begin with c; low: its floor."""
    if affine is None:
        value = load(x, i)
    else:
        width = affine.shape[1]
        near, scale = load(affine, NEAR_MEAN * width + c), load(affine, SCALE * width + c)
        shift = load(affine, SHIFT * width + c)
        if slopes is None:
            value = at_most(normalized(x, None, None, i, 0, near, scale, shift, low), relu)
        else:
            a, b, k = load(slopes, A * width + c), load(slopes, B * width + c), load(slopes, K * width + c)
            inv_std = load(slopes, NEAR_INV_STD * width + c)
            value = gradient(x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None)
    return value


@inlined
def _first_of(values, row, c, count, zero):
    return load_first(values, row * values.shape[1] + c, count, zero)


@inlined
def prologue_first(x, partner, relu, affine, slopes, low, i, c, count, zero):
    """As ``prologue_of``: the first ``count`` elements, zeros behind them."""
    if affine is None:
        value = load_first(x, i, count, zero)
    else:
        near, scale = _first_of(affine, NEAR_MEAN, c, count, zero), _first_of(affine, SCALE, c, count, zero)
        shift = _first_of(affine, SHIFT, c, count, zero)
        if slopes is None:
            value = at_most(normalized_first(x, None, None, i, count, 0, near, scale, shift, low), relu)
        else:
            a, b = _first_of(slopes, A, c, count, zero), _first_of(slopes, B, c, count, zero)
            k, inv_std = _first_of(slopes, K, c, count, zero), _first_of(slopes, NEAR_INV_STD, c, count, zero)
            value = gradient_first(x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None)
    return value


@body
def fill_blocks(
    x, partner, relu, affine, slopes, floor, origin, channel, channels, height, width, strides, starts_h, starts_w,
    first_row, stride_h, stride_w, rows, columns, blocks, block, plane,
):  # fmt: skip
    """blocks[c, i, j, row, column, lane] = x[c lanes + lane, starts_h[i] + (first_row + row) stride_h, ...].

    Zero outside the image and its channels. origin: the offset of the first channel, which is ``channel`` of the
    prologue's. strides: of x along channel, row and column. block, plane: elements from one c, or (i, j), to the next.
    """
    lanes = lanes_of(x)
    zero, low = splat(x, 0.0), splat(x, floor)
    step = stride_w * strides[2]
    depth, whole = -(-channels // lanes), channels // lanes
    first = 0
    for start_h in starts_h:
        for start_w in starts_w:
            at = first
            first += plane
            # Columns whose pixel start_w + column * stride_w lies in the image.
            left = min(columns, max(0, -(start_w // stride_w)))
            right = max(left, min(columns, (width - 1 - start_w) // stride_w + 1))
            for row in range(rows):
                h = start_h + (first_row + row) * stride_h
                inside = 0 <= h < height
                for c in range(depth):
                    for column in range(left if inside else columns):
                        store(blocks, at + c * block + column * lanes, zero)
                    for column in range(right if inside else columns, columns):
                        store(blocks, at + c * block + column * lanes, zero)
                source = origin + h * strides[1] + start_w * strides[2]
                if inside and strides[0] == 1:
                    for column in range(left, right):
                        place, target = source + column * step, at + column * lanes
                        for c in range(whole):
                            value = prologue_of(
                                x, partner, relu, affine, slopes, low, place + c * lanes, channel + c * lanes
                            )  # fmt: skip
                            store(blocks, target + c * block, value)
                        if whole < depth:
                            i, last = place + whole * lanes, channel + whole * lanes
                            count = channels - whole * lanes
                            rest = prologue_first(x, partner, relu, affine, slopes, low, i, last, count, zero)
                            store(blocks, target + whole * block, rest)
                elif inside:
                    for c in range(depth * lanes):
                        block_of_c, lane = divmod(c, lanes)
                        place, target = source + c * strides[0], at + block_of_c * block + lane
                        if c < channels:
                            for column in range(left, right):
                                blocks[target + column * lanes] = x[place + column * step]
                        else:
                            for column in range(left, right):
                                blocks[target + column * lanes] = 0
                at += columns * lanes
