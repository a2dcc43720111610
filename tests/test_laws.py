"""Laws that hold for any input: of batch norm, of convolution, of folding one into the other."""

import numpy as np
import reference
from helpers import ORDERS, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn.functional as F

lightly = settings(deadline=None, max_examples=25, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)
orders = st.sampled_from(list(ORDERS.values()))


@st.composite
def batches(draw, dtype=np.float64):
    """(N, C, *spatial) with at least 4 values a channel, in either memory order."""
    shape = draw(st.integers(4, 9)), draw(st.integers(1, 5)), *draw(st.lists(st.integers(1, 5), max_size=3))
    rng = np.random.default_rng(draw(seeds))
    x = rng.standard_normal(shape) * rng.uniform(0.1, 3) + rng.uniform(-3, 3)
    return draw(orders)(x.astype(dtype))


@st.composite
def convolutions(draw):
    """x, weight and options; small whole numbers, so that every sum is exact."""
    groups, kernel = draw(st.integers(1, 3)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    options = {
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        "padding": (draw(st.integers(0, 2)), draw(st.integers(0, 3))),
        "dilation": draw(st.integers(1, 2)),
        "groups": groups,
    }
    size = draw(st.integers(5, 13)), draw(st.integers(5, 13))
    x_shape = draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), *size
    weight_shape = groups * draw(st.integers(1, 4)), x_shape[1] // groups, *kernel
    rng = np.random.default_rng(draw(seeds))
    return whole(rng, x_shape, draw(orders)), whole(rng, weight_shape), options


def whole(rng, shape, order=np.ascontiguousarray):
    return order(rng.integers(-8, 9, shape).astype(np.float32))


def axes(x):
    return (0, *range(2, x.ndim))


def per_channel(vector, x):
    return vector.reshape(-1, *(1,) * (x.ndim - 2))


@lightly
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_the_batch_does_not_matter(x, random):
    permutation = random.sample(range(len(x)), len(x))
    y, saved = F.batch_norm_forward(x)
    y_permuted, saved_permuted = F.batch_norm_forward(x[permutation])
    assert_close(y_permuted, y[permutation], np.float64)
    assert_close(saved_permuted.mean, saved.mean, np.float64)
    assert_close(saved_permuted.var, saved.var, np.float64)


@lightly
@given(batches(np.float32))
def test_weight_std_and_bias_mean_give_back_the_input(x):
    _, saved = F.batch_norm_forward(x)
    assert_close(F.batch_norm(x, weight=np.sqrt(saved.var + 1e-5), bias=saved.mean, training=True), x, np.float32)


@lightly
@given(batches(), seeds)
def test_dx_is_orthogonal_to_ones_and_to_x_hat(x, seed):
    rng = np.random.default_rng(seed)
    x_hat, saved = F.batch_norm_forward(x, rng.standard_normal(x.shape[1]), eps=0)
    dx = F.batch_norm_backward(rng.standard_normal(x.shape), saved)[0]
    size = np.abs(dx).sum(axis=axes(x))
    assert (np.abs(dx.sum(axis=axes(x))) <= 1e-12 * size).all()
    assert (np.abs((dx * x_hat).sum(axis=axes(x))) <= 1e-12 * (size * np.abs(x_hat).max())).all()


@lightly
@given(batches(np.float32), st.integers(-60, 60), st.sampled_from([-1, 1]))
def test_scaling_x_changes_nothing_but_the_sign(x, exponent, sign):
    """By a power of two, which loses no bits."""
    scaled = np.ldexp(x, exponent) * np.float32(sign)
    assert_close(F.batch_norm(scaled, training=True, eps=0), sign * F.batch_norm(x, training=True, eps=0), np.float32)


@lightly
@given(batches(), st.integers(1, 3))
def test_frozen_at_the_statistics_of_the_batch_is_training(x, extra):
    _, saved = F.batch_norm_forward(x)
    more = np.concatenate([x] * extra)
    assert_close(F.batch_norm(more, saved.mean, saved.var), F.batch_norm(more, training=True), np.float64)


@lightly
@given(convolutions(), seeds, st.integers(-4, 4))
def test_convolution_is_linear_in_x(convolution, seed, factor):
    x, weight, options = convolution
    other = whole(np.random.default_rng(seed), x.shape)
    got = F.conv2d(x + factor * other, weight, **options)
    want = F.conv2d(x, weight, **options) + factor * F.conv2d(other, weight, **options)
    np.testing.assert_array_equal(got, want)


@lightly
@given(convolutions(), seeds, st.integers(-4, 4))
def test_convolution_is_linear_in_the_weight(convolution, seed, factor):
    x, weight, options = convolution
    other = whole(np.random.default_rng(seed), weight.shape)
    got = F.conv2d(x, weight + factor * other, **options)
    want = F.conv2d(x, weight, **options) + factor * F.conv2d(x, other, **options)
    np.testing.assert_array_equal(got, want)


@lightly
@given(convolutions(), seeds)
def test_the_gradients_of_convolution_are_its_adjoints(convolution, seed):
    x, weight, options = convolution
    y = F.conv2d(x, weight, **options)
    dy = whole(np.random.default_rng(seed), y.shape)
    dx, dweight, dbias = F.conv2d_backward(dy, x, weight, **options)
    inner = np.vdot(dy.astype(np.float64), y)
    assert np.vdot(dx.astype(np.float64), x) == inner
    assert np.vdot(dweight.astype(np.float64), weight) == inner
    np.testing.assert_array_equal(dbias, dy.sum(axis=(0, 2, 3)))


@lightly
@given(convolutions(), seeds, st.sampled_from([-1, 0, 1]))
def test_a_folded_convolution_is_the_convolution_and_the_batch_norm(convolution, seed, gamma):
    x, weight, options = convolution
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    rng = np.random.default_rng(seed)
    bias, mean, beta, magnitude = rng.standard_normal((4, len(weight)))
    var, gammas = rng.uniform(0.1, 2, len(weight)), rng.standard_normal(len(weight))
    gammas[0] = gamma * abs(magnitude[0])
    want = F.batch_norm(F.conv2d(x, weight, bias, **options), mean, var, gammas, beta)
    folded = F.fold_conv_bn_weights(weight, bias, mean, var, 1e-5, gammas, beta)
    assert_close(F.conv2d(x, *folded, **options), want, np.float64, scale=100)


@lightly
@given(batches(), seeds)
def test_batch_norm_matches_the_twin(x, seed):
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((2, x.shape[1]))
    residual = rng.standard_normal(x.shape)
    want, _, _ = reference.batch_norm(x, weight=weight, bias=bias, residual=residual, training=True)
    assert_close(F.batch_norm(x, weight=weight, bias=bias, residual=residual, training=True), want, np.float64)
