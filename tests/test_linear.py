"""The linear layer, forward and backward: against the float64 twin and torch, then memory and corners."""

import importlib

import numpy as np
import pytest
import reference
from helpers import assert_close
from layouts import LAYOUTS, strided, unaligned

import fastbn
import fastbn.functional as F
from fastbn.errors import ArgumentError

DTYPES = [np.float32, np.float64]

# x's shape, outputs
CASES = [
    ((4, 3), 5),
    ((1, 1), 1),
    ((7,), 3),
    ((2, 3, 5), 4),
    ((2, 0, 5), 4),
    ((14, 256), 32),  # whole tiles and one whole block of depth
    ((15, 257), 33),
    ((300, 40), 17),
    ((3, 700), 300),
    ((5, 8, 41), 67),  # enough rows for both products to be turned
    ((260, 9), 600),
    ((2, 130, 257), 150),  # by the matrix unit, in float32 and where there is one
    ((0, 700), 900),
    ((1, 600), 900),  # few rows: gradients in one pass over the weight, here of whole vectors and whole tasks
    ((5, 7, 611), 1031),
    ((63, 4099), 130),
    ((140, 1030), 600),  # there, sums over the features are kept between, and gradients are a product each
]


def operands(rng, x_shape, outputs, dtype):
    """x, weight, bias, dy."""
    shapes = x_shape, (outputs, x_shape[-1]), (outputs,), (*x_shape[:-1], outputs)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


@pytest.fixture(params=["in place", "turned", "packed block by block"])
def packing(request, monkeypatch):
    module = importlib.import_module("fastbn.functional.linear")
    if request.param != "in place":
        monkeypatch.setattr(module, "SMALL", 0)
    if request.param != "turned":
        monkeypatch.setattr(module, "MOST_TURNED", 0)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("x_shape", "outputs"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(rng, dtype, x_shape, outputs, biased, relu):
    x, weight, bias, _ = operands(rng, x_shape, outputs, dtype)
    bias = bias if biased else None
    y = F.linear(x, weight, bias, relu=relu)
    assert (y.shape, y.dtype) == ((*x_shape[:-1], outputs), dtype)
    assert_close(y, reference.linear(x, weight, bias, relu=relu), dtype, scale=10)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize(("x_shape", "outputs"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(rng, dtype, x_shape, outputs):
    x, weight, _, dy = operands(rng, x_shape, outputs, dtype)
    for got, want in zip(F.linear_backward(dy, x, weight), reference.linear_backward(dy, x, weight), strict=True):
        assert (got.shape, got.dtype) == (want.shape, dtype)
        assert_close(got, want, dtype, scale=10)


def test_gradients_of_few_rows_for_any_number_of_threads(rng):
    x, weight, _, dy = operands(rng, (17, 701), 901, np.float32)
    found = []
    for threads in (1, 2, 7):
        fastbn.set_num_threads(threads)
        found.append(F.linear_backward(dy, x, weight))
    for gradients in zip(*found, strict=True):
        for gradient in gradients[1:]:
            np.testing.assert_array_equal(gradient, gradients[0])
    nothing, alone, _ = F.linear_backward(dy, x, weight, need_dx=False)
    assert nothing is None
    np.testing.assert_array_equal(alone, found[0][1])


def test_what_is_not_finite_in_a_large_weight_stays_in_its_feature(rng):
    x, weight, _, dy = operands(rng, (5, 701), 901, np.float32)
    want, dweight, _ = F.linear_backward(dy, x, weight)
    weight[900, 700] = np.inf
    dx, same, _ = F.linear_backward(dy, x, weight)
    np.testing.assert_array_equal(same, dweight)
    np.testing.assert_array_equal(dx[:, :700], want[:, :700])
    assert np.isinf(dx[:, 700]).all()


def test_finite_differences(rng):
    x, weight, bias, dy = operands(rng, (2, 3, 4), 5, np.float64)
    dx, dweight, dbias = F.linear_backward(dy, x, weight)

    def check(gradient, forward, point):
        np.testing.assert_allclose(gradient, reference.numerical_gradient(forward, point, dy), rtol=1e-7, atol=1e-7)

    check(dx, lambda value: F.linear(value, weight, bias), x)
    check(dweight, lambda value: F.linear(x, value, bias), weight)
    check(dbias, lambda value: F.linear(x, weight, value), bias)


@pytest.mark.parametrize(("x_shape", "outputs"), CASES[:4], ids=str)
def test_torch_agrees(rng, x_shape, outputs):
    torch = pytest.importorskip("torch")
    *arrays, dy = operands(rng, x_shape, outputs, np.float64)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    want = torch.nn.functional.linear(*tensors)
    want.backward(torch.tensor(dy))
    assert_close(F.linear(*arrays), want.detach().numpy(), np.float64)
    for gradient, tensor in zip(F.linear_backward(dy, *arrays[:2]), tensors, strict=True):
        assert_close(gradient, tensor.grad.numpy(), np.float64)


# Memory


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "channels_last" not in name])
def test_any_layout_gives_the_same_values(rng, layout):
    arrays = operands(rng, (6, 5), 4, np.float32)
    x, weight, bias, dy = map(LAYOUTS[layout], arrays)
    assert_close(F.linear(x, weight, bias), reference.linear(*arrays[:3]), np.float32)
    want = reference.linear_backward(arrays[3], *arrays[:2])
    for gradient, wanted in zip(F.linear_backward(dy, x, weight), want, strict=True):
        assert gradient.dtype.isnative
        assert_close(gradient, wanted, np.float32)


@pytest.mark.parametrize("layout", [strided, unaligned, np.asfortranarray])
def test_any_layout_with_more_axes(rng, layout):
    x, weight, bias, dy = operands(rng, (2, 3, 4, 5), 6, np.float64)
    assert_close(F.linear(layout(x), weight, bias), reference.linear(x, weight, bias), np.float64)
    want = reference.linear_backward(dy, x, weight)
    for gradient, wanted in zip(F.linear_backward(layout(dy), layout(x), weight), want, strict=True):
        assert_close(gradient, wanted, np.float64)


@pytest.mark.parametrize("x_shape", [(6, 5), (2, 3, 5), (5,)], ids=str)
def test_out_is_written_and_returned(rng, x_shape):
    x, weight, bias, _ = operands(rng, x_shape, 4, np.float64)
    out = np.full((*x_shape[:-1], 4), np.nan)
    assert F.linear(x, weight, bias, relu=True, out=out) is out
    assert_close(out, reference.linear(x, weight, bias, relu=True), np.float64)


@pytest.mark.parametrize("wrong", [strided, np.asfortranarray])
def test_out_in_another_memory_order_is_refused(rng, wrong):
    x, weight, _, dy = operands(rng, (2, 3, 5), 4, np.float64)
    with pytest.raises(ArgumentError, match="out must be dense"):
        F.linear(x, weight, out=wrong(dy))


@pytest.mark.parametrize("offset", [0, 10])
def test_out_overlapping_x_is_refused(rng, offset):
    memory = rng.standard_normal(300 * 300 + 10)
    x, out = memory[:90000].reshape(300, 300), memory[offset : 90000 + offset].reshape(300, 300)
    with pytest.raises(ArgumentError, match="out must be apart from x"):
        F.linear(x, rng.standard_normal((300, 300)), out=out)


def test_out_unaligned_is_written_or_refused(rng):
    x, weight, bias, dy = operands(rng, (3, 5), 4, np.float64)
    out = unaligned(np.zeros_like(dy))
    try:
        F.linear(x, weight, bias, out=out)
    except ArgumentError:
        return
    assert_close(out, reference.linear(x, weight, bias), np.float64)


# Corners


def test_no_inputs_leave_the_bias():
    x, weight, bias = np.ones((3, 0)), np.ones((2, 0)), np.array([-1.0, 2.0])
    np.testing.assert_array_equal(F.linear(x, weight), np.zeros((3, 2)))
    np.testing.assert_array_equal(F.linear(x, weight, bias), np.broadcast_to(bias, (3, 2)))
    np.testing.assert_array_equal(F.linear(x, weight, bias, relu=True), np.broadcast_to([0, 2], (3, 2)))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(0, 3, 2), (4, 0, 2), (4, 3, 0)])
def test_empty_operands_have_zero_gradients(rows, inputs, outputs):
    gradients = F.linear_backward(np.ones((rows, outputs)), np.ones((rows, inputs)), np.ones((outputs, inputs)))
    assert [gradient.shape for gradient in gradients] == [(rows, inputs), (outputs, inputs), (outputs,)]
    np.testing.assert_array_equal(gradients[0], np.zeros((rows, inputs)))
    np.testing.assert_array_equal(gradients[1], np.zeros((outputs, inputs)))
    np.testing.assert_array_equal(gradients[2], np.full(outputs, rows))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_reach_their_row_only(rng, bad, relu):
    x, weight, bias, _ = operands(rng, (20, 5), 4, np.float32)
    want = F.linear(x, weight, bias, relu=relu)
    x[3, 2] = bad
    weight[:, 2] = np.abs(weight[:, 2])
    y = F.linear(x, weight, bias, relu=relu)
    assert not np.isfinite(y[3]).any()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()
    assert want.shape == y.shape


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_panels_that_threads_pack_side_by_side_are_apart(rng, threads):
    fastbn.set_num_threads(threads)
    x, weight, _, dy = operands(rng, (24, 256), 120, np.float64)
    want = reference.linear_backward(dy, x, weight)
    for _ in range(20):
        for got, expected in zip(F.linear_backward(dy, x, weight), want, strict=True):
            assert_close(got, expected, np.float64, scale=10)


def test_gradients_that_are_not_needed_are_left_out(rng):
    x, weight, _, dy = operands(rng, (6, 5), 4, np.float32)
    dx, dweight, dbias = F.linear_backward(dy, x, weight, need_dx=False, need_dbias=False)
    assert dx is dbias is None
    np.testing.assert_array_equal(dweight, F.linear_backward(dy, x, weight)[1])
