"""ReLU, ReLU6 and sigmoid, forward and backward."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close
from layouts import LAYOUTS

import fastbn.functional as F
from fastbn.kernels import activation as kernels

DTYPES = [np.float32, np.float64]
SHAPES = [(), (1,), (0,), (3, 0, 2), (7,), (4, 5), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 2, 2), (40000,)]
OPERATIONS = {
    "relu": (F.relu, F.relu_backward, reference.relu, reference.relu_backward),
    "relu6": (F.relu6, F.relu6_backward, reference.relu6, reference.relu6_backward),
    "sigmoid": (F.sigmoid, F.sigmoid_backward, reference.sigmoid, reference.sigmoid_backward),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward(rng, dtype, shape, operation):
    forward, backward, want_forward, want_backward = OPERATIONS[operation]
    x, dy = (np.asarray(4 * rng.standard_normal(shape), dtype) for _ in range(2))
    y = forward(x)
    dx = backward(dy, y)
    assert y.shape == dx.shape == shape
    assert y.dtype == dx.dtype == dtype
    assert_close(y, want_forward(x), dtype)
    assert_close(dx, want_backward(dy, x), dtype)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_values(rng, layout, operation):
    forward, backward, want_forward, want_backward = OPERATIONS[operation]
    x, dy = rng.standard_normal((2, 2, 3, 4, 5)).astype(np.float32)
    lying = LAYOUTS[layout]
    assert_close(forward(lying(x)), want_forward(x), np.float32)
    assert_close(backward(lying(dy), lying(forward(x))), want_backward(dy, x), np.float32)


@pytest.mark.parametrize("dy_order", ORDERS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_outputs_lie_as_the_input(rng, operation, order, dy_order):
    forward, backward, _, want_backward = OPERATIONS[operation]
    x, dy = rng.standard_normal((2, 2, 3, 4, 5))
    y = forward(ORDERS[order](x))
    dx = backward(ORDERS[dy_order](dy), y)
    assert y.strides == dx.strides == ORDERS[order](x).strides
    assert_close(dx, want_backward(dy, x), np.float64)


@pytest.mark.parametrize("size", [1, 15, 16, 33, kernels.BLOCK + 5])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_write_over_their_input_and_nothing_beyond_it(rng, dtype, operation, size):
    forward, backward, _, _ = OPERATIONS[operation]
    memory = (4 * rng.standard_normal(size + 1)).astype(dtype)
    x, end = memory[:size].copy(), memory[size]
    y = forward(x)
    getattr(kernels, operation).serial(memory[:size], memory[:size], None)
    np.testing.assert_array_equal(memory[:size], y)
    dx = backward(x, y)
    memory[:size] = x
    getattr(kernels, f"{operation}_backward").serial(memory[:size], y, memory[:size], None)
    np.testing.assert_array_equal(memory[:size], dx)
    assert memory[size] == end


@pytest.mark.parametrize("operation", OPERATIONS)
def test_finite_differences(rng, operation):
    forward, backward, _, _ = OPERATIONS[operation]
    x, dy = rng.standard_normal((2, 3, 4))
    want = reference.numerical_gradient(forward, x, dy)
    np.testing.assert_allclose(backward(dy, forward(x)), want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_at_the_ends(dtype):
    ends = np.array([-np.inf, -1e30, -0.0, 0.0, 1e30, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(F.relu(ends), np.array([0, 0, 0, 0, 1e30, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(F.relu6(ends), np.array([0, 0, 0, 0, 6, 6, np.nan], dtype))
    np.testing.assert_array_equal(F.sigmoid(ends), [0, 0, 0.5, 0.5, 1, 1, np.nan])


@pytest.mark.parametrize(("dtype", "rtol", "lowest"), [(np.float32, 2e-7, -87), (np.float64, 1e-15, -708)])
def test_sigmoid_is_accurate_at_every_magnitude(rng, dtype, rtol, lowest):
    x = np.concatenate([rng.uniform(lowest, -lowest, 5000), -np.logspace(-20, np.log10(-lowest), 5000)]).astype(dtype)
    np.testing.assert_allclose(F.sigmoid(x), reference.sigmoid(x), rtol=rtol)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nan_and_inf_in_dy_stay_in_their_place(rng, operation, bad):
    forward, backward, _, _ = OPERATIONS[operation]
    x = np.abs(rng.standard_normal((4, 5))) + 0.1
    dy = rng.standard_normal((4, 5))
    dy[2, 3] = bad
    np.testing.assert_array_equal(np.isfinite(backward(dy, forward(x))), np.isfinite(dy))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_relu6_gradient_at_its_ends_and_nan(dtype):
    x = np.array([-1, 0, 1e-30, 3, np.nextafter(dtype(6), dtype(0)), 6, 7, np.nan], dtype)
    dy = np.arange(1, 9).astype(dtype)
    dy[0] = dy[6] = np.nan
    np.testing.assert_array_equal(F.relu6_backward(dy, F.relu6(x)), [0, 0, 3, 4, 5, 0, 0, 8])


def test_the_relu_gradient_at_zero_and_nan():
    y, dy = np.array([0.0, -0.0, 2.0, np.nan]), np.array([3.0, np.nan, 5.0, 7.0])
    np.testing.assert_array_equal(F.relu_backward(dy, y), [0, 0, 5, 7])
