"""A convolution and its batch norm as one unit, against the float64 twins of the two by themselves."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, channels_last

import fastbn
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional.conv_bn import Deferred, Gradient, conv_bn_backward, conv_bn_forward
from fastbn.functional.conv_gram import GramSaved

TOL = {np.float32: {"rtol": 3e-4, "atol": 3e-4}, np.float64: {"rtol": 1e-10, "atol": 1e-10}}
ENDS = ("plain", "relu", "relu6", "residual", "residual, relu", "residual, relu6")
# Every version of a kernel takes seconds to compile: float32 goes through one of them.
KINDS = [(np.float64, end) for end in ENDS] + [(np.float32, "residual, relu")]
CASES = {
    "3x3": ((2, 16, 7, 6), (32, 16, 3, 3), {"padding": 1}),
    "stride 2": ((4, 20, 9, 8), (40, 20, 3, 3), {"stride": 2, "padding": 1}),
    "1x1": ((3, 64, 6, 6), (72, 64, 1, 1), {}),
    "1x1, several tasks": ((3, 20, 17, 15), (36, 20, 1, 1), {}),
    "1x1 stride 2": ((2, 32, 6, 5), (32, 32, 1, 1), {"stride": 2}),
    "one pixel": ((5, 32, 1, 1), (32, 32, 1, 1), {}),
    "dilated": ((2, 16, 9, 9), (16, 16, 3, 3), {"dilation": 2}),
    "depthwise": ((2, 20, 9, 10), (20, 1, 3, 3), {"padding": 1, "groups": 20}),
    "depthwise stride 2": ((2, 32, 9, 10), (32, 1, 3, 3), {"padding": 1, "stride": 2, "groups": 32}),
    "groups": ((2, 32, 6, 6), (64, 16, 3, 3), {"padding": 1, "groups": 2}),
    "few channels": ((2, 3, 9, 8), (8, 3, 3, 3), {"stride": 2}),
    "few channels into many": ((2, 3, 19, 18), (20, 3, 5, 5), {"stride": 2, "padding": 2}),
}


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


def by_the_twin(x, w, gamma, beta, z, dy, options, end, known=None):
    """y, running statistics from 0 and 1 or ``known`` ones, dx, dw, dgamma, dbeta, dresidual."""
    relu, residual = "relu" in end, x_residual(z) if "residual" in end else None
    running = (np.zeros(len(w)), np.ones(len(w))) if known is None else known
    constants = {} if known is None else {"running_mean": known[0], "running_var": known[1]}
    y, mean, var = reference.batch_norm(z, *running, gamma, beta, known is None, residual=residual, relu=relu)
    if "relu6" in end:
        dy, y = np.where(y < 6, dy, 0), np.minimum(y, 6)
    dz, *rest = reference.batch_norm_backward(dy, z, gamma, beta, residual=residual, relu=relu, **constants)
    dx, dw, _ = reference.conv2d_backward(dz, x, w, **options)
    return y, mean, var, dx, dw, *rest


def x_residual(z):
    return np.random.default_rng(5).standard_normal(z.shape)


def by_the_unit(x, w, gamma, beta, z, dy, options, end, known=None, lie=np.asarray, **more):
    """As ``by_the_twin``."""
    mean, var = (np.zeros(len(w)), np.ones(len(w))) if known is None else known
    running = {"running_mean": mean.astype(w.dtype), "running_var": var.astype(w.dtype), "training": known is None}
    residual = lie(x_residual(z).astype(x.dtype)) if "residual" in end else None
    cut = {"relu": "relu" in end, "ceiling": 6.0 if "relu6" in end else np.inf}
    norm = {"bn_weight": gamma, "bn_bias": beta, "residual": residual, **running, **cut}
    y, saved = conv_bn_forward(lie(x), w, **options, **norm, **more)
    dx, dw, dbias, *rest = conv_bn_backward(lie(dy), saved)
    assert dbias is None
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous
    return y, running["running_mean"], running["running_var"], dx, dw, *rest


def all_close(got, want, dtype):
    for one, right in zip(got, want, strict=True):
        assert (one is None) == (right is None)
        if right is not None:
            close(one, right, dtype)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "end"), KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_unit_is_the_two(case, dtype, end, order, frozen):
    x, w, gamma, beta, mean, var, z, dy, _, options = operands(case, dtype)
    gamma *= 4  # so that ReLU6 cuts
    known = (mean, var) if frozen else None
    got = by_the_unit(x, w, gamma, beta, z, dy, options, end, known, ORDERS[order])
    want = by_the_twin(x, w, gamma, beta, z, dy, options, end, known)
    all_close(got, want, dtype)


@pytest.mark.parametrize("end", ["plain", "relu", "residual", "residual, relu"])
@pytest.mark.parametrize("dtype", TOL)
@pytest.mark.parametrize("order", ORDERS)
def test_gram_folding_is_the_two(order, dtype, end):
    x, w, gamma, beta, _, _, z, dy, _, options = operands("1x1", dtype)
    got = by_the_unit(x, w, gamma, beta, z, dy, options, end, lie=ORDERS[order], gram=True)
    all_close(got, by_the_twin(x, w, gamma, beta, z, dy, options, end), dtype)
    y, saved = conv_bn_forward(x, w, relu="relu" in end, gram=True)
    assert isinstance(saved, GramSaved)
    assert saved.y is (y if "relu" in end else None)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 0), (np.float32, 0), (np.float64, 20), (np.float32, 20)])
def test_gram_folding_of_a_deferred_input_and_a_gradient_that_joins(dtype, offset, relu):
    x, w, gamma, beta, _, _, _, dy, _, _ = operands("1x1", dtype)
    first = (np.random.default_rng(6).standard_normal((64, 64, 1, 1)) / 8).astype(dtype)
    other = np.random.default_rng(7).standard_normal(x.shape).astype(dtype)
    shift = (offset + np.linspace(-1, 1, 64)).astype(dtype)  # some channels of the input are mostly cut
    arrays, found = (x, w, gamma, beta, dy, first, other, shift), []
    for gram, kind in ((False, np.float64), (True, dtype)):  # the ordinary unit loses more in float32
        x, w, gamma, beta, dy, first, other, shift = (array.astype(kind) for array in arrays)
        deferred, saved_first = conv_bn_forward(x, first, bn_bias=shift, relu=relu, defer=True)
        y, saved = conv_bn_forward(deferred, w, bn_weight=gamma, bn_bias=beta, relu=True, gram=gram)
        assert isinstance(saved, GramSaved) == gram
        assert np.shares_memory(saved.x, deferred.z)
        dx, *gradients = conv_bn_backward(dy, saved, residual=other)
        found.append((y, *gradients[:2], *conv_bn_backward(dx, saved_first)[:2]))
    all_close(found[1], found[0], dtype)


def test_gram_folding_applies_a_deferred_input_that_is_cut_above():
    x, w, *_ = operands("1x1", np.float64)
    first = np.random.default_rng(6).standard_normal((64, 64, 1, 1))
    deferred, _ = conv_bn_forward(x, first, relu=True, ceiling=0.5, defer=True)
    y, saved = conv_bn_forward(deferred, w, gram=True)
    assert not isinstance(saved, GramSaved)
    z = reference.conv2d(deferred.array(), w, None)
    close(y, reference.batch_norm(z)[0], np.float64)


def test_gram_folding_gives_way_where_a_variance_cannot_be_trusted():
    rng = np.random.default_rng(8)
    x = channels_last(np.repeat(rng.standard_normal((4, 1, 9, 9)), 16, axis=1).astype(np.float32))
    x += 1e-4 * rng.standard_normal(x.shape).astype(np.float32)
    w = np.tile([1.0, -1.0], 8).astype(np.float32) * np.ones((32, 1), np.float32)  # what x has in common cancels
    _, saved = conv_bn_forward(x, w[:, :, None, None], gram=True)
    assert not isinstance(saved, GramSaved)
    z = reference.conv2d(x, w[:, :, None, None], None)
    np.testing.assert_allclose(saved.norm.var, z.var((0, 2, 3)), rtol=1e-3)


def test_gram_folding_far_from_the_origin_is_the_more_accurate():
    rng = np.random.default_rng(9)
    x = (100 + rng.standard_normal((4, 32, 20, 20))).astype(np.float32)
    w, dy = rng.standard_normal((64, 32, 1, 1)), rng.standard_normal((4, 64, 20, 20)).astype(np.float32)
    w = w.astype(np.float32)
    z = reference.conv2d(x, w, None)
    want = reference.conv2d_backward(reference.batch_norm_backward(dy, z)[0], x, w)[1]
    errors = []
    for gram in (False, True):
        _, saved = conv_bn_forward(x, w, gram=gram)
        errors.append(np.abs(conv_bn_backward(dy, saved)[1] - want).max())
    assert errors[1] < errors[0] / 5


def test_where_gram_folding_pays():
    rng = np.random.default_rng(0)
    many, few = rng.standard_normal((4, 16, 20, 20)), rng.standard_normal((4, 16, 7, 7))
    for x, shape, taken in (
        (many, (64, 16, 1, 1), True),
        (few, (64, 16, 1, 1), False),
        (many, (48, 16, 1, 1), False),
        (many, (64, 16, 3, 3), False),
    ):
        saved = conv_bn_forward(x, rng.standard_normal(shape))[1]
        assert isinstance(saved, GramSaved) == taken


@pytest.mark.parametrize("cut", [{}, {"relu": True}, {"relu": True, "ceiling": 6.0}])
@pytest.mark.parametrize("case", CASES)
def test_what_is_deferred_is_applied_by_the_reader(case, cut):
    dtype = np.float64
    x, w, gamma, beta, *_, dy, _, options = operands(case, dtype)
    rng = np.random.default_rng(1)
    channels = x.shape[1]
    before = (rng.standard_normal((channels, channels, 1, 1)) / channels).astype(dtype)
    norm = 4 * rng.standard_normal((2, channels)).astype(dtype)
    first = {"bn_weight": norm[0], "bn_bias": norm[1], **cut}
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


@pytest.mark.parametrize("case", ["3x3", "1x1", "1x1, several tasks", "depthwise"])
def test_sums_of_a_gradient_are_made_on_its_way(case):
    x, w, gamma, beta, *_, dy, _, options = operands(case, np.float64)
    channels = x.shape[1]
    square = np.eye(channels)[:, :, None, None]
    norm = {"bn_weight": np.ones(channels), "bn_bias": np.zeros(channels), "defer": True, "relu": True}
    deferred, saved_before = conv_bn_forward(x, square, **norm)
    _, saved = conv_bn_forward(deferred, w, **options, bn_weight=gamma, bn_bias=beta)
    dx = conv_bn_backward(dy, saved)[0]
    assert isinstance(dx, Gradient)
    assert dx.sums is not None
    with_sums = conv_bn_backward(dx, saved_before)
    without = conv_bn_backward(Gradient(dx.dy, None), saved_before)
    for one, other in zip(with_sums, without, strict=True):
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("need_dx", [False, True])
def test_a_ceiling_cuts_on_the_way_back_of_few_channels(need_dx):
    x, w, gamma, beta, *_, dy, _, options = operands("few channels into many", np.float64)
    norm = {"bn_weight": 8 * gamma, "bn_bias": beta, "relu": True, "ceiling": 6.0}
    want = by_the_twin(x, w, 8 * gamma, beta, reference.conv2d(x, w, None, **options), dy, options, "relu6")[3:7]
    for defer in False, True:
        _, saved = conv_bn_forward(x, w, **options, **norm, defer=defer)
        dx, dweight, _, dgamma, dbeta, _ = conv_bn_backward(Gradient(dy, None), saved, need_dx=need_dx)
        assert (dx is None) is not need_dx
        for got, right in zip((dx, dweight, dgamma, dbeta), want, strict=True):
            if got is not None:
                close(got, right, np.float64)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_joins_is_added(case):
    x, w, gamma, beta, *_, dy, _, options = operands(case, np.float64)
    other = np.random.default_rng(2).standard_normal(x.shape)
    for lie in ORDERS.values():
        _, saved = conv_bn_forward(lie(x), w, **options, bn_weight=gamma, bn_bias=beta)
        alone = conv_bn_backward(dy, saved)[0]
        joined = conv_bn_backward(dy, saved, residual=lie(other))[0]
        np.testing.assert_allclose(joined, alone + other, rtol=1e-10, atol=1e-10)
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


@pytest.mark.parametrize("case", ["3x3", "1x1", "1x1 stride 2", "depthwise"])
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
