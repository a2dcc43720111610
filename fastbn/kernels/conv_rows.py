"""Rows of images for as many channels as a vector has lanes: a vector a pixel, with zeros around each image.

Prologues are those of ``conv_fill``.
"""

from numba import uint64

from fastbn.kernels._jit import body, inlined
from fastbn.kernels._vector import at_most, lanes_of, splat
from fastbn.kernels._vector_memory import load_first, load_part, prefetch_far, store
from fastbn.kernels.batch_norm_vectors import gradient, gradient_first, normalized, normalized_first
from fastbn.kernels.channels import NEAR_INV_STD, NEAR_MEAN, SCALE, SHIFT, A, B, K


@inlined
def constants_of(values, row, c, count, zero):
    """Row ``row`` of ``affine`` or ``slopes`` for ``count`` channels from c on; zeros where it is None."""
    return zero if values is None else load_first(values, row * values.shape[1] + c, count, zero)


@inlined
def pixel_step(strides, height, width):
    """From pixel to pixel of an image, and of all images where channels lie side by side."""
    return strides[0] // (height * width) if strides[1] == 1 else strides[3]


@inlined
def asked_for(ahead, at, pixels, step, c, lanes):
    """Where to ask for memory while the vector of channels from c on is worked on, and how far from line to line.

    ahead: for all channels of the pixels after these, in the order of memory: the processor follows no other. Else for
    the next channels of these.
    """
    if ahead:
        return at + pixels * (step + c), lanes
    return at + c + lanes, step


@inlined
def ask_block(x, at, elements):
    """Have these elements of ``x``, if it is not None, in the second cache soon: nobody has asked ahead for them."""
    if x is not None:
        for i in range(at, at + elements, lanes_of(x)):
            prefetch_far(x, i)


@body
def clear(plane, elements):
    """Zeros, to a whole vector."""
    zero = splat(plane, 0.0)
    for q in range(0, elements, lanes_of(plane)):
        store(plane, q, zero)


@body
def fill_rows(
    x, partner, relu, affine, slopes, floor, images, at, image_step, stride, step, c, count, asked, asked_step, spots,
    first, pixels, plane, size,
):  # fmt: skip
    """plane[image * size + spots[first + q] + lane] = the prologue of x, of pixel q < ``pixels`` of every image.

    The first pixel of ``count`` channels from c on lies at ``at``; images are ``image_step`` apart, channels
    ``stride``, pixels ``step``; lanes after the last channel become 0. asked, asked_step: see ``asked_for``.
    """
    lanes, zero, low = lanes_of(x), splat(x, 0.0), splat(x, floor)
    near, scale = constants_of(affine, NEAR_MEAN, c, count, zero), constants_of(affine, SCALE, c, count, zero)
    shift, inv_std = constants_of(affine, SHIFT, c, count, zero), constants_of(slopes, NEAR_INV_STD, c, count, zero)
    a, b = constants_of(slopes, A, c, count, zero), constants_of(slopes, B, c, count, zero)
    k = constants_of(slopes, K, c, count, zero)
    for image in range(images):
        i, target = at + image * image_step, image * size
        for q in range(first, first + pixels):
            place = target + spots[uint64(q)]
            if stride != 1:
                store(plane, place, zero)
                for lane in range(count):
                    plane[place + lane] = x[i + lane * stride]
            else:
                if affine is None:
                    value = load_part(x, i, count, zero)
                elif slopes is None:
                    if count == lanes:
                        value = normalized(x, None, None, i, 0, near, scale, shift, low)
                    else:
                        value = normalized_first(x, None, None, i, count, 0, near, scale, shift, low)
                    value = at_most(value, relu)
                elif count == lanes:
                    value = gradient(x, partner, None, relu, i, 0, False, near, scale, shift, a, b, k, inv_std, None)
                else:
                    value = gradient_first(
                        x, partner, None, relu, i, count, 0, near, scale, shift, a, b, k, inv_std, None
                    )  # fmt: skip
                store(plane, place, value)
                prefetch_far(x, asked)
                if partner is not None:
                    prefetch_far(partner, asked)
                asked += asked_step
            i += step
