"""Convolutions of single pixels: the engine of channels-last 1x1, beside the one for all windows."""

import numpy as np
import pytest
from helpers import assert_close, channels_last
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn.functional import conv_blocks, conv_point
from fastbn.functional.conv import engine_for
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_point import POINT
from fastbn.functional.conv_point_portions import backward_share, forward_share
from fastbn.functional.conv_prologue import PLAIN, Prologue
from fastbn.functional.weight_panels import LINE
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels._simd_point import SLIM_ROWS

# Images, height, width, channels, outputs: whole panels, parts of vectors, one vector on either side, one run; weights
# that tasks share out.
SIZES = (3, 13, 17, 64, 96), (2, 31, 33, 16, 24), (16, 5, 7, 24, 16), (1, 40, 41, 20, 72), (1, 5, 23, 40, 17)
LARGE = (16, 3, 3, 200, 328), (16, 3, 3, 330, 164)


def image(rng, *shape):
    return channels_last(rng.standard_normal(shape))


def operands(rng, size, dtype=np.float64):
    """x, weight, dy."""
    n, height, width, channels, outputs = size
    weight = rng.standard_normal((outputs, channels, 1, 1))
    arrays = image(rng, n, channels, height, width), weight, image(rng, n, outputs, height, width)
    return tuple(array.astype(dtype) for array in arrays)


def prologues(rng, x, dy):
    """Of dy, the gradient of a batch norm and ReLU6, and of x, a batch norm and ReLU."""
    slopes, affine = rng.standard_normal((4, dy.shape[1])), rng.standard_normal((3, dy.shape[1]))
    gradient = Prologue(affine, True, 6.0, slopes, image(rng, *dy.shape))
    return gradient, Prologue(rng.standard_normal((3, x.shape[1])), True)


def output(x, weight):
    return channels_last(np.full((len(x), len(weight), *x.shape[2:]), np.nan, x.dtype))


def totals(sums, channels):
    return sums.partials.sum(axis=1)[:, :channels]


def statistics(sums, channels):
    """Mean and sum of squares about 0."""
    counts = sums.counts[:, None]
    means = sums.partials[0] / counts + sums.shifts
    squares = sums.partials[1] - sums.partials[0] ** 2 / counts + counts * means**2
    return (means * counts).sum(axis=0)[:channels] / counts.sum(), squares.sum(axis=0)[:channels]


@pytest.mark.parametrize("size", SIZES + LARGE, ids=str)
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_it_is_the_convolution_over_blocks(rng, size, normed, joined):
    x, weight, dy = operands(rng, size)
    outputs, channels = weight.shape[:2]
    of_dy, of_x = prologues(rng, x, dy) if normed else (PLAIN, None)
    bias, residual, other = rng.standard_normal(outputs), image(rng, *dy.shape), image(rng, *x.shape)
    if not joined:
        bias = residual = other = None
    found = []
    for engine in conv_point, conv_blocks:
        y = output(x, weight)
        moments = engine.forward(x, weight, bias, POINT, 1, residual, joined, y, of_x or PLAIN, not joined)
        dweight, dx, sums = engine.backward(dy, x, weight, POINT, 1, of_dy, of_x, other)
        found.append([y, dweight, dx])
        if not joined:
            found[-1] += statistics(moments, outputs)
        if normed:
            found[-1].append(totals(sums, channels))
        alone, nothing, _ = engine.backward(dy, x, weight, POINT, 1, of_dy, of_x, need_dx=False)
        assert nothing is None
        np.testing.assert_array_equal(alone, dweight)
    for got, want in zip(*found, strict=True):
        assert_close(got, want, np.float64, scale=100)


@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_weights_are_shared_out(size):
    n, height, width, channels, outputs = size
    pixels = n * height * width
    at_once, wide = forward_share(pixels, channels, outputs, 8, None)
    share = backward_share(pixels, channels, outputs, 8, None)
    assert wide < outputs
    assert share.wide < channels
    assert at_once % SLIM_ROWS == share.at_once % SLIM_ROWS == 0


@pytest.mark.parametrize(("pixels", "matrix"), [(576, True), (2304, True), (2304, None), (9216, None), (36864, None)])
@pytest.mark.parametrize(("channels", "outputs"), [(96, 576), (576, 96), (64, 384), (192, 32), (16, 96)])
def test_two_threads_have_as_much_to_do(pixels, channels, outputs, matrix):
    share = backward_share(pixels, channels, outputs, 4, matrix)
    split = share.at_once * share.runs_at_once
    loads = np.minimum(split, pixels - np.arange(0, pixels, split))
    assert loads.sum() == pixels
    first = loads[: -(-loads.size // 2)].sum()
    assert share.wide < channels or first <= 0.55 * pixels


@pytest.mark.parametrize("stride", [(2, 2), (1, 3)], ids=str)
@pytest.mark.parametrize("added", [False, True])
def test_a_stride_visits_its_pixels_alone(rng, stride, added):
    x, weight, _ = operands(rng, (3, 17, 23, 40, 24))
    window = Window((1, 1), stride, (0, 0), (1, 1))
    y = channels_last(np.full((3, 24, -(-17 // stride[0]), -(-23 // stride[1])), np.nan))
    dy, other = image(rng, *y.shape), image(rng, *x.shape) if added else None
    of_dy, of_x = prologues(rng, x, dy)
    assert engine_for(x, weight.shape, window, 1, y.shape) is conv_point
    found = []
    for engine in conv_point, conv_blocks:
        engine.forward(x, weight, None, window, 1, None, False, y, of_x)
        dweight, dx, sums = engine.backward(dy, x, weight, window, 1, of_dy, of_x, other)
        assert sums is None
        found.append((y.copy(order="K"), dweight, dx))
        assert engine.backward(dy, x, weight, window, 1, of_dy, of_x, need_dx=False)[1] is None
    for got, want in zip(*found, strict=True):
        assert_close(got, want, np.float64, scale=100)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 99),
)
def test_a_pixel_is_convolved_by_itself(n, height, width, channels, outputs, seed):
    rng = np.random.default_rng(seed)
    x, weight, dy = operands(rng, (n, height, width, channels, outputs))
    y, turned = output(x, weight), output(x, weight)
    conv_point.forward(x, weight, None, POINT, 1, None, False, y)
    order = rng.permutation(height * width)

    def shuffled(array):
        return channels_last(array.reshape(*array.shape[:2], -1)[:, :, order].reshape(array.shape))

    conv_point.forward(shuffled(x), weight, None, POINT, 1, None, False, turned)
    np.testing.assert_array_equal(turned, shuffled(y))
    dx = conv_point.backward(dy, x, weight, POINT, 1)[1]
    np.testing.assert_array_equal(conv_point.backward(shuffled(dy), x, weight, POINT, 1)[1], shuffled(dx))
    assert_close(y, np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]), np.float64, scale=10)
    assert_close(dx, np.einsum("nohw,oc->nchw", dy, weight[:, :, 0, 0]), np.float64, scale=10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_streamed_has_the_same_bits(rng, monkeypatch, dtype):
    x, weight, dy = operands(rng, (2, 31, 33, 32, 48), dtype)
    of_dy, of_x = (prologue._replace(affine=prologue.affine.astype(dtype)) for prologue in prologues(rng, x, dy))
    of_dy = of_dy._replace(slopes=of_dy.slopes.astype(dtype), partner=of_dy.partner.astype(dtype))
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(conv_point, "STREAMED", least)
        monkeypatch.setattr(conv_point, "STREAMED_DX", least)
        memory = fastbn.functional.conv.empty((*dy.shape[:1], *dy.shape[2:], dy.shape[1]), np.dtype(dtype))
        y = np.moveaxis(memory, -1, 1)
        assert conv_point.streams(y) == (least == 0 and VECTOR_BYTES == LINE)
        moments = conv_point.forward(x, weight, None, POINT, 1, None, False, y, of_x, True)
        dweight, dx, sums = conv_point.backward(dy, x, weight, POINT, 1, of_dy, of_x)
        found.append((y, dweight, dx, totals(sums, 32), *statistics(moments, 48)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_output_that_begins_between_lines_is_not_streamed(rng, monkeypatch):
    monkeypatch.setattr(conv_point, "STREAMED", 0)
    x, weight, _ = operands(rng, (1, 20, 20, 16, 32), np.float32)
    memory = np.empty(12800 + 16, np.float32)
    start = -(memory.ctypes.data // 4) % 16 + 1
    y = memory[start : start + 12800].reshape(1, 20, 20, 32).transpose(0, 3, 1, 2)
    conv_point.forward(x, weight, None, POINT, 1, None, False, y)
    assert_close(y, np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]), np.float32, scale=10)


def test_the_residual_may_be_the_output(rng):
    x, weight, y = operands(rng, (2, 9, 13, 24, 32))
    want = np.maximum(y + np.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]), 0)
    conv_point.forward(x, weight, None, POINT, 1, y, True, y)
    assert_close(y, want, np.float64, scale=10)


def test_the_same_bits_for_any_number_of_threads(rng):
    x, weight, dy = operands(rng, (3, 41, 43, 64, 48), np.float32)
    strided, y_strided = Window((1, 1), (2, 3), (0, 0), (1, 1)), channels_last(np.empty((3, 48, 21, 15), np.float32))
    found = []
    before = fastbn.get_num_threads()
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(min(threads, before))
            y = output(x, weight)
            conv_point.forward(x, weight, None, POINT, 1, None, False, y)
            conv_point.forward(x, weight, None, strided, 1, None, False, y_strided)
            part = conv_point.backward(y_strided, x, weight, strided, 1, residual=x)[:2]
            found.append((y, y_strided.copy(), *part, *conv_point.backward(dy, x, weight, POINT, 1)[:2]))
    finally:
        fastbn.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 3, 0, 0), (1, 23, 8, 12)], ids=str)
def test_nan_and_inf_stay_in_their_pixel_and_reach_the_weights_they_meet(rng, place, bad):
    x, weight, dy = operands(rng, (2, 9, 13, 24, 36))
    x[place] = bad
    y = output(x, weight)
    conv_point.forward(x, weight, None, POINT, 1, None, False, y)
    hit = np.zeros(x[:, 0].shape, bool)
    hit[place[0], *place[2:]] = True
    np.testing.assert_array_equal(np.isfinite(y).all(axis=1), ~hit)
    dweight = conv_point.backward(dy, x, weight, POINT, 1)[0]
    np.testing.assert_array_equal(np.isfinite(dweight[:, :, 0, 0]).all(axis=0), np.arange(24) != place[1])
    dy[place] = bad
    dx = conv_point.backward(dy, operands(rng, (2, 9, 13, 24, 36))[0], weight, POINT, 1)[1]
    np.testing.assert_array_equal(np.isfinite(dx).all(axis=1), ~hit)


def test_which_convolutions_it_is_for():
    weight, y_shape = (32, 16, 1, 1), (1, 32, 9, SLIM_ROWS)
    x = np.zeros((1, 16, 9, SLIM_ROWS), np.float32)
    strided = Window((1, 1), (2, 2), (0, 0), (1, 1))
    assert engine_for(channels_last(x), weight, POINT, 1, y_shape) is conv_point
    assert engine_for(x, weight, POINT, 1, y_shape) is conv_blocks
    assert engine_for(channels_last(x), weight, strided, 1, (1, 32, 5, SLIM_ROWS // 2)) is conv_blocks
    assert engine_for(channels_last(x[:, :, :2]), weight, POINT, 1, (1, 32, 2, SLIM_ROWS)) is conv_blocks
    larger = channels_last(np.zeros((1, 16, 18, 2 * SLIM_ROWS), np.float32))
    assert engine_for(larger, weight, strided, 1, y_shape) is conv_point


def test_sums_of_a_gradient_behind_its_prologue(rng):
    x, weight, dy = operands(rng, (3, 13, 17, 20, 36))
    of_dy, of_x = prologues(rng, x, dy)
    dweight, dx, pieces = conv_point.backward_with_sums(dy, x, weight, of_dy, of_x, None, True)
    sums = pieces.sum(axis=0)[: dy.shape[1]]
    for got, want in zip((dweight, dx), conv_point.backward(dy, x, weight, POINT, 1, of_dy, of_x), strict=False):
        np.testing.assert_array_equal(got, want)
    near, scale, shift = of_dy.affine[:, :, None, None]
    a, b, k, inv_std = of_dy.slopes[:, :, None, None]
    centred = of_dy.partner - near
    v = centred * scale + shift
    assert_close(sums, (a * np.where((v > 0) & (v < 6), dy, 0) + b * centred * inv_std + k).sum((0, 2, 3)), np.float64)
