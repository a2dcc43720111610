"""Folded weights: the same function as the layer and the batch norm after it, rounded once, or refused."""

import numpy as np
import pytest
import reference
from helpers import assert_close
from layouts import LAYOUTS

import fastbn.functional as F
from fastbn.errors import ArgumentError

DTYPES = [np.float32, np.float64]
GAMMAS = ["random", "negative", "zero", "absent"]


def statistics(rng, channels, dtype=np.float64, gamma="random"):
    """mean, var, eps, weight, bias."""
    mean, bias, weight = rng.standard_normal((3, channels)).astype(dtype)
    weight = {"random": weight, "negative": -np.abs(weight), "zero": 0 * weight, "absent": None}[gamma]
    return mean, rng.uniform(0.1, 2, channels).astype(dtype), 1e-3, weight, bias


def batch_norm(z, bn):
    mean, var, eps, weight, bias = bn
    return reference.batch_norm(z, mean, var, weight, bias, eps=eps)[0]


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(rng, groups, biased, gamma):
    x, weight = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((8, 4 // groups, 3, 2))
    bias = rng.standard_normal(8) if biased else None
    bn = statistics(rng, 8, gamma=gamma)
    want = batch_norm(reference.conv2d(x, weight, bias, groups=groups), bn)
    folded = F.fold_conv_bn_weights(weight, bias, *bn, groups=groups)
    assert_close(reference.conv2d(x, *folded, groups=groups), want, np.float64)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolution(rng, groups, biased, gamma):
    x, weight = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((4, 3, 3, 2))
    bias = rng.standard_normal(3 * groups) if biased else None
    bn = statistics(rng, 3 * groups, gamma=gamma)
    options = {"stride": 2, "padding": 1, "groups": groups}
    want = batch_norm(reference.conv_transpose2d(x, weight, bias, **options), bn)
    folded = F.fold_conv_bn_weights(weight, bias, *bn, transpose=True, groups=groups)
    assert_close(reference.conv_transpose2d(x, *folded, **options), want, np.float64)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("biased", [True, False])
def test_linear(rng, biased, gamma):
    x, weight = rng.standard_normal((6, 4)), rng.standard_normal((5, 4))
    bias = rng.standard_normal(5) if biased else None
    bn = statistics(rng, 5, gamma=gamma)
    want = batch_norm(reference.linear(x, weight, bias), bn)
    assert_close(reference.linear(x, *F.fold_linear_bn_weights(weight, bias, *bn)), want, np.float64)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("kernel", [(3,), (2, 1, 3)])
def test_one_and_three_dimensions(rng, kernel, transpose):
    """The kernel's axes are not looked at: as if they were one row of a two-dimensional kernel."""
    weight, bn = rng.standard_normal((4, 6, *kernel)), statistics(rng, 12 if transpose else 4)
    got = F.fold_conv_bn_weights(weight, None, *bn, transpose, groups=2)
    want = F.fold_conv_bn_weights(weight.reshape(4, 6, 1, -1), None, *bn, transpose, groups=2)
    assert got[0].shape == weight.shape
    np.testing.assert_array_equal(got[0].ravel(), want[0].ravel())
    np.testing.assert_array_equal(got[1], want[1])


def test_every_optional_argument_may_be_none(rng):
    weight, (mean, var, eps, _, _) = rng.standard_normal((3, 2, 2)), statistics(rng, 3)
    folded, bias = F.fold_conv_bn_weights(weight, None, mean, var, eps, None, None)
    scale = 1 / np.sqrt(var + eps)
    assert_close(folded, weight * scale[:, None, None], np.float64)
    assert_close(bias, -mean * scale, np.float64)


def test_gamma_zero_leaves_beta_alone(rng):
    mean, var, eps, weight, bias = statistics(rng, 3, np.float32, "zero")
    folded = F.fold_linear_bn_weights(
        rng.standard_normal((3, 4)).astype(np.float32), mean, mean, var, eps, weight, bias
    )
    np.testing.assert_array_equal(folded[0], np.zeros((3, 4)))
    np.testing.assert_array_equal(folded[1], bias)


def test_the_arguments_are_left_as_they_are(rng):
    arrays = rng.standard_normal((4, 2, 3)), *rng.uniform(1, 2, (5, 4))
    kept = [array.copy() for array in arrays]
    weight, bias, mean, var, gamma, beta = arrays
    folded = F.fold_conv_bn_weights(weight, bias, mean, var, 0, gamma, beta)
    for array, before in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, before)
        assert not any(np.may_share_memory(array, result) for result in folded)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "channels_last" not in name])
def test_any_layout_gives_the_same_values(rng, layout):
    arrays = rng.standard_normal((4, 3)), *rng.uniform(1, 2, (5, 4))
    weight, bias, mean, var, gamma, beta = arrays
    want = F.fold_linear_bn_weights(weight, bias, mean, var, 1e-5, gamma, beta)
    weight, bias, mean, var, gamma, beta = map(LAYOUTS[layout], arrays)
    got = F.fold_linear_bn_weights(weight, bias, mean, var, 1e-5, gamma, beta)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


# Rounding


@pytest.mark.parametrize("variance", [1, 1e-6, 1e6])
def test_float32_is_float64_rounded_once(rng, variance):
    arrays = rng.standard_normal((256, 36)), *rng.standard_normal((5, 256))
    weight, bias, mean, var, gamma, beta = (array.astype(np.float32) for array in arrays)
    var = np.abs(var) * np.float32(variance)
    got = F.fold_linear_bn_weights(weight, bias, mean, var, 1e-5, gamma, beta)
    wide = [array.astype(np.longdouble) for array in (weight, bias, mean, var, gamma, beta)]
    scale = wide[4] / np.sqrt(wide[3] + np.longdouble(1e-5))
    want = wide[0] * scale[:, None], (wide[1] - wide[2]) * scale + wide[5]
    assert got[0].dtype == got[1].dtype == np.float32
    np.testing.assert_array_equal(got[0], want[0].astype(np.float32))
    np.testing.assert_array_equal(got[1], want[1].astype(np.float32))


@pytest.mark.parametrize("fold", [F.fold_conv_bn_weights, F.fold_linear_bn_weights])
def test_wider_statistics_are_not_rounded_first(rng, fold):
    weight = rng.standard_normal((50, 4, 1) if fold is F.fold_conv_bn_weights else (50, 4)).astype(np.float32)
    bn = statistics(rng, 50)
    got, want = fold(weight, None, *bn), fold(weight.astype(np.float64), None, *bn)
    assert got[0].dtype == got[1].dtype == np.float32
    np.testing.assert_array_equal(got[0], want[0].astype(np.float32))
    np.testing.assert_array_equal(got[1], want[1].astype(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_results_are_zero_and_the_smallest_normal_is_kept(dtype):
    tiny = np.finfo(dtype).tiny
    weight = np.array([[tiny], [tiny / dtype(2)], [-tiny / dtype(2)], [-tiny]])
    beta = weight[::-1, 0].copy()
    folded, bias = F.fold_linear_bn_weights(weight, None, np.zeros(4), np.ones(4), 0, None, beta)
    np.testing.assert_array_equal(folded, [[tiny], [0], [0], [-tiny]])
    np.testing.assert_array_equal(bias, [-tiny, 0, 0, tiny])


# Refusals


@pytest.mark.parametrize("where", ["weight", "bias"])
@pytest.mark.parametrize("value", [0.9, np.inf, np.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_would_not_be_finite_is_refused(dtype, value, where):
    most = np.array([np.finfo(dtype).max * dtype(value)], dtype)
    weight, bias = (most, None) if where == "weight" else (np.ones(1, dtype), most)
    with pytest.raises(ArgumentError, match=f"folded weights must be finite in {dtype.__name__}, got (inf|nan)"):
        F.fold_linear_bn_weights(weight[:, None], bias, np.zeros(1), np.full(1, 1e-4), 0, None, None)


@pytest.mark.parametrize("var", [0.0, np.nan])
def test_a_spread_that_is_not_positive_is_refused(var):
    variances = np.array([1, 1, var])
    with pytest.raises(ArgumentError, match=rf"bn_rv \+ bn_eps must be positive, got {var} in channel 2"):
        F.fold_conv_bn_weights(np.ones((3, 1, 1)), None, np.zeros(3), variances, 0, None, None)


def test_a_negative_variance_is_refused_by_the_name_of_its_argument():
    with pytest.raises(ArgumentError, match=r"bn_rv must not be negative, got -1\.0 in channel 1"):
        F.fold_conv_bn_weights(np.ones((2, 1, 1)), None, np.zeros(2), np.array([1.0, -1.0]), 2, None, None)


# Torch


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("kernel", [(3,), (2, 3), (1, 2, 3)])
def test_torch_agrees_on_convolutions(rng, kernel, transpose, biased):
    torch = pytest.importorskip("torch")
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    weight = rng.standard_normal((4, 5, *kernel))
    channels = 5 if transpose else 4
    arguments = weight, rng.standard_normal(channels) if biased else None, *statistics(rng, channels)
    tensors = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
    want = fuse_conv_bn_weights(*tensors, transpose)
    for got, parameter in zip(F.fold_conv_bn_weights(*arguments, transpose), want, strict=True):
        assert_close(got, parameter.detach().numpy(), np.float64)


@pytest.mark.parametrize("biased", [True, False])
def test_torch_agrees_on_linear_layers(rng, biased):
    torch = pytest.importorskip("torch")
    from torch.nn.utils.fusion import fuse_linear_bn_weights

    arguments = rng.standard_normal((4, 5)), rng.standard_normal(4) if biased else None, *statistics(rng, 4)
    want = fuse_linear_bn_weights(*(torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments))
    for got, parameter in zip(F.fold_linear_bn_weights(*arguments), want, strict=True):
        assert_close(got, parameter.detach().numpy(), np.float64)
