"""A convolution and its batch norm as one unit, against the float64 twins of the two by themselves."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, channels_last

import fastbn
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional.conv_bn import Deferred, Gradient, conv_bn_backward, conv_bn_forward

TOL = {np.float32: {"rtol": 3e-4, "atol": 3e-4}, np.float64: {"rtol": 1e-10, "atol": 1e-10}}
CASES = {
    "3x3": ((2, 16, 7, 6), (32, 16, 3, 3), {"padding": 1}),
    "stride 2": ((4, 20, 9, 8), (40, 20, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((3, 64, 6, 6), (72, 64, 1, 1), {}),
    "1x1 stride 2": ((2, 32, 6, 5), (32, 32, 1, 1), {"stride": 2}),
    "one pixel": ((5, 32, 1, 1), (32, 32, 1, 1), {}),
    "dilated": ((2, 16, 9, 9), (16, 16, 3, 3), {"dilation": 2}),
    "depthwise": ((2, 20, 9, 10), (20, 1, 3, 3), {"padding": 1, "groups": 20}),
    "depthwise stride 2": ((2, 32, 9, 10), (32, 1, 3, 3), {"padding": 1, "stride": 2, "groups": 32}),
    "groups": ((2, 32, 6, 6), (64, 16, 3, 3), {"padding": 1, "groups": 2}),
    "few channels": ((2, 3, 9, 8), (8, 3, 3, 3), {"stride": 2}),
}
FROZEN = {"momentum": 0.0, "training": False}


def operands(case, dtype):
    rng = np.random.default_rng(0)
    x_shape, w_shape, options = CASES[case]
    x, w = rng.standard_normal(x_shape).astype(dtype), (rng.standard_normal(w_shape) / w_shape[1]).astype(dtype)
    gamma, beta = rng.standard_normal((2, w_shape[0])).astype(dtype)
    mean, var = rng.standard_normal(w_shape[0]).astype(dtype), rng.uniform(0.5, 2, w_shape[0]).astype(dtype)
    z = reference.conv2d(x, w, None, **options)
    dy, residual = rng.standard_normal((2, *z.shape)).astype(dtype)
    return x, w, gamma, beta, mean, var, z, dy, residual, options


def close(got, want, dtype):
    np.testing.assert_allclose(got, want, **TOL[dtype])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("end", ["plain", "relu", "residual", "residual, relu"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("case", CASES)
def test_the_unit_is_the_two(case, dtype, order, end, frozen):
    x, w, gamma, beta, mean, var, z, dy, residual, options = operands(case, dtype)
    lie, relu = ORDERS[order], "relu" in end
    added = residual if "residual" in end else None
    running = {"running_mean": mean.copy(), "running_var": var.copy(), "momentum": 0.1, "training": not frozen}
    unit = {"bn_weight": gamma, "bn_bias": beta, "residual": None if added is None else lie(added), "relu": relu}
    y, saved = conv_bn_forward(lie(x), w, None, **options, **running, **unit)
    dx, dw, dbias, dgamma, dbeta, dresidual = conv_bn_backward(lie(dy), saved)

    known = {"running_mean": mean, "running_var": var}
    want, new_mean, new_var = reference.batch_norm(z, mean, var, gamma, beta, not frozen, residual=added, relu=relu)
    backward = {"residual": added, "relu": relu, **(known if frozen else {})}
    dz, want_dgamma, want_dbeta, want_dresidual = reference.batch_norm_backward(dy, z, gamma, beta, **backward)
    want_dx, want_dw, _ = reference.conv2d_backward(dz, x, w, **options)
    close(y, want, dtype)
    close(running["running_mean"], new_mean, dtype)
    close(running["running_var"], new_var, dtype)
    for got, right in ((dx, want_dx), (dw, want_dw), (dgamma, want_dgamma), (dbeta, want_dbeta)):
        close(got, right, dtype)
    assert dbias is None
    if added is None:
        assert dresidual is None
    else:
        close(dresidual, want_dresidual, dtype)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("case", CASES)
def test_what_is_deferred_is_applied_by_the_reader(case, dtype, relu):
    x, w, gamma, beta, *_, dy, _, options = operands(case, dtype)
    rng = np.random.default_rng(1)
    channels = x.shape[1]
    before = (rng.standard_normal((channels, channels, 1, 1)) / channels).astype(dtype)
    norm = rng.standard_normal((2, channels)).astype(dtype)
    first = {"bn_weight": norm[0], "bn_bias": norm[1], "relu": relu}
    second = {"bn_weight": gamma, "bn_bias": beta, "relu": True}
    kept = conv_bn_forward(x, before, **first)
    deferred = conv_bn_forward(x, before, **first, defer=True)
    if isinstance(deferred[0], Deferred):
        np.testing.assert_array_equal(deferred[0].array(), kept[0])
        assert deferred[0].shape == kept[0].shape
    want, saved = conv_bn_forward(kept[0], w, **options, **second)
    got, saved_too = conv_bn_forward(deferred[0], w, **options, **second)
    close(got, want, dtype)
    inner, *wants = conv_bn_backward(dy, saved)
    inner_too, *gots = conv_bn_backward(dy, saved_too)
    wants += conv_bn_backward(inner, kept[1])
    gots += conv_bn_backward(inner_too, deferred[1])
    for gradient, right in zip(gots, wants, strict=True):
        if right is not None:
            close(gradient, right, dtype)


@pytest.mark.parametrize("case", ["3x3", "1x1", "depthwise"])
def test_sums_of_a_gradient_are_made_on_its_way(case):
    x, w, gamma, beta, *_, dy, _, options = operands(case, np.float32)
    channels = x.shape[1]
    square = np.eye(channels, dtype=np.float32)[:, :, None, None]
    norm = {"bn_weight": np.ones(channels, np.float32), "bn_bias": np.zeros(channels, np.float32), "defer": True}
    deferred, saved_before = conv_bn_forward(x, square, **norm)
    _, saved = conv_bn_forward(deferred, w, **options, bn_weight=gamma, bn_bias=beta)
    dx = conv_bn_backward(dy, saved)[0]
    assert isinstance(dx, Gradient)
    assert dx.sums is not None
    with_sums = conv_bn_backward(dx, saved_before)
    without = conv_bn_backward(Gradient(dx.dy, None), saved_before)
    for one, other in zip(with_sums, without, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_joins_is_added(case):
    x, w, gamma, beta, *_, dy, _, options = operands(case, np.float32)
    other = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)
    for lie in ORDERS.values():
        _, saved = conv_bn_forward(lie(x), w, **options, bn_weight=gamma, bn_bias=beta)
        alone = conv_bn_backward(dy, saved)[0]
        joined = conv_bn_backward(dy, saved, residual=lie(other))[0]
        np.testing.assert_allclose(joined, alone + other, rtol=1e-4, atol=1e-5)
        assert conv_bn_backward(dy, saved, need_dx=False)[0] is None


@pytest.mark.parametrize("case", ["3x3", "depthwise", "few channels"])
def test_a_bias_before_batch_statistics_has_no_effect(case):
    x, w, gamma, beta, *_, z, dy, _, options = operands(case, np.float64)
    bias = np.random.default_rng(3).standard_normal(len(w))
    mean, var = np.zeros(len(w)), np.ones(len(w))
    norm = {"bn_weight": gamma, "bn_bias": beta}
    y, saved = conv_bn_forward(x, w, bias, **options, **norm, running_mean=mean, running_var=var, momentum=1.0)
    np.testing.assert_allclose(y, conv_bn_forward(x, w, **options, **norm)[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(mean, z.mean((0, 2, 3)) + bias, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(conv_bn_backward(dy, saved)[2], 0, atol=1e-10)
    frozen = conv_bn_forward(x, w, bias, **options, **norm, running_mean=mean, running_var=var, training=False)[1]
    dbias = (dy * (gamma / np.sqrt(var + 1e-5))[:, None, None]).sum((0, 2, 3))
    np.testing.assert_allclose(conv_bn_backward(dy, frozen)[2], dbias, rtol=1e-9)


def test_statistics_of_a_mean_far_above_the_spread():
    rng = np.random.default_rng(4)
    x = channels_last((1e4 + rng.standard_normal((4, 32, 20, 20))).astype(np.float32))
    _, saved = conv_bn_forward(x, np.eye(32, dtype=np.float32)[:, :, None, None])
    np.testing.assert_allclose(saved.norm.mean, x.mean((0, 2, 3), dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(saved.norm.var, x.var((0, 2, 3), dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_comes_out(value):
    x, w, *_, options = operands("3x3", np.float32)
    x[1, 2, 3, 3] = value
    y, _ = conv_bn_forward(x, w, **options, relu=True)
    assert np.isnan(y).any()


@pytest.mark.parametrize("case", ["3x3", "1x1 stride 2", "depthwise"])
def test_the_same_bits_for_any_number_of_threads(case):
    x, w, gamma, beta, *_, options = operands(case, np.float32)
    x = np.tile(x, (4, 1, 3, 3))
    found = []
    before = fastbn.get_num_threads()
    try:
        for threads in (1, 2):
            fastbn.set_num_threads(threads)
            y, saved = conv_bn_forward(channels_last(x), w, **options, bn_weight=gamma, bn_bias=beta, relu=True)
            found.append((y, *conv_bn_backward(y, saved)))
    finally:
        fastbn.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_empty_batch():
    x, w = np.zeros((0, 16, 5, 5), np.float32), np.ones((16, 16, 3, 3), np.float32)
    mean, var = np.zeros(16, np.float32), np.ones(16, np.float32)
    y, saved = conv_bn_forward(x, w, running_mean=mean, running_var=var)
    dx, dw, *_ = conv_bn_backward(y, saved)
    assert (y.shape, dx.shape) == ((0, 16, 3, 3), x.shape)
    assert not dw.any()
    assert not mean.any()


def test_sentences():
    x, w = np.ones((1, 16, 3, 3), np.float32), np.ones((16, 16, 3, 3), np.float32)
    with pytest.raises(ShapeError, match="more than 1 value per channel"):
        conv_bn_forward(x, w)
    with pytest.raises(ArgumentError, match="running_mean must be given when training is False"):
        conv_bn_forward(x, w, training=False)
    with pytest.raises(ShapeError, match=r"conv_bn: residual must have shape \(1, 16, 3, 3\)"):
        conv_bn_forward(x, w, padding=1, residual=np.ones((1, 16, 1, 3), np.float32))
    _, saved = conv_bn_forward(x, w, padding=1)
    with pytest.raises(ShapeError, match=r"conv_bn_backward: dy must have shape \(1, 16, 3, 3\)"):
        conv_bn_backward(x[:, :, :2], saved)
    with pytest.raises(ShapeError, match=r"conv_bn_backward: residual must have shape \(1, 16, 3, 3\)"):
        conv_bn_backward(x, saved, residual=x[:, :8])
