"""Initial values: their distributions and factors, PyTorch's where it has the function, and what they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError
from fastbn.nn import init

SHAPE = (50, 30, 2, 2)  # fan_in 120, fan_out 200


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


STANDARD_DEVIATIONS = [
    (init.xavier_uniform_, {}, math.sqrt(2 / 320)),
    (init.xavier_normal_, {"gain": 3.0}, 3 * math.sqrt(2 / 320)),
    (init.kaiming_uniform_, {}, math.sqrt(2 / 120)),
    (init.kaiming_normal_, {"mode": "fan_out"}, math.sqrt(2 / 200)),
    (init.kaiming_normal_, {"a": 0.5}, math.sqrt(2 / (1.25 * 120))),
    (init.kaiming_normal_, {"a": 0.5, "nonlinearity": "relu"}, math.sqrt(2 / 120)),
    (init.kaiming_uniform_, {"nonlinearity": "tanh"}, 5 / 3 / math.sqrt(120)),
    (init.kaiming_uniform_, {"mode": "fan_out", "nonlinearity": "linear"}, 1 / math.sqrt(200)),
]


@pytest.mark.parametrize(("fill", "options", "std"), STANDARD_DEVIATIONS)
def test_standard_deviations_and_ends(fill, options, std):
    array = fill(np.empty(SHAPE, np.float32), **options)
    np.testing.assert_allclose(array.std(), std, rtol=0.03)
    np.testing.assert_allclose(array.mean(), 0, atol=0.05 * std)
    end = math.sqrt(3) * std
    if "uniform" in fill.__name__:
        assert 0.99 * end < np.abs(array).max() <= np.float32(end)
    else:
        assert np.abs(array).max() > 3 * std


@pytest.mark.parametrize("depth", [40])
def test_kaiming_keeps_activations_and_xavier_the_mean_of_both_ways(rng, depth):
    """Half of the wrong variance would have vanished by 2^-40."""
    x = rng.normal(size=(64, 256))
    for _ in range(depth):
        x = np.maximum(x @ init.kaiming_normal_(np.empty((256, 256))).T, 0)
    assert 0.1 < x.std() < 10
    narrow, wide = init.xavier_normal_(np.empty((100, 300))), init.xavier_normal_(np.empty((300, 100)))
    there = (rng.normal(size=(1000, 300)) @ narrow.T).var()
    back = (rng.normal(size=(1000, 100)) @ wide.T).var()
    np.testing.assert_allclose((there, back), (1.5, 0.5), rtol=0.1)


def test_gains_are_pytorchs():
    torch = pytest.importorskip("torch")
    for name in [*init.GAINS, "leaky_relu"]:
        assert init.calculate_gain(name) == pytest.approx(torch.nn.init.calculate_gain(name), rel=1e-15)
    assert init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3, 3), (20, 2, 3), (1, 1)])
def test_orthogonal_rows_or_columns(shape):
    matrix = init.orthogonal_(np.empty(shape), gain=2.0).reshape(shape[0], -1)
    product = matrix @ matrix.T if shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_orthogonal_matrices_are_of_either_sign():
    signs = [np.sign(init.orthogonal_(np.empty((2, 2)))[0, 0]) for _ in range(40)]
    assert {-1.0, 1.0} == set(signs)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_weights(shape):
    for fill in (init.orthogonal_, init.zeros_, init.normal_, init.trunc_normal_):
        assert fill(np.empty(shape)).shape == shape


TRUNCATED = [
    (0.0, 1.0, -2.0, 2.0),
    (1.0, 0.5, -np.inf, 1.0),
    (0.0, 1.0, 3.0, 5.0),
    (0.0, 1.0, 30.0, np.inf),
    (0.0, 1.0, -0.01, 0.02),
    (0.0, 0.02, -2.0, 2.0),
    (5.0, 1.0, -100.0, 1.0),
]


@pytest.mark.parametrize(("mean", "std", "a", "b"), TRUNCATED)
def test_truncated_normal_has_its_mean_and_deviation(mean, std, a, b):
    values = init.trunc_normal_(np.empty(20_000), mean, std, a, b)
    assert a <= values.min() <= values.max() <= b
    grid = np.linspace(max(a, mean - 40 * std), min(b, mean + 40 * std), 400_001)
    weights = np.exp(-((grid - mean) ** 2 - np.min((grid - mean) ** 2)) / (2 * std * std))
    wanted = np.average(grid, weights=weights)
    deviation = math.sqrt(np.average((grid - wanted) ** 2, weights=weights))
    np.testing.assert_allclose(values.mean(), wanted, atol=0.04 * deviation)
    np.testing.assert_allclose(values.std(), deviation, rtol=0.04)


def test_truncated_normal_fits_pytorchs():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch.nn.init.trunc_normal_(torch.empty(50_000), 0.5, 2.0, -1.0, 4.0).numpy()
    ours = init.trunc_normal_(np.empty(50_000, np.float32), 0.5, 2.0, -1.0, 4.0)
    levels = np.linspace(0.01, 0.99, 50)
    np.testing.assert_allclose(np.quantile(ours, levels), np.quantile(theirs, levels), atol=0.06)


@given(val=st.floats(-1e3, 1e3))
@settings(max_examples=10, deadline=None)
def test_constants_fill_arrays_and_parameters_and_return_them(val):
    for target in (np.empty((2, 3)), nn.Parameter(np.empty((2, 3)))):
        assert init.constant_(target, val) is target
        np.testing.assert_array_equal(np.asarray(target), val)
    assert init.ones_(np.empty(3)).tolist() == [1, 1, 1]
    assert init.zeros_(np.empty(3)).tolist() == [0, 0, 0]


def test_a_parameter_of_a_folded_model_can_be_filled():
    layer = fastbn.fold(nn.Conv2d(16, 16, 3))
    assert not layer.weight.data.flags.writeable
    assert not init.zeros_(layer.weight).data.any()


def test_strided_arrays_are_filled_in_place():
    base = np.zeros((4, 6))
    init.ones_(base[::2, 1::2])
    assert base.sum() == 6
    init.orthogonal_(base[:, ::2])
    np.testing.assert_allclose(base[:, ::2].T @ base[:, ::2], np.eye(3), atol=1e-12)


def test_every_function_draws_from_the_seed():
    for fill in (init.uniform_, init.normal_, init.trunc_normal_, init.xavier_uniform_, init.orthogonal_):
        first, second, third = np.empty((3, 4)), np.empty((3, 4)), np.empty((3, 4))
        for seed, array in ((3, first), (3, second), (4, third)):
            fastbn.manual_seed(seed)
            fill(array)
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, third)


def test_weights_of_a_whole_model():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2, bias=False))
    assert nn.init_weights_(model, init.constant_, val=0.5) is model
    assert (model[0].weight.data == 0.5).all()
    assert (model[0].bias.data == 0).all()
    assert (model[1].weight.data == 1).all()
    assert (model[3].weight.data == 0.5).all()


REFUSED = [
    (lambda: init.zeros_([0.0]), DtypeError, "zeros_|constant_: array must be a Parameter or a NumPy array, got list"),
    (lambda: init.normal_(np.zeros(2, int)), DtypeError, "normal_: array must be float32 or float64, got int64"),
    (lambda: init.ones_(np.broadcast_to(0.0, 3)), ArgumentError, "array must be writable, got a read-only array"),
    (lambda: init.xavier_normal_(np.ones(3)), ArgumentError, "xavier_normal_: array must have at least 2 axes, none e"),
    (lambda: init.xavier_uniform_(np.ones((0, 3))), ArgumentError, r"none empty, got shape \(0, 3\)"),
    (lambda: init.orthogonal_(np.ones(3)), ArgumentError, r"orthogonal_: array must have at least 2 axes, got shape"),
    (lambda: init.calculate_gain("swish"), ArgumentError, "nonlinearity must be one of linear, .*, got 'swish'"),
    (lambda: init.calculate_gain("leaky_relu", "1"), DtypeError, "calculate_gain: param must be a number, got str"),
    (lambda: init.trunc_normal_(np.ones(3), std=0.0), ArgumentError, "std must be positive and a less than b, got 0,"),
    (lambda: init.trunc_normal_(np.ones(3), a=2.0), ArgumentError, "and a less than b, got 1, 2 and 2"),
    (lambda: init.trunc_normal_(np.ones(3), mean=None), DtypeError, "mean must be a number, got NoneType"),
    (lambda: nn.init_weights_(5, init.zeros_), DtypeError, "init_weights_: model must be a fastbn.nn.Module, got int"),
    (
        lambda: init.zeros_(nn.utils.weight_norm(nn.Linear(2, 2)).weight),
        DtypeError,
        "array must be a Parameter or a NumPy array, got WeightNorm",
    ),
    (
        lambda: nn.init_weights_(nn.utils.weight_norm(nn.Linear(2, 2)), init.zeros_),
        ArgumentError,
        "weight_norm: weight must have a direction, got zeros alone",
    ),
]


@pytest.mark.parametrize(("call", "error", "sentence"), REFUSED)
def test_refusals(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
