"""Winograd's convolution: against the twin, the direct engine and torch; its errors; whom a NaN reaches."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
import fastbn.functional as F
from bench import conv_numerics
from fastbn.functional import conv, conv_blocks, conv_winograd, winograd_portions
from fastbn.functional.conv import convolve, engine_for
from fastbn.functional.conv_bn import conv_bn_backward, conv_bn_forward
from fastbn.functional.conv_geometry import Window

WINDOW = Window((3, 3), (1, 1), (1, 1), (1, 1))
# x's shape, outputs, padding
CASES = {
    "even": ((2, 16, 8, 6), 32, 1),
    "odd, blocks not filled": ((3, 20, 9, 5), 40, 0),
    "images in several tasks": ((19, 32, 5, 7), 17, 1),
    "rows in several tasks": ((1, 64, 45, 31), 72, 2),
    "sums apart": ((16, 16, 24, 23), 16, 1),
    "one pixel": ((3, 16, 3, 3), 16, 0),
    "padding beyond the kernel": ((2, 17, 4, 3), 33, 4),
}


@pytest.fixture
def choice():
    """Which engine a shape takes is asked anew."""
    conv._engine.cache_clear()
    yield
    conv._engine.cache_clear()


@pytest.fixture
def everywhere(monkeypatch, choice):
    """Winograd's engine, however little it pays."""
    for name in ("CHANNELS", "TILES", "GAIN"):
        monkeypatch.setattr(winograd_portions, name, 0)
    monkeypatch.setattr(winograd_portions, "PAIRS", 1 << 30)


@pytest.fixture
def nowhere(monkeypatch, choice):
    monkeypatch.setattr(winograd_portions, "CHANNELS", 1 << 30)


def operands(rng, x_shape, outputs, dtype):
    """x, weight, bias."""
    x, weight = rng.standard_normal(x_shape), rng.standard_normal((outputs, x_shape[1], 3, 3)) / x_shape[1]
    return channels_last(x.astype(dtype)), weight.astype(dtype), rng.standard_normal(outputs).astype(dtype)


def test_a_gradient_that_is_streamed_has_the_same_bits(rng, monkeypatch):
    x, weight, _ = operands(rng, (4, 64, 6, 6), 96, np.float32)
    dy = channels_last(rng.standard_normal((4, 96, 6, 6), np.float32))
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(conv_winograd, "STREAMED_DWEIGHT", least)
        found.append(conv_winograd.backward_weight(dy, x, weight, WINDOW))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_are_the_twins(rng, everywhere, case, dtype):
    shape, outputs, padding = CASES[case]
    x, weight, bias = operands(rng, shape, outputs, dtype)
    want = reference.conv2d(x, weight, bias, padding=padding)
    residual, dy = (channels_last(rng.standard_normal(want.shape).astype(dtype)) for _ in range(2))
    assert engine_for(x, weight.shape, WINDOW, 1, want.shape, follows=True) is conv_winograd
    assert_close(F.conv2d(x, weight, padding=padding), want - bias[:, None, None], dtype)
    y = F.conv2d(x, weight, bias, padding=padding, residual=residual, relu=True)
    assert_close(y, np.maximum(want + residual, 0), dtype)
    terms = np.sqrt(dy[:, 0].size)
    for got, right, scale in zip(
        F.conv2d_backward(dy, x, weight, padding=padding),
        reference.conv2d_backward(dy, x, weight, padding=padding),
        (1, terms, terms),
        strict=True,
    ):
        assert_close(got, right, dtype, scale)


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    padding=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_every_size_and_padding(count, height, width, padding):
    rng = np.random.default_rng(0)
    x, weight, _ = operands(rng, (count, 18, height, width), 20, np.float64)
    y = channels_last(np.empty(reference.conv2d(x, weight, padding=padding).shape))
    window = Window((3, 3), (1, 1), padding, (1, 1))
    conv_winograd.forward(x, weight, None, window, 1, None, False, y)
    assert_close(y, reference.conv2d(x, weight, padding=padding), np.float64)
    dweight, dx, _ = conv_winograd.backward(y, x, weight, window, 1)
    right_dx, right_dweight, _ = reference.conv2d_backward(y, x, weight, padding=padding)
    assert_close(dx, right_dx, np.float64)
    assert_close(dweight, right_dweight, np.float64, 10)


def chain(x, dy, weights, residual, **options):
    """Two units, the first deferred, and all gradients; the last is cut at 6."""
    outputs = len(weights[0])
    gamma, beta = np.linspace(1, 4, outputs).astype(x.dtype), np.linspace(-1, 2, outputs).astype(x.dtype)
    norm = {"bn_weight": gamma, "bn_bias": beta, "relu": True, "ceiling": 6.0, "padding": 1, **options}
    first, saved_first = conv_bn_forward(x, weights[0], defer=True, **norm)
    y, saved = conv_bn_forward(first, weights[1], **norm)
    assert saved.engine is saved_first.engine
    gradient, *rest = conv_bn_backward(dy, saved)
    return saved.engine, y, *rest, *conv_bn_backward(gradient, saved_first, residual=residual)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 16, 13, 10), (5, 24, 6, 5)])
def test_units_train_as_by_the_direct_engine(rng, request, shape, order):
    x, residual = (ORDERS[order](rng.standard_normal(shape)) for _ in range(2))
    weights = rng.standard_normal((24, shape[1], 3, 3)) / 9, rng.standard_normal((24, 24, 3, 3)) / 9
    dy = channels_last(rng.standard_normal((shape[0], 24, *shape[2:])))
    direct, *want = chain(x, dy, weights, residual)
    request.getfixturevalue("everywhere")
    engine, *got = chain(x, dy, weights, residual)
    assert (direct, engine) == (conv_blocks, conv_winograd)
    for one, right in zip(got, want, strict=True):
        assert (one is None) == (right is None)
        if right is not None:
            assert_close(one, right, np.float64, 10)


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("shape", [(16, 64, 10, 10), (20, 256, 6, 6)])
def test_the_number_of_threads_leaves_every_bit(rng, everywhere, shape, threads):
    x, weight, _ = operands(rng, shape, shape[1], np.float32)
    dy = channels_last(rng.standard_normal(shape).astype(np.float32))
    found = []
    for count in (1, threads):
        fastbn.set_num_threads(count)
        y, saved = conv_bn_forward(x, weight, padding=1, relu=True)
        found.append((y, saved.norm.stats, *conv_bn_backward(dy, saved)[:2]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_torch_agrees(rng):
    torch = pytest.importorskip("torch")
    x, weight, bias = operands(rng, (4, 64, 17, 15), 80, np.float32)
    y = F.conv2d(x, weight, bias, padding=1)
    ours = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, weight, bias)]
    theirs = torch.nn.functional.conv2d(*ours, padding=1)
    assert_close(y, theirs.detach().numpy(), np.float32)
    theirs.backward(torch.from_numpy(y.copy()))
    dx, dweight, dbias = F.conv2d_backward(y, x, weight, padding=1)
    for got, tensor, scale in zip((dx, dweight, dbias), ours, (1, 30, 30), strict=True):
        assert_close(got, tensor.grad.numpy(), np.float32, scale)


@pytest.mark.parametrize("order", ORDERS)
def test_x_may_lie_in_either_order(rng, order):
    x, weight, bias = operands(rng, (3, 64, 14, 14), 64, np.float32)
    y = convolve(ORDERS[order](x), weight, bias, 1, 1, 1, 1, follows=False)
    np.testing.assert_array_equal(y, F.conv2d(x, weight, bias, padding=1))


@pytest.mark.parametrize("case", conv_numerics.CASES)
def test_errors_are_a_few_times_those_of_the_direct_engine(case):
    winograd, direct = (
        conv_numerics.measure(conv_numerics.CASES[case], conv_numerics.WINDOW, engine)
        for engine in (conv_winograd, conv_blocks)
    )
    for column, ours, theirs in zip(conv_numerics.COLUMNS, winograd, direct, strict=True):
        assert ours <= max(4 * theirs, 2e-7), column


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(4, 4), (5, 4), (4, 5), (5, 5)])
def test_nan_and_inf_reach_the_windows_that_hold_them_only(rng, everywhere, place, bad):
    x, weight, _ = operands(rng, (2, 16, 12, 11), 32, np.float32)
    clean = F.conv2d(x, weight, padding=1)
    around = np.s_[1, :, place[0] - 1 : place[0] + 2, place[1] - 1 : place[1] + 2]
    x[1, 3, *place] = bad
    y = F.conv2d(x, weight, padding=1)
    assert not np.isfinite(y[around]).any()
    dx, dweight, _ = F.conv2d_backward(y, x, weight, padding=1, need_dbias=False)
    assert not np.isfinite(dx[1, :, place[0], place[1]]).any()
    assert not np.isfinite(dweight[:, 3]).any()
    y[around] = clean[around]
    np.testing.assert_array_equal(y, clean)


def test_read_only_weights_are_kept_for_each_engine(rng, request):
    x, weight, _ = operands(rng, (2, 16, 6, 6), 16, np.float64)
    want = reference.conv2d(x, weight)
    weight.flags.writeable = False
    for fixture in ("everywhere", "nowhere"):
        request.getfixturevalue(fixture)
        for _ in range(2):
            assert_close(F.conv2d(x, weight), want, np.float64)


@pytest.mark.parametrize(
    ("shape", "weight_shape", "window", "groups", "pays"),
    [
        ((16, 64, 56, 56), (64, 64, 3, 3), WINDOW, 1, True),
        ((16, 512, 7, 7), (512, 512, 3, 3), WINDOW, 1, True),
        ((1, 256, 14, 14), (256, 256, 3, 3), WINDOW, 1, True),
        ((16, 512, 3, 3), (512, 512, 3, 3), WINDOW, 1, False),  # a tile of 16 products for 9 / 4 of a pixel
        ((1, 512, 7, 7), (512, 512, 3, 3), WINDOW, 1, False),  # weights weigh more than pixels
        ((16, 32, 56, 56), (64, 32, 3, 3), WINDOW, 1, False),
        ((16, 64, 56, 56), (64, 32, 3, 3), WINDOW, 2, False),
        ((16, 64, 56, 56), (64, 64, 3, 3), WINDOW._replace(stride=(2, 2)), 1, False),
        ((16, 64, 56, 56), (64, 64, 3, 3), WINDOW._replace(dilation=(1, 2)), 1, False),
        ((16, 64, 56, 56), (64, 64, 5, 3), WINDOW._replace(kernel=(5, 3)), 1, False),
    ],
)
def test_it_is_chosen_where_it_pays(shape, weight_shape, window, groups, pays):
    x = channels_last(np.empty(shape, np.float32))
    y_shape = shape[0], weight_shape[0], *shape[2:]
    assert (engine_for(x, weight_shape, window, groups, y_shape) is conv_winograd) == pays
    x = np.ascontiguousarray(x)
    assert engine_for(x, weight_shape, window, groups, y_shape, follows=True) is conv_blocks


@pytest.mark.parametrize(("images", "pays"), [(1, False), (2, True), (4, True)])
def test_weights_that_are_transformed_once_need_fewer_pixels(images, pays):
    shape, weight_shape = (images, 512, 7, 7), (512, 512, 3, 3)
    x = channels_last(np.empty(shape, np.float32))
    assert (engine_for(x, weight_shape, WINDOW, 1, shape, kept=True) is conv_winograd) == pays
    assert engine_for(x, weight_shape, WINDOW, 1, shape) is conv_blocks
