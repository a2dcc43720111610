"""float16 and bfloat16 arrays: computed in float32, rounded once."""

import ml_dtypes
import numpy as np
import pytest
import reference
from helpers import ORDERS

import fastbn.functional as F
from fastbn.errors import DtypeError

HALVES = [np.float16, ml_dtypes.bfloat16]
SHAPES = [(4, 5), (33, 64), (2, 3, 5, 7), (8, 5, 3, 3), (3, 40, 12, 12), (1, 2, 300, 130)]


def operands(rng, shape, half):
    x, residual = (rng.standard_normal((2, *shape)) * 3 + 1).astype(half)
    weight, bias = rng.standard_normal((2, shape[1])).astype(np.float32)
    return x, residual, weight, bias


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.__name__)
def test_forward_is_the_float32_answer_rounded(rng, half, shape, order):
    x, residual, weight, bias = operands(rng, shape, half)
    x, residual = ORDERS[order](x), ORDERS[order](residual)
    mean, var = np.zeros((2, shape[1]), np.float32)
    wide_mean, wide_var = mean.copy(), var.copy()
    for relu in False, True:
        options = {"weight": weight, "bias": bias, "training": True, "relu": relu}
        y = F.batch_norm(x, mean, var, residual=residual, **options)
        want = F.batch_norm(x.astype(np.float32), wide_mean, wide_var, residual=residual.astype(np.float32), **options)
        assert (y.dtype, y.strides) == (x.dtype, x.strides)
        np.testing.assert_array_equal(y, want.astype(half))
        np.testing.assert_array_equal(mean, wide_mean)
        np.testing.assert_array_equal(var, wide_var)
    y = F.batch_norm(x, mean, var, weight, bias)
    np.testing.assert_array_equal(y, F.batch_norm(x.astype(np.float32), mean, var, weight, bias).astype(half))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.__name__)
def test_backward_is_the_float32_answer_rounded(rng, half, shape, order, fused):
    x, residual, weight, bias = operands(rng, shape, half)
    x, residual, dy = ORDERS[order](x), ORDERS[order](residual), ORDERS[order](residual[::-1])
    options = {"residual": residual, "relu": True} if fused else {}
    wide = {"residual": residual.astype(np.float32), "relu": True} if fused else {}
    _, saved = F.batch_norm_forward(x, weight, bias, **options)
    _, wide_saved = F.batch_norm_forward(x.astype(np.float32), weight, bias, **wide)
    got = F.batch_norm_backward(dy, saved)
    want = F.batch_norm_backward(dy.astype(np.float32), wide_saved)
    np.testing.assert_array_equal(got[0], want[0].astype(half))
    for gradient, wanted in zip(got[1:3], want[1:3], strict=True):
        assert gradient.dtype == np.float32
        np.testing.assert_array_equal(gradient, wanted)
    if fused:
        np.testing.assert_array_equal(got[3], want[3].astype(half))


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.__name__)
def test_every_number_is_rounded_as_numpy_rounds_it(half):
    """All float32 exponents, ties to even among them; NaN and infinities."""
    bits = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(0, 2**16, dtype=np.uint32) << 16) + 0x8000
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[np.isnan(values) | (np.abs(values) < 1e38)]
    with np.errstate(all="ignore"):
        want = values.astype(half)
    # y = x * 0 + bias, one channel a value: the bias as kernels store it.
    zeros, ones = np.zeros(values.size, np.float32), np.ones(values.size, np.float32)
    y = F.batch_norm(np.zeros((1, values.size), half), zeros, ones, zeros, values)[0]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    kept = ~np.isnan(want)
    np.testing.assert_array_equal(y[kept].view(np.uint16), want[kept].view(np.uint16))


@pytest.mark.parametrize("half", HALVES, ids=lambda half: half.__name__)
def test_a_nan_stays_in_its_channel(rng, half):
    x = rng.standard_normal((4, 3, 5)).astype(half)
    x[1, 1, 2] = np.nan
    y = F.batch_norm(x, training=True)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, ::2].astype(np.float32)).all()


def test_statistics_are_not_stored_in_half():
    x = np.zeros((2, 3), np.float16)
    with pytest.raises(DtypeError, match=r"^batch_norm: running_mean must be float32 or float64, got float16"):
        F.batch_norm(x, x[0], x[0])
    with pytest.raises(DtypeError, match=r"^batch_norm: residual must be float16 as x is, got float32$"):
        F.batch_norm(x, training=True, residual=x.astype(np.float32))


def test_against_float64(rng):
    x = rng.standard_normal((16, 3, 9, 9)).astype(np.float16)
    want, _, _ = reference.batch_norm(x.astype(np.float64), np.zeros(3), np.ones(3), training=True)
    np.testing.assert_allclose(F.batch_norm(x, training=True).astype(np.float64), want, rtol=5e-4, atol=1e-5)
