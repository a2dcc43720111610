"""Convolutions of single pixels by the processor's matrix unit: float32, and nothing less."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conv_point import image, operands, output, prologues, statistics, totals

import fastbn
from fastbn.functional import conv_blocks, conv_point, conv_point_portions
from fastbn.functional.conv_bn import conv_bn_backward, conv_bn_forward
from fastbn.functional.conv_point import POINT
from fastbn.functional.conv_prologue import PLAIN
from fastbn.kernels._matrix_unit import BLOCK, DEPTH, SIDE, matrix_unit

pytestmark = pytest.mark.skipif(not matrix_unit(), reason="no matrix unit, or FASTBN_AMX is 0")

# Images, height, width, channels, outputs: whole tiles; one side of each; edges everywhere; weights that tasks share
# out; a run of pixels with none behind it.
SIZES = (
    (2, 16, 16, 2 * DEPTH, 2 * BLOCK),
    (3, 31, 33, SIDE, SIDE),
    (3, 13, 17, 72, 41),
    (1, 29, 31, 23, 100),
    (2, 12, 12, 330, 164),
    (2, 12, 12, 150, 530),
    (1, 10, 12, 48, 64),
)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """The unit takes what is too small to gain from it, too."""
    monkeypatch.setattr(conv_point_portions, "LEAST_SPLIT", 1)
    monkeypatch.setattr(conv_point_portions, "LEAST_DEPTH", 1)
    forget()
    yield
    monkeypatch.undo()
    forget()


def forget():
    conv_point_portions.forward_portions.cache_clear()
    conv_point_portions.backward_portions.cache_clear()


@pytest.fixture
def deep(everywhere, monkeypatch):
    """Sums over many channels are kept between, of which 64 are many."""
    monkeypatch.setattr(conv_point_portions, "DEEP_PANELS", 0)
    monkeypatch.setattr(conv_point_portions, "LEAST_DEEP", 1)
    monkeypatch.setattr(conv_point_portions, "DEEP", 2 * DEPTH)
    forget()


def by_vectors(monkeypatch):
    """From here on no unit is found."""
    monkeypatch.setattr(conv_point_portions, "matrix_unit", lambda: None)
    forget()


def test_a_turned_gradient_that_is_streamed_has_the_same_bits(rng, monkeypatch):
    x, weight, dy = operands(rng, (2, 16, 16, 96, 48), np.float32)
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(conv_point, "STREAMED_DWEIGHT", least)
        found.append(conv_point.backward(dy, x, weight, POINT, 1)[0])
    np.testing.assert_array_equal(*found)
    want = np.einsum("nohw,nchw->oc", dy, x, dtype=np.float64)
    assert np.abs(found[0][:, :, 0, 0] - want).max() < 1e-5 * np.abs(want).max()


def single(prologue):
    """A prologue of float32."""
    return prologue._replace(
        **{
            name: None if value is None else value.astype(np.float32)
            for name, value in (("affine", prologue.affine), ("slopes", prologue.slopes), ("partner", prologue.partner))
        }
    )


def convolved(x, weight):
    y = output(x, weight)
    conv_point.forward(x, weight, None, POINT, 1, None, False, y)
    return y


def relative(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("joined", [False, True])
def test_it_is_the_convolution_over_blocks_in_float64(rng, size, joined):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, size))
    outputs, channels = weight.shape[:2]
    of_dy, of_x = map(single, prologues(rng, x, dy)) if joined else (PLAIN, None)
    bias, residual, other = (
        array.astype(np.float32)
        for array in (rng.standard_normal(outputs), image(rng, *dy.shape), image(rng, *x.shape))
    )
    if not joined:
        bias = residual = other = None
    found = []
    for engine, dtype in (conv_point, np.float32), (conv_blocks, np.float64):

        def given(value, dtype=dtype):
            return value.astype(dtype) if isinstance(value, np.ndarray) else value

        def through(prologue, given=given):
            return prologue and type(prologue)(*map(given, prologue))

        a, b, c = given(x), given(weight), given(dy)
        y = output(a, b)
        moments = engine.forward(
            a, b, given(bias), POINT, 1, given(residual), joined, y, through(of_x) or PLAIN, not joined
        )
        dweight, dx, sums = engine.backward(c, a, b, POINT, 1, through(of_dy), through(of_x), given(other))
        found.append([y, dweight, dx])
        if not joined:
            found[-1] += statistics(moments, outputs)
        else:
            found[-1].append(totals(sums, channels))
    assert conv_point_portions.forward_portions(x.size // channels, channels, outputs, 4).matrix
    for got, want in zip(*found, strict=True):
        assert relative(got, want) < 2e-6


@pytest.mark.parametrize("size", SIZES[1:6], ids=str)
@pytest.mark.parametrize("joined", [False, True])
def test_sums_that_are_kept_between_are_the_same(rng, deep, size, joined):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, size))
    outputs = len(weight)
    x_prologue = single(prologues(rng, x, dy)[1]) if joined else PLAIN
    bias, residual = (rng.standard_normal(outputs).astype(np.float32), dy) if joined else (None, None)
    found = []
    for engine in conv_point, conv_blocks:
        y = output(x, weight)
        sums = engine.forward(x, weight, bias, POINT, 1, residual, joined, y, x_prologue, not joined)
        found.append([y] if joined else [y, *statistics(sums, outputs)])
    for got, want in zip(*found, strict=True):
        assert relative(got, want) < 4e-6


@pytest.mark.parametrize("size", SIZES[4:6], ids=str)
def test_sums_that_are_kept_between_have_the_same_bits_for_any_number_of_threads(rng, deep, monkeypatch, size):
    x, weight, _ = (array.astype(np.float32) for array in operands(rng, size))
    found = []
    for threads in (1, 2, 7, 64):
        monkeypatch.setattr(conv_point_portions, "max_threads", lambda threads=threads: max(8, threads))
        forget()
        found.append(convolved(x, weight))
    for some in found[1:]:
        np.testing.assert_array_equal(found[0], some)


def test_what_is_not_finite_stays_in_its_pixel_where_sums_are_kept(rng, deep):
    x, weight, _ = (array.astype(np.float32) for array in operands(rng, (1, 13, 17, 200, 75)))
    good = convolved(x, weight)
    x[0, 150, 8, 12] = np.nan
    y = convolved(x, weight)
    assert np.isnan(y[0, :, 8, 12]).all()
    y[0, :, 8, 12] = good[0, :, 8, 12]
    np.testing.assert_array_equal(y, good)


@pytest.mark.parametrize("need_dx", [True, False])
@pytest.mark.parametrize("gathered", [BLOCK, 2 * BLOCK, 3 * BLOCK, 1 << 20])
@pytest.mark.parametrize("size", [(2, 12, 12, 150, 530), (1, 25, 23, 330, 164)], ids=str)
def test_sums_over_pixels_of_several_runs_at_a_time(rng, monkeypatch, size, gathered, need_dx):
    monkeypatch.setattr(conv_point_portions, "SPLIT_RUN", 0)
    monkeypatch.setattr(conv_point_portions, "GATHERED_PIXELS", gathered)
    monkeypatch.setattr(conv_point_portions, "FEWEST_TASKS", 1)
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, size))
    share = conv_point_portions.backward_portions(x.size // size[3], *size[3:], 4).share
    assert share.at_once == BLOCK
    assert share.runs_at_once > 5
    assert 1 <= share.gathered <= gathered // BLOCK
    assert (share.gathered == share.runs_at_once) == (gathered == 1 << 20)
    dweight, dx, _ = conv_point.backward(dy, x, weight, POINT, 1, need_dx=need_dx)
    wide = [array.astype(np.float64) for array in (dy, x, weight)]
    assert relative(dweight[:, :, 0, 0], np.einsum("nohw,nchw->oc", *wide[:2])) < 2e-6
    if need_dx:
        assert relative(dx, np.einsum("nohw,oc->nchw", wide[0], wide[2][:, :, 0, 0])) < 2e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_a_turned_matrix(rows, columns):
    matrix = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    np.testing.assert_array_equal(conv_point.turned(matrix), matrix.T)


@pytest.mark.parametrize("sizes", [(128, 130, 160), (333, 200, 144), (140, 2048, 128)], ids=str)
def test_gradients_of_a_linear_layer_by_a_product_each(rng, monkeypatch, sizes):
    rows, channels, outputs = sizes
    x, weight, dy = (rng.standard_normal(s) for s in ((rows, channels), (outputs, channels), (rows, outputs)))
    linear = importlib.import_module("fastbn.functional.linear")
    monkeypatch.setattr(linear, "LEAST_APART", 0)
    monkeypatch.setattr(linear, "LEAST_WORK", 0)
    dx, dweight, dbias = linear.linear_backward(*(a.astype(np.float32) for a in (dy, x, weight)))
    for got, want in (dx, dy @ weight), (dweight, dy.T @ x), (dbias, dy.sum(axis=0)):
        assert relative(got, want) < 2e-6
    nothing, alone, _ = linear.linear_backward(*(a.astype(np.float32) for a in (dy, x, weight)), need_dx=False)
    assert nothing is None
    np.testing.assert_array_equal(alone, dweight)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_gradient_of_the_weights_alone(rng, size):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, size))
    alone, nothing, _ = conv_point.backward(dy, x, weight, POINT, 1, need_dx=False)
    assert nothing is None
    np.testing.assert_array_equal(alone, conv_point.backward(dy, x, weight, POINT, 1)[0])


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize(("channels", "outputs"), [(64, 256), (48, 96), (160, 160)])
def test_a_training_unit_is_that_of_float64(rng, channels, outputs, gram):
    x, weight, dy = operands(rng, (2, 19, 21, channels, outputs))
    weight /= np.sqrt(channels)
    found = []
    for dtype in np.float32, np.float64:
        a, b, c = (array.astype(dtype) for array in (x, weight, dy))
        y, saved = conv_bn_forward(a, b, relu=False, gram=gram)
        (
            dx,
            dweight,
            *_,
        ) = conv_bn_backward(c, saved)
        found.append((y, saved.mean if gram else saved.norm.mean, dx, dweight))
    for got, want in zip(*found, strict=True):
        assert relative(got, want) < 5e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(150, 400), st.integers(32, 90), st.integers(32, 90), st.integers(0, 99))
def test_whole_numbers_are_multiplied_exactly(pixels, channels, outputs, seed):
    rng = np.random.default_rng(seed)
    x, dy = (
        fastbn_image(rng.integers(-4000, 4000, (pixels, count)).astype(np.float32)) for count in (channels, outputs)
    )
    weight = rng.integers(-40, 40, (outputs, channels, 1, 1)).astype(np.float32)
    flat = weight[:, :, 0, 0].astype(np.float64)
    np.testing.assert_array_equal(convolved(x, weight), np.einsum("nchw,oc->nohw", x.astype(np.float64), flat))
    dx = conv_point.backward(dy, x, weight, POINT, 1)[1]
    np.testing.assert_array_equal(dx, np.einsum("nohw,oc->nchw", dy.astype(np.float64), flat))
    few = np.clip(dy, -12, 12)
    dweight = conv_point.backward(few, x, weight, POINT, 1)[0][:, :, 0, 0]
    np.testing.assert_array_equal(dweight, np.einsum("nohw,nchw->oc", few.astype(np.float64), x.astype(np.float64)))


def fastbn_image(pixels):
    """Pixels (M, C) as a channels-last image."""
    return np.moveaxis(pixels[None, None], -1, 1)


@pytest.mark.parametrize("channels", [64, 256, 1024])
def test_it_errs_no_more_than_vectors(rng, monkeypatch, channels):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, (2, 16, 16, channels, 64)))
    flat = weight[:, :, 0, 0].astype(np.float64)
    exact = (
        np.einsum("nchw,oc->nohw", x, flat),
        np.einsum("nohw,nchw->oc", dy, x.astype(np.float64))[:, :, None, None],
        np.einsum("nohw,oc->nchw", dy, flat),
    )

    def errors():
        found = convolved(x, weight), *conv_point.backward(dy, x, weight, POINT, 1)[:2]
        return [np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)) for got, want in zip(found, exact, strict=True)]

    ours = errors()
    by_vectors(monkeypatch)
    for error, other in zip(ours, errors(), strict=True):
        assert error < 1.1 * other


def test_numbers_of_all_sizes(rng):
    x, weight, _ = (array.astype(np.float32) for array in operands(rng, (2, 16, 16, 48, 32)))
    y = convolved(x, weight)
    scales = np.float32(2.0) ** np.arange(-60, 61, 15, dtype=np.float32)
    for scale in scales:
        np.testing.assert_array_equal(convolved(x * scale, weight), y * scale)
        np.testing.assert_array_equal(convolved(x, weight * scale), y * scale)


def test_the_greatest_number_is_not_inf(rng):
    x, weight, _ = (array.astype(np.float32) for array in operands(rng, (2, 16, 16, 48, 32)))
    x[...], weight[...] = 0, 0
    x[0, 5, 3, 2] = np.finfo(np.float32).max
    weight[:, 5] = 1
    y = convolved(x, weight)
    assert (y[0, :, 3, 2] == np.finfo(np.float32).max).all()
    assert np.count_nonzero(y) == 32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.float32(np.nan)])
@pytest.mark.parametrize("place", [(0, 3, 0, 0), (1, 50, 8, 12), (1, 70, 12, 16)], ids=str)
def test_what_is_not_finite_stays_in_its_pixel_and_reaches_the_weights_it_meets(rng, place, bad):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, (2, 13, 17, 71, 75)))
    good = convolved(x, weight)
    spoiled, dy_spoiled = x.copy(order="K"), dy.copy(order="K")
    spoiled[place] = dy_spoiled[place] = bad
    hit = np.zeros(x[:, 0].shape, bool)
    hit[place[0], *place[2:]] = True
    y = convolved(spoiled, weight)
    np.testing.assert_array_equal(np.isfinite(y).all(axis=1), ~hit)
    np.testing.assert_array_equal(np.isfinite(y).any(axis=1), ~hit)
    where = np.broadcast_to(~hit[:, None], y.shape)
    np.testing.assert_array_equal(y[where], good[where])
    dweight = conv_point.backward(dy, spoiled, weight, POINT, 1)[0][:, :, 0, 0]
    np.testing.assert_array_equal(np.isfinite(dweight).all(axis=0), np.arange(71) != place[1])
    dweight, dx, _ = conv_point.backward(dy_spoiled, x, weight, POINT, 1)
    np.testing.assert_array_equal(np.isfinite(dx).all(axis=1), ~hit)
    np.testing.assert_array_equal(np.isfinite(dweight[:, :, 0, 0]).all(axis=1), np.arange(75) != place[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_same_bits_for_any_number_of_threads(rng, size):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, size))
    found = []
    before = fastbn.get_num_threads()
    try:
        for threads in (1, 2, 7):
            fastbn.set_num_threads(threads)
            found.append((convolved(x, weight), *conv_point.backward(dy, x, weight, POINT, 1)[:2]))
    finally:
        fastbn.set_num_threads(before)
    for some in found[1:]:
        for one, other in zip(found[0], some, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [(4, 24, 24, 64, 256), (4, 24, 24, 256, 64), (2, 12, 12, 512, 300)], ids=str)
def test_the_same_bits_on_hosts_of_more_threads(rng, monkeypatch, size):
    x, weight, dy = (array.astype(np.float32) for array in operands(rng, size))
    found = []
    for threads in (1, 8, 64):
        monkeypatch.setattr(conv_point_portions, "max_threads", lambda threads=threads: max(8, threads))
        forget()
        found.append((convolved(x, weight), *conv_point.backward(dy, x, weight, POINT, 1)[:2]))
    for some in found[1:]:
        for one, other in zip(found[0], some, strict=True):
            np.testing.assert_array_equal(one, other)


def test_folded_weights_keep_their_parts(rng):
    x, weight, _ = (array.astype(np.float32) for array in operands(rng, (2, 16, 16, 64, 48)))
    weight.flags.writeable = False
    np.testing.assert_array_equal(convolved(x, weight), convolved(x, weight))


def test_it_can_be_left_out():
    script = "from fastbn.kernels._matrix_unit import matrix_unit; print(matrix_unit())"
    for value, answer in (("0", "None"), ("1", "True")):
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, "FASTBN_AMX": value}, capture_output=True, text=True,
            check=True, timeout=100,
        )  # fmt: skip
        assert done.stdout.strip() == answer
