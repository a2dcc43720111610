"""Layer, RMS, group and instance norm beside the float64 twin and PyTorch: values, gradients, laws and corners."""

import ml_dtypes
import numpy as np
import pytest
import reference
from helpers import ORDERS, TOL, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

import fastbn
import fastbn.functional as F
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.functional import norm_kernels

DTYPES = [np.float32, np.float64]
# Whole vectors and odd ends, rows of several chunks, one element, several axes, more rows than a block.
LAYERS = [((5, 7), 1), ((3, 4, 33), 1), ((2, 3, 5), 2), ((70, 64), 1), ((3, 9000), 1), ((4, 1), 1), ((6,), 1)]
# Channels that do and do not fill a vector; groups of one, several and all channels.
GROUPS = [((2, 6, 5), 3), ((3, 8), 2), ((2, 64, 9, 9), 8), ((4, 12, 5, 7), 12), ((2, 70, 3, 7), 1)]
GROUPS += [((1, 4, 2, 5, 5), 2)]


def operands(rng, shape, weights, dtype):
    x, dy = rng.normal(2, 3, shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    weight, bias = rng.standard_normal((2, *weights)).astype(dtype)
    return x, dy, weight, bias


def assert_all_close(got, want, dtype, scale):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert_close(g, w, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes"), LAYERS, ids=str)
def test_layer_and_rms_norm(rng, shape, axes, dtype):
    last = shape[-axes:]
    x, dy, weight, bias = operands(rng, shape, last, dtype)
    y, saved = F.layer_norm_forward(x, last, weight, bias)
    got = (y, *F.layer_norm_backward(dy, saved))
    want = (reference.layer_norm(x, last, weight, bias), *reference.layer_norm_backward(dy, x, last, weight))
    assert_all_close(got, want, dtype, 10)
    y, saved = F.rms_norm_forward(x, last, weight, 1e-3)
    got = (y, *F.rms_norm_backward(dy, saved))
    want = reference.layer_norm_backward(dy, x, last, weight, 1e-3, False)[:2]
    assert_all_close(got, (reference.layer_norm(x, last, weight, None, 1e-3, False), *want), dtype, 10)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "num_groups"), GROUPS, ids=str)
def test_group_norm(rng, shape, num_groups, dtype, order):
    x, dy, weight, bias = operands(rng, shape, shape[1:2], dtype)
    x = ORDERS[order](x)
    y, saved = F.group_norm_forward(x, num_groups, weight, bias)
    dx, dweight, dbias = F.group_norm_backward(dy, saved)
    assert y.strides == dx.strides == x.strides
    want = reference.group_norm_backward(dy, x, num_groups, weight)
    wanted = (reference.group_norm(x, num_groups, weight, bias), *want)
    assert_all_close((y, dx, dweight, dbias), wanted, dtype, 10)
    rows = x.astype(np.float64).reshape(shape[0], num_groups, -1)
    np.testing.assert_allclose(saved.mean, rows.mean(2), rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(3, 4, 6), (2, 33, 5, 7), (2, 3, 2, 3, 4)], ids=str)
def test_instance_norm_and_its_running_statistics(rng, shape, order):
    x, dy, weight, bias = operands(rng, shape, shape[1:2], np.float32)
    x, channels = ORDERS[order](x), shape[1]
    mean, var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    wanted = reference.instance_norm_stats(x, mean, var, 0.3)
    y, saved = F.instance_norm_forward(x, mean, var, weight, bias, True, 0.3)
    got = (y, *F.instance_norm_backward(dy, saved))
    want = (reference.group_norm(x, channels, weight, bias), *reference.group_norm_backward(dy, x, channels, weight))
    assert_all_close(got, want, np.float32, 10)
    assert_all_close((mean, var), wanted, np.float32, 1)
    kept = mean.copy()
    y, saved = F.instance_norm_forward(x, mean, var, weight, bias, False)
    want = reference.batch_norm(x, mean, var, weight, bias)[0]
    assert_all_close((y, F.instance_norm(x, mean, var, weight, bias, False)), (want, want), np.float32, 10)
    want = reference.batch_norm_backward(dy, x, weight, bias, running_mean=mean, running_var=var)[:3]
    assert_all_close(F.instance_norm_backward(dy, saved), want, np.float32, 10)
    np.testing.assert_array_equal(mean, kept)


DOORS = {
    "layer": (F.layer_norm_forward, F.layer_norm_backward, (15,)),
    "rms": (F.rms_norm_forward, F.rms_norm_backward, (15,)),
    "group": (F.group_norm_forward, F.group_norm_backward, 2),
    "instance": (lambda x, _: F.instance_norm_forward(x), F.instance_norm_backward, None),
}


def both(name, x, dy, **outputs):
    """y and dx, without weights."""
    forward, backward, argument = DOORS[name]
    y, saved = forward(x, argument)
    return y, backward(dy, saved, **outputs)[0]


@pytest.mark.parametrize("name", DOORS)
def test_gradients_are_those_of_differences(rng, name):
    x, dy = rng.standard_normal((2, 2, 4, 15))
    forward, _, argument = DOORS[name]
    _, dx = both(name, x, dy)
    for _ in range(5):
        step = rng.standard_normal(x.shape)
        change = forward(x + 1e-6 * step, argument)[0] - forward(x - 1e-6 * step, argument)[0]
        np.testing.assert_allclose((dx * step).sum(), (dy * change).sum() / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DOORS)
def test_the_same_bits_for_any_number_of_threads(rng, name, order, threads):
    x, dy = rng.standard_normal((2, 3, 64, 13, 15)).astype(np.float32)
    fastbn.set_num_threads(1)
    weight = rng.standard_normal(15).astype(np.float32)
    want = (*both(name, ORDERS[order](x), dy), F.layer_norm_backward(dy, F.layer_norm_forward(x, 15, weight)[1])[1])
    fastbn.set_num_threads(threads)
    got = (*both(name, ORDERS[order](x), dy), F.layer_norm_backward(dy, F.layer_norm_forward(x, 15, weight)[1])[1])
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("name", DOORS)
def test_any_layout(rng, name, layout):
    x, dy = rng.standard_normal((2, 2, 4, 3, 15)).astype(np.float32)
    for got, want in zip(both(name, layout(x), layout(dy)), both(name, x, dy), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lead", [0, 5])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "shape"), [("layer", (70, 64)), ("group", (3, 128, 4, 8)), ("group", (2, 2, 7, 5))])
def test_streamed_outputs_are_the_same_bits(rng, monkeypatch, name, shape, order, lead):
    x, dy = (ORDERS[order](a) if len(shape) > 2 else a for a in rng.standard_normal((2, *shape)).astype(np.float32))
    forward, backward, argument = DOORS[name]
    argument = argument if name == "group" else shape[-1:]
    y, saved = forward(x, argument)
    dx = backward(dy, saved)[0]
    monkeypatch.setattr(norm_kernels, "beyond_cache", lambda moved: True)
    memory = np.full(x.size + 64, 7, np.float32)
    begin = -memory.__array_interface__["data"][0] // 4 % 16 + lead
    flat = memory[begin : begin + x.size]
    lies = np.moveaxis(x, 1, -1).shape if order == "channels_last" and len(shape) > 2 else shape
    out = flat.reshape(lies) if lies == shape else np.moveaxis(flat.reshape(lies), -1, 1)
    np.testing.assert_array_equal(forward(x, argument, out=out)[0], y)
    np.testing.assert_array_equal(backward(dy, saved, out=out)[0], dx)
    assert (memory[:begin] == 7).all()
    assert (memory[begin + x.size :] == 7).all()


def test_out_may_be_the_input(rng):
    x, dy = rng.standard_normal((2, 4, 6, 15))
    for name, door, argument in (("layer", F.layer_norm, 15), ("rms", F.rms_norm, 15), ("group", F.group_norm, 2)):
        _, backward, _ = DOORS[name]
        y, saved = DOORS[name][0](x, argument)
        same = x.copy()
        assert door(same, argument, out=same) is same
        np.testing.assert_array_equal(same, y)
        want, over = backward(dy, saved)[0], dy.copy()
        assert backward(over, saved, out=over)[0] is over
        np.testing.assert_array_equal(over, want)
    same = x.copy()
    np.testing.assert_array_equal(F.instance_norm(same, out=same), F.instance_norm(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_number_spoils_its_row_alone(bad):
    x = np.random.default_rng(0).standard_normal((4, 4, 20)).astype(np.float32)
    x[1, 2, 3] = bad
    weight = np.ones(20, np.float32)
    for y, spoilt in (
        (F.layer_norm(x, 20, weight), np.s_[1, 2]),
        (F.rms_norm(x, 20), np.s_[1, 2, 3]),
        (F.group_norm(x, 2), np.s_[1, 2:]),
        (F.instance_norm(x), np.s_[1, 2]),
    ):
        assert np.isnan(y[spoilt]).all()
        y[1, 2:] = 0
        assert np.isfinite(y).all()
    dy = np.ones_like(x)
    _, dweight, dbias = F.layer_norm_backward(dy, F.layer_norm_forward(x, 20, weight, weight)[1])
    assert np.isnan(dweight).all()
    np.testing.assert_array_equal(dbias, np.full(20, 16))


def test_large_means_cancel_nothing(rng):
    x = (1e4 + rng.standard_normal((6, 8, 40))).astype(np.float32)
    tolerance = {"rtol": 0, "atol": 2e-6}
    np.testing.assert_allclose(F.layer_norm(x, 40), reference.layer_norm(x, (40,)), **tolerance)
    for order in ORDERS.values():
        np.testing.assert_allclose(F.group_norm(order(x), 2), reference.group_norm(x, 2), **tolerance)
    np.testing.assert_allclose(F.rms_norm(x, 40, eps=0.0), reference.layer_norm(x, (40,), eps=0, centred=False), 1e-6)


def test_a_constant_row_gives_its_bias():
    x, bias = np.full((3, 4, 6), 1e3, np.float32), np.arange(6, dtype=np.float32)
    for eps in 1e-5, 0.0:
        np.testing.assert_array_equal(F.layer_norm(x, 6, None, bias, eps), np.broadcast_to(bias, x.shape))
        y = F.group_norm(x, 2, None, bias[:4], eps)
        np.testing.assert_array_equal(y, np.broadcast_to(bias[:4, None], x.shape))
    assert (F.rms_norm(np.zeros((2, 5)), 5, eps=0.0) == 0).all()


@pytest.mark.parametrize("shape", [(0, 4, 6), (2, 0, 6), (2, 4, 0)])
def test_empty(shape):
    x, weight = np.zeros(shape, np.float32), np.ones(shape[1], np.float32)
    running = np.ones((2, shape[1]), np.float32)
    last, row = shape[-1], np.ones(shape[-1], np.float32)
    for y, saved, backward in (
        (*F.layer_norm_forward(x, last, row, row), F.layer_norm_backward),
        (*F.rms_norm_forward(x, last, row), F.rms_norm_backward),
        (*F.group_norm_forward(x, 2, weight, weight), F.group_norm_backward),
        (*F.instance_norm_forward(x, *running, weight, weight), F.instance_norm_backward),
    ):
        dx, *gradients = backward(x, saved)
        assert y.shape == dx.shape == shape
        assert all((g == 0).all() for g in gradients)
    assert (running == 1).all()


def test_read_only_weights_and_float64_ones_of_float32_arrays(rng):
    x, dy, weight, bias = operands(rng, (3, 8, 20), (8,), np.float32)
    want, saved = F.group_norm_forward(x, 2, weight, bias)
    y, saved = F.group_norm_forward(x, 2, weight.astype(np.float64), bias.astype(np.float64))
    np.testing.assert_array_equal(y, want)
    assert F.group_norm_backward(dy, saved)[1].dtype == np.float64
    row = np.broadcast_to(np.float32(2), (20,))
    np.testing.assert_array_equal(F.layer_norm(x, 20, row), 2 * F.layer_norm(x, 20))


@pytest.mark.parametrize("name", ["layer", "group"])
def test_half_is_the_float32_answer_rounded(rng, name):
    x, dy = rng.normal(1, 2, (2, 4, 6, 15)).astype(np.float16)
    got, want = both(name, x, dy), both(name, x.astype(np.float32), dy.astype(np.float32))
    for g, w in zip(got, want, strict=True):
        assert g.dtype == np.float16
        np.testing.assert_array_equal(g, w.astype(np.float16))
    x = x.astype(ml_dtypes.bfloat16)
    y = F.rms_norm(x, 15)
    np.testing.assert_array_equal(y, F.rms_norm(x.astype(np.float32), 15).astype(ml_dtypes.bfloat16))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 100), st.floats(-100, 100), st.integers(0, 1000))
def test_scale_and_shift_of_a_row_do_not_matter(rows, length, scale, shift, seed):
    x = np.random.default_rng(seed).standard_normal((rows, length))
    y = F.layer_norm(x, length, eps=0.0)
    np.testing.assert_allclose(F.layer_norm(scale * x + shift, length, eps=0.0), y, atol=1e-8)
    np.testing.assert_allclose(F.rms_norm(scale * x, length, eps=0.0), F.rms_norm(x, length, eps=0.0), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)), st.sampled_from([(4, 6, 3), (4, 6, 20)]), st.sampled_from([1, 2, 6]))
def test_images_do_not_know_of_each_other(order, shape, num_groups):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(F.group_norm(x[order], num_groups), F.group_norm(x, num_groups)[order])


def test_one_group_is_a_layer_norm_and_a_group_a_channel_an_instance_norm(rng):
    x = rng.standard_normal((3, 6, 4, 5))
    np.testing.assert_allclose(F.group_norm(x, 1), F.layer_norm(x, (6, 4, 5)), **TOL[np.float64])
    np.testing.assert_array_equal(F.group_norm(x, 6), F.instance_norm(x))


def test_pytorch_agrees(rng):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    x = rng.standard_normal((3, 6, 4, 5)).astype(np.float32)
    mean, var = np.zeros(6, np.float32), np.ones(6, np.float32)
    t, t_mean, t_var = (torch.from_numpy(a.copy()) for a in (x, mean, var))
    weight = rng.standard_normal((4, 5)).astype(np.float32)
    for got, want in (
        (F.layer_norm(x, (4, 5), weight), f.layer_norm(t, (4, 5), torch.from_numpy(weight))),
        (F.rms_norm(x, 5), f.rms_norm(t, (5,))),
        (F.group_norm(x, 3), f.group_norm(t, 3)),
        (F.instance_norm(x, mean, var), f.instance_norm(t, t_mean, t_var)),
        (F.instance_norm(x, mean, var, use_input_stats=False), f.instance_norm(t, t_mean, t_var, None, None, False)),
        (mean, t_mean),
        (var, t_var),
    ):
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)


X, V = np.ones((2, 4, 3)), np.ones(4)
SENTENCES = [
    (lambda: F.layer_norm([1.0], 1), DtypeError, "layer_norm: x must be a NumPy array, got list; use numpy.asarray"),
    (lambda: F.layer_norm(X, 4), ShapeError,
     "layer_norm: x must have shape (*, 4), as normalized_shape says, got (2, 4, 3)"),
    (lambda: F.rms_norm(V, (2, 4)), ShapeError,
     "rms_norm: x must have shape (*, 2, 4), as normalized_shape says, got (4,)"),
    (lambda: F.layer_norm(X, ()), ShapeError, "layer_norm: normalized_shape must have at least 1 axis, got ()"),
    (lambda: F.layer_norm(X, 3.0), DtypeError, "layer_norm: normalized_shape must be an integer, got float"),
    (lambda: F.layer_norm(X, 3, V), ShapeError,
     "layer_norm: weight must have shape (3,), as normalized_shape says, got (4,)"),
    (lambda: F.layer_norm(X, 3, None, V), ShapeError,
     "layer_norm: bias must have shape (3,), as normalized_shape says, got (4,)"),
    (lambda: F.layer_norm(X, 3, eps=None), DtypeError, "layer_norm: eps must be a number, got NoneType"),
    (lambda: F.rms_norm(X, 3, eps=-1.0), ArgumentError, "rms_norm: eps must be at least 0, got -1.0"),
    (lambda: F.layer_norm(X, 3, out=X[:1].copy()), ShapeError,
     "layer_norm: out must have shape (2, 4, 3), got (1, 4, 3)"),
    (lambda: F.layer_norm_forward(X, 3, out=X), ArgumentError,
     "layer_norm_forward: out must be apart from x, got an overlap"),
    (lambda: F.rms_norm_backward(V, F.rms_norm_forward(X, 3)[1]), ShapeError,
     "rms_norm_backward: dy must have shape (2, 4, 3), got (4,)"),
    (lambda: F.group_norm(V, 1), ShapeError, "group_norm: x must have 2 axes or more (N, C, *spatial), got shape (4,)"),
    (lambda: F.group_norm(X, 3), ShapeError,
     "group_norm: x must have a multiple of 3 channels on axis 1, got shape (2, 4, 3)"),
    (lambda: F.group_norm(X, 0), ArgumentError, "group_norm: num_groups must be at least 1, got 0"),
    (lambda: F.group_norm(X, 2, V[:3]), ShapeError,
     "group_norm: weight must have shape (4,), one entry per channel, got (3,)"),
    (lambda: F.group_norm_backward(X.astype(np.float32), F.group_norm_forward(X, 2)[1]), DtypeError,
     "group_norm_backward: dy must be float64 as x is, got float32"),
    (lambda: F.instance_norm(V[None]), ShapeError,
     "instance_norm: x must have 3 or 4 or 5 axes (N, C, *spatial), got shape (1, 4)"),
    (lambda: F.instance_norm(X[..., :1]), ShapeError,
     "instance_norm: x must have more than 1 spatial element when training, got input size (2, 4, 1)"),
    (lambda: F.instance_norm(X, use_input_stats=False), ArgumentError,
     "instance_norm: running_mean must be given when use_input_stats is False, got None"),
    (lambda: F.instance_norm(X, V), ArgumentError,
     "instance_norm: running_mean and running_var must be given together, got running_mean only"),
    (lambda: F.instance_norm(X, V, -V), ArgumentError,
     "instance_norm: running_var must not be negative, got -1.0 in channel 0"),
    (lambda: F.instance_norm(X, momentum=2.0), ArgumentError, "instance_norm: momentum must be from 0 to 1, got 2.0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "sentence"), SENTENCES, ids=[s for *_, s in SENTENCES])
def test_sentences(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == sentence
