"""Masked batch norm: the twin on what is kept, whatever lies elsewhere; weights; corners; the layers."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS

import fastbn
import fastbn.functional as F
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError

lightly = settings(deadline=None, max_examples=15, derandomize=True, database=None)
SHAPES = [(9, 5), (4, 5, 37), (3, 4, 9, 11), (2, 3, 2, 3, 4), (2, 3, 9000), (300, 20, 2)]


def draw(rng, shape, dtype=np.float32, weighted=False):
    """x with NaN where the mask is 0, dy, mask, and by name weight and bias; the first sample is all padding."""
    x, dy = (2 * rng.standard_normal((2, *shape)) + 10).astype(dtype)
    mask = rng.random((shape[0], *shape[2:])) > 0.4
    mask[0], mask[1] = False, True
    x[np.broadcast_to(~mask[:, None], shape)] = np.nan
    if weighted:
        mask = mask * rng.uniform(0.01, 7, mask.shape)
    weight, bias = rng.standard_normal((2, shape[1])).astype(dtype)
    return x, dy, mask, {"weight": weight, "bias": bias}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(rng, shape, order, weighted):
    x, dy, mask, named = draw(rng, shape, weighted=weighted)
    forward, backward = reference.masked_batch_norm(x, mask, **named, dy=dy)
    mean, var = np.zeros((2, shape[1]), np.float32)
    x, dy = ORDERS[order](x), ORDERS[order](dy)
    y, saved = F.masked_batch_norm_forward(x, mask, **named, running_mean=mean, running_var=var, momentum=1.0)
    for got, want in zip((y, mean, var), forward, strict=True):
        assert_close(got, want, np.float32)
    gradients = F.masked_batch_norm_backward(dy, saved)
    for got, want in zip(gradients, backward, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())
    assert y.strides == gradients[0].strides == x.strides
    assert not y[np.broadcast_to(mask[:, None] == 0, shape)].any()


@pytest.mark.parametrize("order", ORDERS)
def test_finite_differences(rng, order):
    x, dy, mask, named = draw(rng, (4, 3, 5), np.float64, weighted=True)
    x[np.isnan(x)] = 0
    x = ORDERS[order](x)
    gradients = F.masked_batch_norm_backward(dy, F.masked_batch_norm_forward(x, mask, **named)[1])
    for (name, point), gradient in zip({"x": x, **named}.items(), gradients, strict=True):

        def forward(value, name=name):
            return F.masked_batch_norm(**{"x": x, "mask": mask, **named, name: value}, training=True)

        numerical = reference.numerical_gradient(forward, point, dy)
        np.testing.assert_allclose(gradient, numerical, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("order", ORDERS)
def test_by_running_statistics(rng, order):
    x, dy, mask, named = draw(rng, (4, 5, 37))
    statistics = {"running_mean": named["bias"].copy(), "running_var": rng.uniform(0.5, 2, 5).astype(np.float32)}
    kept = mask[:, None]
    want = np.where(kept, reference.batch_norm(x, **named, **statistics)[0], 0)
    y, saved = F.masked_batch_norm_forward(ORDERS[order](x), mask, **named, **statistics, training=False)
    assert_close(y, want, np.float32)
    x, dy = (np.where(kept, array, 0) for array in (x, dy))
    want = reference.batch_norm_backward(dy, x, **named, **statistics)
    dx, dweight, dbias = F.masked_batch_norm_backward(dy, saved)
    assert_close(dx, want[0], np.float32)
    assert_close(dbias, want[2], np.float32, scale=10)
    x_hat = (x - statistics["running_mean"][:, None]) / np.sqrt(statistics["running_var"][:, None] + 1e-5)
    assert_close(dweight, (dy * x_hat).sum(axis=(0, 2)), np.float32, scale=100)


# Laws


@lightly
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(ORDERS.values())))
def test_what_is_kept_is_batch_norm_of_it_alone(seed, order):
    rng = np.random.default_rng(seed)
    x, dy, mask, named = draw(rng, (4, 3, 6), np.float64)
    alone = np.moveaxis(x, 1, -1)[mask]
    want, plain = F.batch_norm_forward(alone, **named)
    y, saved = F.masked_batch_norm_forward(order(x), mask, **named)
    assert_close(np.moveaxis(y, 1, -1)[mask], want, np.float64)
    right = F.batch_norm_backward(np.moveaxis(dy, 1, -1)[mask], plain)
    got = F.masked_batch_norm_backward(dy, saved)
    assert_close(np.moveaxis(got[0], 1, -1)[mask], right[0], np.float64)
    assert_close(got[1], right[1], np.float64, scale=10)


@lightly
@given(st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30))
def test_only_the_ratio_of_weights_matters(seed, factor):
    x, dy, mask, named = draw(np.random.default_rng(seed), (4, 3, 6), np.float64, weighted=True)
    for weights in (mask * factor, mask):
        mean, var = np.zeros((2, 3))
        y, saved = F.masked_batch_norm_forward(x, weights, **named, running_mean=mean, running_var=var)
        results = y, mean, var, *F.masked_batch_norm_backward(dy, saved)
        if weights is not mask:
            first = results
    for a, b in zip(first, results, strict=True):
        assert_close(a, b, np.float64)


def test_whole_weights_count_as_repeated_samples(rng):
    x, mask = rng.standard_normal((5, 3)), np.array([3, 1, 0, 2, 1])
    want = F.batch_norm(np.repeat(x, mask, axis=0), training=True)
    np.testing.assert_allclose(F.masked_batch_norm(x, mask, training=True)[1], want[3], rtol=1e-12)


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("order", ORDERS)
def test_any_number_of_threads_gives_the_same_bits(rng, order, threads):
    x, dy, mask, named = draw(rng, (9, 16, 500), weighted=True)
    results = []
    for count in (1, threads):
        fastbn.set_num_threads(count)
        y, saved = F.masked_batch_norm_forward(ORDERS[order](x), mask, **named)
        results.append([a.tobytes() for a in (y, *F.masked_batch_norm_backward(ORDERS[order](dy), saved))])
    assert results[0] == results[1]


# Memory and corners


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_values(rng, layout):
    x, dy, mask, named = draw(rng, (3, 4, 9, 11))
    want = reference.masked_batch_norm(x, mask, **named, dy=dy)
    lie = LAYOUTS[layout]
    y, saved = F.masked_batch_norm_forward(lie(x), np.asfortranarray(mask), **named)
    assert_close(y, want[0][0], np.float32)
    assert_close(F.masked_batch_norm_backward(lie(dy), saved)[0], want[1][0], np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ORDERS)
def test_half(rng, dtype, order):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    x, _, mask, named = draw(rng, (4, 5, 37))
    x = x.astype(dtype)
    y = F.masked_batch_norm(ORDERS[order](x), mask, **named, training=True)
    assert y.dtype == dtype
    want = reference.masked_batch_norm(x, mask, **named)[0][0]
    np.testing.assert_allclose(y.astype(np.float64), want, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_out(rng, order):
    x, dy, mask, named = draw(rng, (3, 4, 9, 11))
    x, dy = ORDERS[order](x), ORDERS[order](dy)
    y, saved = F.masked_batch_norm_forward(x, mask, **named)
    want = F.masked_batch_norm_backward(dy, saved)[0]
    assert F.masked_batch_norm_backward(dy, saved, out=dy)[0] is dy
    np.testing.assert_array_equal(dy, want)
    assert F.masked_batch_norm(x, mask, **named, training=True, out=x) is x
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask", [np.zeros((2, 4), bool), np.zeros((2, 4))], ids=["bool", "float"])
def test_where_nothing_is_kept_nothing_moves(rng, mask, order):
    x, mean, var = ORDERS[order](np.full((2, 3, 4), np.nan)), np.zeros(3), np.ones(3)
    y, saved = F.masked_batch_norm_forward(x, mask, np.ones(3), np.ones(3), running_mean=mean, running_var=var)
    for got in (y, *F.masked_batch_norm_backward(np.ones((2, 3, 4)), saved), mean, var - 1):
        assert not got.any()


def test_an_empty_batch(rng):
    y, saved = F.masked_batch_norm_forward(np.empty((0, 3, 4)), np.empty((0, 4)), np.ones(3))
    assert y.shape == (0, 3, 4)
    np.testing.assert_array_equal(F.masked_batch_norm_backward(y, saved)[1], np.zeros(3))


def test_nan_and_inf_that_are_kept_come_out(rng):
    x, _, mask, _ = draw(rng, (4, 3, 6))
    x[1, 0, 0], x[1, 1, 0] = np.nan, np.inf
    y = F.masked_batch_norm(x, mask, training=True)
    assert np.isnan(y[1, :2]).all()
    assert np.isfinite(y[:, 2]).all()


def test_a_mean_far_from_zero_costs_nothing(rng):
    x = rng.normal(1e4, 1, (4, 3, 500)).astype(np.float32)
    mask = rng.random((4, 500)) > 0.5
    x[np.broadcast_to(~mask[:, None], x.shape)] = 0
    want = reference.masked_batch_norm(x, mask, np.ones(3), np.zeros(3))[0][0]
    np.testing.assert_allclose(F.masked_batch_norm(x, mask, training=True), want, atol=1e-6)


X, V = np.ones((2, 3, 4)), np.ones(3)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"mask": [1]}, DtypeError, "mask must be a NumPy array of bool or numbers, got list"),
        ({"mask": np.ones((2, 4), complex)}, DtypeError,
         "mask must be a NumPy array of bool or numbers, got complex128"),
        ({"mask": np.ones((2, 3, 4))}, ShapeError,
         "mask must have shape (2, 4), that of x without its channels, got (2, 3, 4)"),
        ({"mask": np.full((2, 4), -0.5)}, ArgumentError, "mask must be finite and at least 0, got -0.5"),
        ({"mask": np.full((2, 4), np.nan)}, ArgumentError, "mask must be finite and at least 0, got nan"),
        ({"mask": np.full((2, 4), np.inf)}, ArgumentError, "mask must be finite and at least 0, got inf"),
        ({"mask": np.eye(4)[:2] * [1, 0, 0, 0] > 0}, ArgumentError,
         "mask must keep more than 1 position when training, got 1"),
        ({"training": False}, ArgumentError, "running_mean must be given when training is False, got None"),
        ({"running_mean": V, "running_var": -V}, ArgumentError,
         "running_var must not be negative, got -1.0 in channel 0"),
    ],
)  # fmt: skip
def test_refusals(options, error, sentence):
    with pytest.raises(error) as caught:
        F.masked_batch_norm(X, **{"mask": np.ones((2, 4), bool), "training": True} | options)
    assert str(caught.value) == f"masked_batch_norm: {sentence}"


# The layers


@pytest.mark.parametrize(("cls", "shape"), [(nn.MaskedBatchNorm1d, (4, 3)), (nn.MaskedBatchNorm1d, (4, 3, 6)),
                                            (nn.MaskedBatchNorm2d, (4, 3, 5, 2))])  # fmt: skip
def test_layer(rng, cls, shape):
    x, dy, mask, named = draw(rng, shape)
    norm = cls(3, momentum=None)
    norm.load_state_dict({**norm.state_dict(), **named})
    want, gradients = reference.masked_batch_norm(x, mask, **named, dy=dy)
    assert_close(norm(x, mask), want[0], np.float32)
    assert_close(norm.backward(dy), gradients[0], np.float32)
    assert_close(norm.weight.grad, gradients[1], np.float32, scale=30)
    assert_close(norm.running_var, want[2], np.float32)
    norm(x, np.zeros_like(mask))
    assert norm.num_batches_tracked == 1
    norm.eval()
    y = norm(np.nan_to_num(x), mask=mask)
    kept = np.broadcast_to(mask[:, None], shape)
    np.testing.assert_array_equal(y[~kept], 0)
    assert_close(y[kept], norm(np.nan_to_num(x))[kept], np.float32)


def test_a_layer_without_a_mask_is_batch_norm(rng):
    x, dy, _, _ = draw(rng, (4, 3, 6))
    x = np.nan_to_num(x)
    norm, plain = nn.MaskedBatchNorm1d(3), nn.BatchNorm1d(3)
    np.testing.assert_array_equal(norm(x), plain(x))
    np.testing.assert_array_equal(norm.backward(dy), plain.backward(dy))
