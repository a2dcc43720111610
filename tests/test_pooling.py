"""Max and average pooling, forward and backward: against the float64 twin and torch, then ties, NaN and padding."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close
from layouts import LAYOUTS

import fastbn.functional as F
from fastbn.errors import FastbnError

DTYPES = [np.float32, np.float64]
SHAPE = (2, 3, 9, 8)

MAX_CASES = {
    "plain": {"kernel_size": 2},
    "pairs": {"kernel_size": (3, 2), "stride": (1, 3), "padding": (1, 0)},
    "overlapping": {"kernel_size": 3, "stride": 1, "padding": 1},
    "gaps": {"kernel_size": 2, "stride": 4},
    "dilation": {"kernel_size": (2, 3), "stride": 2, "dilation": (4, 2)},
    "ceil": {"kernel_size": 2, "ceil_mode": True},
    "ceil, last window dropped": {"kernel_size": 3, "stride": 5, "padding": 1, "ceil_mode": True},
    "ceil, all at once": {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True},
    "everything": {"kernel_size": SHAPE[2:]},
    "ceil, larger than x": {"kernel_size": 12, "padding": 1, "ceil_mode": True},
}
# One, less than a vector, several and a rest, and more than a backward task has.
CHANNELS = [1, 3, 21, 70]
AVG_CASES = {name: options for name, options in MAX_CASES.items() if "dilation" not in options}


def maximum(x, options, order):
    """y and dx for dy of ones, two, three ... of max pooling."""
    y, indices = F.max_pool2d_forward(ORDERS[order](x), **options)
    dy = np.arange(1, y.size + 1, dtype=x.dtype).reshape(y.shape)
    return y, dy, F.max_pool2d_backward(ORDERS[order](dy), indices, x.shape)


@pytest.mark.parametrize("case", MAX_CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_max(rng, dtype, order, case):
    x = rng.standard_normal(SHAPE).astype(dtype)
    y, dy, dx = maximum(x, MAX_CASES[case], order)
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, reference.max_pool2d(x, **MAX_CASES[case]))
    np.testing.assert_array_equal(y, F.max_pool2d(ORDERS[order](x), **MAX_CASES[case]))
    assert_close(dx, reference.max_pool2d_backward(dy, x, **MAX_CASES[case]), dtype)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("case", AVG_CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_avg(rng, dtype, order, case, count_include_pad):
    x = rng.standard_normal(SHAPE).astype(dtype)
    options = {**AVG_CASES[case], "count_include_pad": count_include_pad}
    y = F.avg_pool2d(ORDERS[order](x), **options)
    assert y.dtype == dtype
    assert_close(y, reference.avg_pool2d(x, **options), dtype)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = F.avg_pool2d_backward(ORDERS[order](dy), ORDERS[order](x), **options)
    assert dx.strides == ORDERS[order](x).strides
    assert_close(dx, reference.avg_pool2d_backward(dy, x.shape, **options), dtype)


@pytest.mark.parametrize("case", MAX_CASES)
def test_torch_agrees_on_max(rng, case):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(SHAPE)
    y, dy, dx = maximum(x, MAX_CASES[case], "nchw")
    tensor = torch.tensor(x, requires_grad=True)
    want, indices = torch.nn.functional.max_pool2d(tensor, **MAX_CASES[case], return_indices=True)
    want.backward(torch.tensor(dy))
    np.testing.assert_array_equal(y, want.detach().numpy())
    np.testing.assert_array_equal(F.max_pool2d_forward(x, **MAX_CASES[case])[1], indices.numpy())
    assert_close(dx, tensor.grad.numpy(), np.float64)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("case", AVG_CASES)
def test_torch_agrees_on_avg(rng, case, count_include_pad):
    torch = pytest.importorskip("torch")
    x = rng.standard_normal(SHAPE)
    options = {**AVG_CASES[case], "count_include_pad": count_include_pad}
    tensor = torch.tensor(x, requires_grad=True)
    want = torch.nn.functional.avg_pool2d(tensor, **options)
    dy = rng.standard_normal(tuple(want.shape))
    want.backward(torch.tensor(dy))
    assert_close(F.avg_pool2d(x, **options), want.detach().numpy(), np.float64)
    assert_close(F.avg_pool2d_backward(dy, x, **options), tensor.grad.numpy(), np.float64)


def test_finite_differences_of_avg(rng):
    x = rng.standard_normal((1, 2, 4, 5))
    dy = rng.standard_normal((1, 2, 2, 3))
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    want = reference.numerical_gradient(lambda value: F.avg_pool2d(value, **options), x, dy)
    np.testing.assert_allclose(F.avg_pool2d_backward(dy, x, **options), want, rtol=1e-7, atol=1e-7)


# Memory


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("case", MAX_CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_orders_give_the_same_bits_of_max(rng, dtype, case, channels):
    x = rng.standard_normal((2, channels, 9, 8)).astype(dtype)
    x[rng.random(x.shape) < 0.02] = np.nan
    (y, indices), (other, places) = (F.max_pool2d_forward(lie(x), **MAX_CASES[case]) for lie in ORDERS.values())
    np.testing.assert_array_equal(other, y)
    np.testing.assert_array_equal(places, indices)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, other = (F.max_pool2d_backward(dy, chosen, x.shape) for chosen in (indices, places))
    np.testing.assert_array_equal(other, dx)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("case", AVG_CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_orders_give_the_same_bits_of_avg(rng, dtype, case, count_include_pad, channels):
    x = rng.standard_normal((2, channels, 9, 8)).astype(dtype)
    options = {**AVG_CASES[case], "count_include_pad": count_include_pad}
    y, other = (F.avg_pool2d(lie(x), **options) for lie in ORDERS.values())
    np.testing.assert_array_equal(other, y)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, other = (F.avg_pool2d_backward(dy, lie(x), **options) for lie in ORDERS.values())
    np.testing.assert_array_equal(other, dx)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 2, 8, 9), (2, 2, 9, 9), (2, 2, 40, 70)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_of_two_by_two_side_by_side(rng, dtype, shape):
    x = rng.integers(-2, 3, shape).astype(dtype)
    x[rng.random(x.shape) < 0.1] = np.nan
    y, dy, dx = maximum(x, {"kernel_size": 2}, "nchw")
    np.testing.assert_array_equal(y, reference.max_pool2d(x, 2))
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, 2))
    assert_close(F.avg_pool2d(x, 2), reference.avg_pool2d(x, 2), dtype)
    assert_close(F.avg_pool2d_backward(dy, x, 2), reference.avg_pool2d_backward(dy, x.shape, 2), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_values(rng, layout):
    x = rng.standard_normal(SHAPE).astype(np.float32)
    lying = LAYOUTS[layout]
    y, indices = F.max_pool2d_forward(lying(x), 2)
    np.testing.assert_array_equal(y, reference.max_pool2d(x, 2))
    indices = indices if layout == "big_endian" else lying(indices)
    dx = F.max_pool2d_backward(lying(y), indices, x.shape)
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(y, x, 2))
    assert_close(F.avg_pool2d(lying(x), 2), reference.avg_pool2d(x, 2), np.float32)
    dx = F.avg_pool2d_backward(lying(y), lying(x), 2)
    assert_close(dx, reference.avg_pool2d_backward(y, x.shape, 2), np.float32)


@pytest.mark.parametrize("dy_order", ORDERS)
@pytest.mark.parametrize("order", ORDERS)
def test_dy_may_lie_in_the_other_order(rng, order, dy_order):
    x = rng.standard_normal(SHAPE)
    y, indices = F.max_pool2d_forward(ORDERS[order](x), 2)
    dy = rng.standard_normal(y.shape)
    dx = F.max_pool2d_backward(ORDERS[dy_order](dy), indices, x.shape)
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, 2))
    dx = F.avg_pool2d_backward(ORDERS[dy_order](dy), ORDERS[order](x), 2)
    assert_close(dx, reference.avg_pool2d_backward(dy, x.shape, 2), np.float64)


@pytest.mark.parametrize("order", ORDERS)
def test_outputs_lie_as_x(rng, order):
    y, indices = F.max_pool2d_forward(ORDERS[order](rng.standard_normal(SHAPE)), 2)
    average = F.avg_pool2d(ORDERS[order](rng.standard_normal(SHAPE)), 2)
    assert y.strides == average.strides == ORDERS[order](y).strides
    assert indices.dtype == np.int32
    assert F.max_pool2d_backward(y, indices, SHAPE).strides == ORDERS[order](np.empty(SHAPE)).strides


# Corners


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)], ids=str)
def test_empty(order, shape):
    x = ORDERS[order](np.zeros(shape, np.float32))
    y, indices = F.max_pool2d_forward(x, 2)
    assert y.shape == indices.shape == F.avg_pool2d(x, 2).shape == (*shape[:2], 2, 2)
    assert F.max_pool2d_backward(y, indices, shape).shape == shape
    assert F.avg_pool2d_backward(y, x, 2).shape == shape


@pytest.mark.parametrize("order", ORDERS)
def test_the_first_of_equal_maxima_gets_the_gradient(order):
    x = ORDERS[order](np.zeros((1, 2, 4, 4)))
    y, indices = F.max_pool2d_forward(x, 2)
    np.testing.assert_array_equal(indices[0, 0], [[0, 2], [8, 10]])
    dx = F.max_pool2d_backward(np.ones_like(y), indices, x.shape)
    want = np.zeros((1, 2, 4, 4))
    want[:, :, ::2, ::2] = 1
    np.testing.assert_array_equal(dx, want)


@pytest.mark.parametrize("order", ORDERS)
def test_a_nan_wins_and_gets_the_gradient(rng, order):
    x = rng.standard_normal((2, 2, 6, 6)).astype(np.float32)
    x[0, 1, 2, 3] = x[0, 1, 3, 2] = x[1, 0, 5, 5] = np.nan
    x[0, 1, 3, 3] = np.inf
    y, dy, dx = maximum(x, {"kernel_size": 2}, order)
    np.testing.assert_array_equal(y, reference.max_pool2d(x, 2))
    assert np.isnan(y).sum() == 2
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_overlapping_windows_share_a_nan_and_equals_at_the_edge(rng, dtype, channels, order):
    x = rng.integers(-2, 3, (2, channels, 7, 6)).astype(dtype)  # few values: most windows hold equals
    x[rng.random(x.shape) < 0.1] = np.nan
    x[rng.random(x.shape) < 0.1] = -np.inf
    options = {"kernel_size": 3, "stride": 2, "padding": 1}
    y, dy, dx = maximum(x, options, order)
    np.testing.assert_array_equal(y, reference.max_pool2d(x, **options))
    np.testing.assert_array_equal(dx, reference.max_pool2d_backward(dy, x, **options))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_reach_the_averages_that_hold_them_only(rng, bad, order):
    x = rng.standard_normal((1, 2, 6, 6))
    x[0, 1, 2, 3] = bad
    touched = np.zeros((1, 2, 3, 3), bool)
    touched[0, 1, 1, 1] = True
    np.testing.assert_array_equal(np.isfinite(F.avg_pool2d(ORDERS[order](x), 2)), ~touched)


@pytest.mark.parametrize("order", ORDERS)
def test_minus_infinity_is_a_value(order):
    x = ORDERS[order](np.full((1, 3, 2, 2), -np.inf))
    y, indices = F.max_pool2d_forward(x, 2, padding=1)
    np.testing.assert_array_equal(y, np.full((1, 3, 2, 2), -np.inf))
    np.testing.assert_array_equal(indices, np.broadcast_to([[0, 1], [2, 3]], (1, 3, 2, 2)))


@pytest.mark.parametrize("order", ORDERS)
def test_padding_never_wins(rng, order):
    x = ORDERS[order](-1 - rng.random((1, 3, 4, 4)))
    assert F.max_pool2d(x, 3, 1, padding=1).max() < 0


@pytest.mark.parametrize("order", ORDERS)
def test_a_window_of_padding_alone(rng, order):
    x = rng.standard_normal((1, 3, 2, 3))
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 3}
    y, indices = F.max_pool2d_forward(ORDERS[order](x), **options)
    np.testing.assert_array_equal(y, np.full((1, 3, 1, 2), -np.inf))
    np.testing.assert_array_equal(indices, np.full((1, 3, 1, 2), -1))
    np.testing.assert_array_equal(F.max_pool2d_backward(y, indices, x.shape), np.zeros_like(x))


@pytest.mark.parametrize("order", ORDERS)
def test_the_divisor_counts_padding_or_not(order):
    x = ORDERS[order](np.ones((1, 3, 2, 2)))
    np.testing.assert_array_equal(F.avg_pool2d(x, 2, padding=1), np.full(x.shape, 0.25))
    np.testing.assert_array_equal(F.avg_pool2d(x, 2, padding=1, count_include_pad=False), np.ones(x.shape))


@pytest.mark.parametrize(
    ("indices", "x_shape"),
    [
        (np.full((1, 2, 1, 1), 4, np.int32), (1, 2, 2, 2)),
        (np.zeros((1, 3, 1, 1), np.int32), (1, 2, 2, 2)),
        (np.zeros((2, 3, 1, 1), np.int32), (1, 3, 2, 2)),
        (np.zeros((1, 1, 1, 1)), (1, 1, 2, 2)),
        (np.zeros((1, 1), np.int32), (1, 1, 2, 2)),
        (np.zeros((1, 1, 1, 1), np.int32), (1, 1, 4)),
    ],
    ids=["place outside x", "channels", "images", "float places", "rank of indices", "rank of x"],
)
def test_max_backward_refuses_indices_that_are_not_of_x(indices, x_shape):
    with pytest.raises(FastbnError, match=r"^max_pool2d_backward: .* must .* got"):
        F.max_pool2d_backward(np.ones(indices.shape), indices, x_shape)
