"""Softmax cross-entropy: against the float64 twin and torch, then logits that overflow, tie or are NaN."""

import numpy as np
import pytest
import reference
from helpers import assert_close
from layouts import LAYOUTS

import fastbn.functional as F
from fastbn.errors import ShapeError

DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1), (5, 1), (1, 7), (4, 10), (130, 3), (64, 11)]


def gradient(logits, targets):
    return F.cross_entropy_backward(logits, targets, F.cross_entropy_forward(logits, targets)[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradient(rng, dtype, shape):
    logits, targets = 3 * rng.standard_normal(shape).astype(dtype), rng.integers(0, shape[1], shape[0])
    loss = F.cross_entropy(logits, targets)
    assert isinstance(loss, float)
    assert_close(loss, reference.cross_entropy(logits, targets), dtype)
    dlogits = gradient(logits, targets)
    assert dlogits.dtype == dtype
    assert_close(dlogits, reference.cross_entropy_backward(logits, targets), dtype)


def test_finite_differences(rng):
    logits, targets = rng.standard_normal((3, 4)), np.array([0, 3, 1])
    want = reference.numerical_gradient(lambda value: F.cross_entropy(value, targets), logits, 1.0)
    np.testing.assert_allclose(gradient(logits, targets), want, rtol=1e-7, atol=1e-8)


def test_torch_agrees(rng):
    torch = pytest.importorskip("torch")
    logits, targets = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    tensor = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(tensor, torch.tensor(targets))
    loss.backward()
    assert_close(F.cross_entropy(logits, targets), loss.item(), np.float64)
    assert_close(gradient(logits, targets), tensor.grad.numpy(), np.float64)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64, ">i4"])
def test_targets_of_any_integer_type(rng, kind):
    logits, targets = rng.standard_normal((6, 5)), rng.integers(0, 5, 6)
    want = F.cross_entropy(logits, targets)
    assert F.cross_entropy(logits, targets.astype(kind)) == want
    assert F.cross_entropy(logits, np.repeat(targets.astype(kind), 2)[::2]) == want


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "channels_last" not in name])
def test_any_layout_gives_the_same_values(rng, layout):
    logits, targets = rng.standard_normal((6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    assert_close(
        F.cross_entropy(LAYOUTS[layout](logits), targets), reference.cross_entropy(logits, targets), np.float32
    )
    want = reference.cross_entropy_backward(logits, targets)
    assert_close(gradient(LAYOUTS[layout](logits), targets), want, np.float32)


@pytest.mark.parametrize("magnitude", [1e3, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits(dtype, magnitude):
    logits, targets = np.array([[0, -1, 1], [1, -1, 0]], dtype) * dtype(magnitude), np.array([2, 2])
    np.testing.assert_allclose(F.cross_entropy(logits, targets), magnitude / 2, rtol=1e-6)
    np.testing.assert_array_equal(gradient(logits, targets), [[0, 0, 0], [0.5, 0, -0.5]])


@pytest.mark.parametrize("offset", [-1e30, 1e4, 1e17, 1e30])
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_equal_logits_are_as_likely_as_small_ones(dtype, offset):
    logits, targets = np.full((2, 4), offset, dtype), np.array([0, 3])
    assert_close(F.cross_entropy(logits, targets), np.log(4), dtype)
    assert_close(gradient(logits, targets), (0.25 - np.eye(4)[targets]) / 2, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_dtype(dtype):
    most = np.finfo(dtype).max
    np.testing.assert_array_equal(gradient(np.array([[most, -most]], dtype), np.array([0])), [[0, 0]])


def test_minus_infinity_is_a_class_that_cannot_be():
    logits = np.array([[0.0, -np.inf, 0.0]])
    assert_close(F.cross_entropy(logits, np.array([0])), np.log(2), np.float64)
    assert F.cross_entropy(logits, np.array([1])) == np.inf
    assert_close(gradient(logits, np.array([0])), [[-0.5, 0, 0.5]], np.float64)


def test_a_class_that_cannot_be_has_no_gradient():
    logits = np.array([[0.0, -np.inf, 0.0], [1e5, 0.0, 1e5]])
    np.testing.assert_array_equal(gradient(logits, np.array([0, 2]))[:, 1], [0, 0])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_logit_spoils_the_loss_and_its_row_only(rng, place):
    logits, targets = rng.standard_normal((4, 3)).astype(np.float32), np.array([0, 1, 2, 0])
    want = gradient(logits, targets)
    logits[1, place] = np.nan
    assert np.isnan(F.cross_entropy(logits, targets))
    dlogits = gradient(logits, targets)
    assert np.isnan(dlogits[1]).all()
    np.testing.assert_array_equal(np.delete(dlogits, 1, axis=0), np.delete(want, 1, axis=0))


def test_what_another_forward_pass_saved_is_refused(rng):
    logits, targets = rng.standard_normal((4, 3)), np.array([0, 1, 2, 0])
    with pytest.raises(ShapeError, match="saved must have shape"):
        F.cross_entropy_backward(logits, targets, np.zeros(5))
