"""Depthwise convolution: windows, portions and sums of its engine against the float64 twin."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn._memory import empty
from fastbn.functional import conv_depthwise, conv_point
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_prologue import Prologue
from fastbn.functional.weight_panels import LINE
from fastbn.kernels._simd import VECTOR_BYTES

# x's shape, kernel, stride, padding, dilation.
CASES = {
    "a part of a vector behind whole ones": ((2, 37, 11, 13), (3, 3), (1, 1), (1, 1), (1, 1)),
    "one image of many rows": ((1, 16, 61, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    "more images than sums": ((21, 16, 17, 3), (3, 3), (2, 2), (1, 1), (1, 1)),
    "stride": ((2, 32, 9, 12), (3, 3), (2, 2), (1, 1), (1, 1)),
    "5x5, stride": ((2, 16, 12, 9), (5, 5), (2, 1), (2, 2), (1, 1)),
    "dilation": ((1, 16, 14, 11), (3, 3), (1, 2), (2, 3), (2, 3)),
    "stride beyond the kernel": ((2, 16, 11, 10), (2, 1), (4, 3), (1, 0), (1, 1)),
    "padding beyond the kernel": ((2, 16, 3, 2), (2, 2), (1, 2), (3, 4), (1, 1)),
    "no padding": ((2, 16, 7, 8), (4, 3), (1, 1), (0, 0), (1, 1)),
    "several small images together": ((11, 37, 6, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    "several small images, stride": ((11, 21, 12, 10), (3, 3), (2, 2), (1, 1), (1, 1)),
    "images of few pixels together, an odd one": ((7, 37, 3, 3), (3, 3), (1, 1), (1, 1), (1, 1)),
    "images of few pixels together, stride": ((7, 21, 5, 6), (3, 3), (2, 2), (1, 1), (1, 1)),
    "rows by twos, stride": ((2, 150, 23, 25), (3, 3), (2, 2), (1, 1), (1, 1)),
    "rows asked for ahead": ((16, 32, 17, 41), (3, 3), (1, 1), (1, 1), (1, 1)),
    "an image smaller than the stride": ((2, 16, 2, 1), (3, 3), (4, 3), (1, 1), (1, 1)),
}
SHARED = ["one image of many rows", "more images than sums", "stride", "rows by twos, stride"]  # out among threads
DTYPES = [np.float32, np.float64]


def problem(rng, case, dtype):
    """x, weight, window, options of the reference, dy."""
    shape, kernel, stride, padding, dilation = CASES[case]
    x, weight = rng.standard_normal(shape).astype(dtype), rng.standard_normal((shape[1], 1, *kernel)).astype(dtype)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": shape[1]}
    dy = rng.standard_normal(reference.conv2d(x, weight, **options).shape).astype(dtype)
    return x, weight, Window(kernel, stride, padding, dilation), options, dy


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows(rng, dtype, order, case):
    x, weight, window, options, dy = problem(rng, case, dtype)
    lay = ORDERS[order]
    y = lay(np.full_like(dy, np.nan))
    conv_depthwise.forward(lay(x), weight, None, window, len(weight), None, False, y)
    assert_close(y, reference.conv2d(x, weight, **options), dtype, scale=10)
    dx, dweight, _ = reference.conv2d_backward(dy, x, weight, **options)
    got = conv_depthwise.backward(lay(dy), lay(x), weight, window, len(weight), residual=lay(x))
    assert_close(got[0], dweight, dtype, scale=100)
    assert_close(got[1], dx + x, dtype, scale=10)


def affine_of(rng, channels, dtype):
    mean, scale, shift = rng.standard_normal((3, channels))
    return np.stack([mean, scale, shift + 1]).astype(dtype)


def normalized(x, affine, ceiling):
    near, scale, shift = (row.astype(np.float64)[:, None, None] for row in affine)
    line = (x - near) * scale + shift
    return np.clip(line, 0, ceiling), (line > 0) & (line < ceiling), x - near


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_comes_before_and_its_sums(rng, dtype, case):
    x, weight, window, options, dy = problem(rng, case, dtype)
    affine = affine_of(rng, x.shape[1], dtype)
    normed, ceiling = Prologue(affine, True, 1.5), 1.5
    point, passes, distance = normalized(x, affine, ceiling)
    y = channels_last(np.empty_like(dy))
    moments = conv_depthwise.forward(channels_last(x), weight, None, window, len(weight), None, False, y, normed, True)
    want = reference.conv2d(point, weight, **options)
    assert_close(y, want, dtype, scale=10)
    channels = x.shape[1]
    sums, squares = moments.partials[..., :channels]
    shifts = moments.shifts[:, :channels].astype(np.float64)
    total = sums.sum(0) + (moments.counts[:, None] * shifts).sum(0)
    assert_close(total / moments.counts.sum(), want.mean((0, 2, 3)), dtype, scale=10)
    second = squares + 2 * shifts * sums + moments.counts[:, None] * shifts**2
    assert_close(second.sum(0) / moments.counts.sum(), (want**2).mean((0, 2, 3)), dtype, scale=100)
    operands = channels_last(dy), channels_last(x), weight, window, channels
    got = conv_depthwise.backward(*operands, normed=normed)
    dx, dweight, _ = reference.conv2d_backward(dy, point, weight, **options)
    assert_close(got[0], dweight, dtype, scale=100)
    assert_close(got[1], dx, dtype, scale=10)
    g = np.where(passes, dx, 0)
    gradients = got[2].partials.sum(1)[:, :channels]
    assert_close(gradients, [g.sum((0, 2, 3)), (g * distance).sum((0, 2, 3))], dtype, scale=100)


def test_dy_through_a_batch_norm(rng):
    x, weight, window, options, dy = problem(rng, "a part of a vector behind whole ones", np.float64)
    z, channels = rng.standard_normal(dy.shape), x.shape[1]
    affine, slopes = affine_of(rng, channels, np.float64), rng.standard_normal((4, channels))
    _, passes, distance = normalized(z, affine, 2.0)
    a, b, k, inv_std = slopes[:, :, None, None]
    dz = a * np.where(passes, dy, 0) + b * distance * inv_std + k
    prologue = Prologue(affine, True, 2.0, slopes, channels_last(z))
    got = conv_depthwise.backward(channels_last(dy), channels_last(x), weight, window, channels, prologue)
    dx, dweight, _ = reference.conv2d_backward(dz, x, weight, **options)
    assert_close(got[0], dweight, np.float64, scale=10)
    assert_close(got[1], dx, np.float64)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_streamed_has_the_same_bits(rng, monkeypatch, dtype, stride):
    window = Window((3, 3), (stride, stride), (1, 1), (1, 1))
    x, weight = rng.standard_normal((5, 41, 43, 32)).astype(dtype), rng.standard_normal((32, 1, 3, 3)).astype(dtype)
    x, (height, width) = np.moveaxis(x, -1, 1), (-(-size // stride) for size in (41, 43))
    dy = np.moveaxis(rng.standard_normal((5, height, width, 32)).astype(dtype), -1, 1)
    normed = Prologue(affine_of(rng, 32, dtype), True, 1.5)
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(conv_point, "STREAMED", least)
        y = np.moveaxis(empty((5, height, width, 32), np.dtype(dtype)), -1, 1)
        assert conv_point.streams(y) == (least == 0 and VECTOR_BYTES == LINE)
        moments = conv_depthwise.forward(x, weight, None, window, 32, None, False, y, normed, True)
        dweight, dx, sums = conv_depthwise.backward(dy, x, weight, window, 32, normed=normed)
        assert conv_point.streams(dx) == conv_point.streams(y)
        found.append((y, moments.shifts, moments.partials, dweight, dx, sums.partials))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", SHARED)
def test_same_bits_for_any_number_of_threads(rng, case, monkeypatch):
    monkeypatch.setattr("fastbn._threads.MIN_PARALLEL_WORK", 0)
    x, weight, window, _, dy = problem(rng, case, np.float32)
    runs = []
    for threads in (1, fastbn.get_num_threads()):
        monkeypatch.setattr("fastbn._threads._count", threads)
        y = np.empty_like(dy)
        conv_depthwise.forward(x, weight, None, window, len(weight), None, True, y)
        runs.append([y, *conv_depthwise.backward(dy, x, weight, window, len(weight))[:2]])
    for one, many in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, many)


@settings(max_examples=15, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_gradients_are_adjoint(size, kernel, stride, padding):
    """<conv(x, w), dy> = <x, dx> = <w, dweight>."""
    window = Window(kernel, stride, padding, (1, 1))
    out = [(size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(2)]
    if min(out) < 1:
        return
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 16, *size)), rng.standard_normal((16, 1, *kernel))
    dy, y = rng.standard_normal((2, 16, *out)), np.empty((2, 16, *out))
    conv_depthwise.forward(x, weight, None, window, 16, None, False, y)
    dweight, dx, _ = conv_depthwise.backward(dy, x, weight, window, 16)
    np.testing.assert_allclose([np.vdot(x, dx), np.vdot(weight, dweight)], np.vdot(y, dy), rtol=1e-9, atol=1e-9)
