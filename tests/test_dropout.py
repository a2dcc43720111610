"""Dropout: which values it keeps, how it scales them, whose generator draws, and what it refuses."""

import copy

import numpy as np
import pytest
from helpers import ORDERS
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError

lightly = settings(deadline=None, max_examples=50, derandomize=True, database=None)
shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
dtypes = st.sampled_from([np.float32, np.float64])


@lightly
@given(shapes, dtypes, st.floats(0, 1), st.integers(0, 2**32))
def test_a_value_is_dropped_or_scaled_and_so_is_its_gradient(shape, dtype, p, seed):
    layer = nn.Dropout(p, seed)
    rng = np.random.default_rng(seed)
    x, dy = (np.asarray(rng.uniform(1, 2, shape), dtype) for _ in range(2))
    y = layer(x)
    dx = layer.backward(dy)
    assert y.shape == dx.shape == shape
    assert y.dtype == dx.dtype == dtype
    kept = y != 0
    scale = 1 / (1 - p) if kept.any() else 1
    np.testing.assert_allclose(y, np.where(kept, x * dtype(scale), 0), rtol=1e-6)
    np.testing.assert_allclose(dx, np.where(kept, dy * dtype(scale), 0), rtol=1e-6)


@lightly
@given(shapes, dtypes, st.floats(0, 1))
def test_eval_mode_is_the_identity_and_draws_nothing(shape, dtype, p):
    layer = nn.Dropout(p, 0)
    x = np.ones(shape, dtype)
    assert layer.eval()(x) is x
    assert layer.generator.bit_generator.state == nn.Dropout(p, 0).generator.bit_generator.state


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_that_is_dropped_is_p_and_the_mean_stays(p):
    """Within four standard deviations of a binomial."""
    n = 1_000_000
    y = nn.Dropout(p, seed=0)(np.ones(n, np.float32))
    deviation = np.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose((y == 0).mean(), p, atol=4 * deviation)
    if p < 1:
        np.testing.assert_allclose(y.mean(), 1, atol=4 * deviation / (1 - p) + 1e-6)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mask_is_the_same_in_every_memory_order_and_dtype(order, dtype):
    x = np.ones((2, 3, 4, 5), dtype)
    layer = nn.Dropout(0.5, seed=1)
    y = layer(ORDERS[order](x))
    dx = layer.backward(x)
    assert y.strides == dx.strides == ORDERS[order](x).strides
    np.testing.assert_array_equal(y, nn.Dropout(0.5, seed=1)(x.astype(np.float32)))
    np.testing.assert_array_equal(dx, y)


def test_strided_read_only_and_foreign_byte_order_inputs():
    x = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
    want = nn.Dropout(0.5, seed=1)(x)
    padded = np.zeros((4, 12), np.float32)
    padded[:, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    for lying in (padded[:, ::2], x.T.copy().T, frozen, x.astype(">f4")):
        np.testing.assert_array_equal(nn.Dropout(0.5, seed=1)(lying), want)


def test_the_input_is_left_alone():
    x = np.ones((3, 4), np.float32)
    for p in (0.0, 0.5):
        layer = nn.Dropout(p, seed=0)
        assert not np.shares_memory(layer(x), x)
        layer.backward(x)
        np.testing.assert_array_equal(x, 1)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_nan_or_infinity_that_is_dropped_shows(p):
    y = nn.Dropout(p, seed=0)(np.array([np.nan, np.inf, -np.inf] * 8, np.float32))
    assert not np.isfinite(y).any()
    assert np.isnan(y[::3]).all()


# Generators


def masks(model, count=3):
    return [model(np.ones((4, 5), np.float32)) != 0 for _ in range(count)]


def test_masks_differ_from_call_to_call_and_repeat_under_their_seed():
    first, second, third = masks(nn.Dropout(0.5, seed=3))
    assert (first != second).any()
    assert (second != third).any()
    np.testing.assert_array_equal(masks(nn.Dropout(0.5, seed=3)), [first, second, third])


def test_without_a_seed_manual_seed_decides_and_layers_draw_apart():
    fastbn.manual_seed(0)
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    first, second = masks(model[0]), masks(model[1])
    assert np.any(np.not_equal(first, second))
    fastbn.manual_seed(0)
    np.testing.assert_array_equal(masks(nn.Dropout()), first)
    np.testing.assert_array_equal(masks(nn.Dropout()), second)
    fastbn.manual_seed(1)
    assert np.any(np.not_equal(masks(nn.Dropout()), first))


def test_initial_values_are_the_same_with_and_without():
    fastbn.manual_seed(0)
    want = nn.Linear(3, 3).weight.data
    fastbn.manual_seed(0)
    nn.Dropout()
    np.testing.assert_array_equal(nn.Linear(3, 3).weight.data, want)


def test_a_copy_goes_on_where_the_layer_was_and_apart_from_it():
    layer = nn.Dropout(0.5, seed=3)
    masks(layer, 1)
    twin = copy.deepcopy(layer)
    want = masks(layer)
    np.testing.assert_array_equal(masks(twin), want)


def test_a_forward_in_eval_mode_between_does_not_change_the_masks():
    layer = nn.Dropout(0.5, seed=3)
    want = masks(nn.Dropout(0.5, seed=3), 2)
    got = masks(layer, 1)
    layer.eval()(np.ones((4, 5), np.float32))
    np.testing.assert_array_equal([*got, *masks(layer.train(), 1)], want)


# Names and refusals


def test_options_and_their_names():
    assert nn.Dropout().config() == {"p": 0.5}
    assert repr(nn.Dropout(0.2, seed=4)) == "Dropout(p=0.2, seed=4)"
    assert list(nn.Dropout().state_dict()) == []


ONES = np.ones((2, 3), np.float32)
REFUSED = [
    (lambda: nn.Dropout(-0.1), ArgumentError, "Dropout: p must be from 0 to 1, got -0.1"),
    (lambda: nn.Dropout(1.5), ArgumentError, "Dropout: p must be from 0 to 1, got 1.5"),
    (lambda: nn.Dropout(np.nan), ArgumentError, "Dropout: p must be from 0 to 1, got nan"),
    (lambda: nn.Dropout("0.5"), DtypeError, "Dropout: p must be a number, got str"),
    (lambda: nn.Dropout(True), DtypeError, "Dropout: p must be a number, got bool"),
    (lambda: nn.Dropout(seed=-1), ArgumentError, "Dropout: seed must be at least 0, got -1"),
    (lambda: nn.Dropout(seed=1.0), DtypeError, "Dropout: seed must be an integer, got float"),
    (lambda: nn.Dropout()([1.0]), DtypeError, "Dropout: x must be a NumPy array, got list; use numpy.asarray"),
    (
        lambda: nn.Dropout().eval()(ONES.astype(int)),
        DtypeError,
        "Dropout: x must be float32 or float64, got int64; cast it with astype",
    ),
]


@pytest.mark.parametrize(("make", "error", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_refusals(make, error, sentence):
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("dy", "error", "sentence"),
    [
        (ONES[:1], ShapeError, "Dropout.backward: dy must have shape (2, 3), as x, got (1, 3)"),
        ([1.0], DtypeError, "Dropout.backward: dy must be a NumPy array, got list; use numpy.asarray"),
    ],
)
def test_gradients_that_do_not_fit(dy, error, sentence):
    layer = nn.Dropout()
    layer(ONES)
    with pytest.raises(error) as caught:
        layer.backward(dy)
    assert str(caught.value) == sentence


def test_torch_scales_and_drops_in_the_same_way():
    """Each library's values are x / (1 - p) or 0; with p = 0 and 1 there is nothing to draw."""
    torch = pytest.importorskip("torch")
    x = np.linspace(-2, 2, 600, dtype=np.float32).reshape(20, 30)
    for p in (0.0, 0.3, 1.0):
        theirs = torch.nn.Dropout(p)(torch.tensor(x)).numpy()
        layer = nn.Dropout(p, seed=0)
        ours = layer(x)
        both = (ours != 0) & (theirs != 0)
        assert both.any() == (p < 1)
        np.testing.assert_allclose(ours[both], theirs[both], rtol=1e-6)
        np.testing.assert_array_equal(layer.eval()(x), torch.nn.Dropout(p).eval()(torch.tensor(x)).numpy())
