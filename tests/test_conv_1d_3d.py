"""Convolutions over 1 and 3 axes, both passes: against the twin and torch, then memory and corners."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from layouts import LAYOUTS

import fastbn.functional as F
from fastbn.errors import ArgumentError
from fastbn.functional.conv3d import _by_depth, _images

DTYPES = [np.float32, np.float64]

# name: x's shape, weight's shape, options
CASES = {
    "1d": ((2, 3, 9), (4, 3, 3), {}),
    "1d, all options": ((2, 4, 12), (6, 2, 2), {"stride": 2, "padding": (1,), "dilation": 3, "groups": 2}),
    "1d, depthwise": ((3, 5, 8), (5, 1, 3), {"groups": 5, "padding": 1}),
    "1d, blocks": ((2, 20, 11), (33, 20, 3), {"padding": 1}),
    "1d, long": ((1, 2, 300), (3, 2, 11), {"stride": 2, "padding": 5}),
    "1d, one sample": ((2, 3, 1), (2, 3, 1), {}),
    "3d": ((2, 3, 5, 6, 4), (4, 3, 3, 3, 3), {}),
    "3d, padded": ((2, 2, 4, 5, 6), (3, 2, 3, 3, 3), {"padding": 1}),
    "3d, one volume": ((1, 3, 5, 6, 4), (4, 3, 3, 3, 3), {"padding": 1}),
    "3d, blocks": ((2, 16, 4, 5, 5), (32, 16, 3, 3, 3), {"padding": 1}),
    "3d, stride": ((2, 3, 7, 6, 5), (4, 3, 3, 3, 3), {"stride": 2, "padding": 1}),
    "3d, stride beyond the kernel": ((2, 2, 9, 4, 4), (3, 2, 2, 2, 2), {"stride": (4, 1, 3)}),
    "3d, all triples": (
        (2, 4, 8, 7, 6),
        (6, 2, 3, 2, 1),
        {"stride": (2, 1, 3), "padding": (3, 0, 2), "dilation": (2, 3, 1), "groups": 2},
    ),
    "3d, padding beyond the kernel": ((2, 2, 2, 3, 3), (3, 2, 2, 1, 1), {"padding": (4, 0, 1)}),
    "3d, kernel larger than the volume": ((2, 2, 2, 3, 3), (3, 2, 5, 3, 3), {"padding": (2, 1, 1)}),
    "3d, one depth": ((3, 4, 1, 6, 5), (5, 4, 1, 3, 3), {}),
    "3d, one pixel an image": ((2, 3, 6, 1, 1), (4, 3, 3, 1, 1), {"padding": 1}),
    "3d, depthwise": ((2, 5, 4, 4, 5), (5, 1, 3, 3, 3), {"groups": 5, "padding": 1}),
    "3d, 1x1x1": ((2, 17, 3, 4, 5), (16, 17, 1, 1, 1), {}),
}


def operands(rng, case, dtype):
    """x, weight, bias and the options."""
    x_shape, weight_shape, options = CASES[case]
    arrays = rng.standard_normal(x_shape), rng.standard_normal(weight_shape), rng.standard_normal(weight_shape[0])
    return *(array.astype(dtype) for array in arrays), options


def doors(case):
    """The forward and the backward door."""
    return (F.conv1d, F.conv1d_backward) if case.startswith("1d") else (F.conv3d, F.conv3d_backward)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_and_backward_are_the_twins(rng, dtype, order, case):
    x, weight, bias, options = operands(rng, case, dtype)
    forward, backward = doors(case)
    want = reference.conv(x, weight, bias, **options)
    dy = rng.standard_normal(want.shape).astype(dtype)
    wanted = reference.conv_backward(dy, x, weight, **options)
    x = ORDERS[order](x)
    y = forward(x, weight, bias, **options)
    assert y.dtype == dtype
    assert_close(y, want, dtype, scale=10)
    gradients = backward(ORDERS[order](dy), x, weight, **options)
    assert gradients[0].flags.c_contiguous == x.flags.c_contiguous
    for gradient, expected in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient, expected, dtype, scale=10)


@pytest.mark.parametrize("case", CASES)
def test_torch_agrees(rng, case):
    torch = pytest.importorskip("torch")
    *arrays, options = operands(rng, case, np.float64)
    forward, backward = doors(case)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    want = getattr(torch.nn.functional, forward.__name__)(*tensors, **options)
    dy = rng.standard_normal(tuple(want.shape))
    want.backward(torch.tensor(dy))
    assert_close(forward(*arrays, **options), want.detach().numpy(), np.float64, scale=10)
    for gradient, tensor in zip(backward(dy, *arrays[:2], **options), tensors, strict=True):
        assert_close(gradient, tensor.grad.numpy(), np.float64, scale=10)


@pytest.mark.parametrize("case", ["1d", "3d", "3d, one volume", "3d, padding beyond the kernel", "3d, blocks"])
@pytest.mark.parametrize("target", [None, "new", "residual"])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_bias_residual_relu_and_out(rng, order, biased, relu, target, case):
    x, weight, bias, options = operands(rng, case, np.float64)
    bias = bias if biased else None
    residual = rng.standard_normal(reference.conv(x, weight, **options).shape)
    want = reference.conv(x, weight, bias, residual=residual, relu=relu, **options)
    residual = ORDERS[order](residual)
    out = {None: None, "new": np.full_like(residual, np.nan), "residual": residual}[target]
    y = doors(case)[0](ORDERS[order](x), weight, bias, residual=residual, relu=relu, out=out, **options)
    assert out is None or y is out
    assert y.flags.c_contiguous == residual.flags.c_contiguous
    assert_close(y, want, np.float64)
    without = doors(case)[0](ORDERS[order](x), weight, bias, relu=relu, **options)
    assert_close(without, reference.conv(x, weight, bias, relu=relu, **options), np.float64)


@pytest.mark.parametrize("axes", [1, 3])
def test_same_keeps_the_size_and_valid_pads_nothing(rng, axes):
    x, weight = rng.standard_normal((2, 3, *(7, 6, 8)[:axes])), rng.standard_normal((4, 3, *(3, 1, 5)[:axes]))
    forward = (F.conv1d, None, F.conv3d)[axes - 1]
    same = forward(x, weight, padding="same", dilation=2 if axes == 1 else (2, 1, 1))
    assert same.shape[2:] == x.shape[2:]
    assert_close(forward(x, weight, padding="valid"), reference.conv(x, weight), np.float64)


@pytest.mark.parametrize("case", ["1d, all options", "3d, padded", "3d, stride"])
def test_gradients_that_nobody_needs_are_left_out(rng, case):
    x, weight, _, options = operands(rng, case, np.float32)
    forward, backward = doors(case)
    dy = forward(x, weight, **options)
    dx, dweight, dbias = backward(dy, x, weight, **options, need_dx=False, need_dbias=False)
    assert (dx, dbias) == (None, None)
    np.testing.assert_array_equal(dweight, backward(dy, x, weight, **options)[1])


# Memory


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["1d, all options", "3d, all triples"])
def test_any_layout_gives_the_same_values(rng, case, layout):
    x, weight, bias, options = operands(rng, case, np.float32)
    forward, backward = doors(case)
    want = reference.conv(x, weight, bias, **options)
    residual, dy = rng.standard_normal((2, *want.shape)).astype(np.float32)
    wanted = reference.conv_backward(dy, x, weight, **options)
    x, weight, lying_residual, dy = map(LAYOUTS[layout], (x, weight, residual, dy))
    assert_close(forward(x, weight, bias, residual=lying_residual, **options), want + residual, np.float32, scale=10)
    for gradient, expected in zip(backward(dy, x, weight, **options), wanted, strict=True):
        assert gradient.dtype.isnative
        assert_close(gradient, expected, np.float32, scale=10)


@pytest.mark.parametrize("shape", [(1, 3, 5, 4, 4), (2, 3, 1, 4, 4)])
def test_channels_last_volumes_are_not_copied(shape):
    x = channels_last(np.zeros(shape))
    assert np.shares_memory(_by_depth(x, True), x)
    assert np.shares_memory(_images(_by_depth(x, True), slice(0, 1)), x)


def test_out_overlapping_x_is_refused():
    x = np.ones((1, 1, 3, 3, 3))
    with pytest.raises(ArgumentError, match="conv3d: out must be apart from x, got an overlap"):
        F.conv3d(x, np.ones((1, 1, 1, 1, 1)), out=x)
    with pytest.raises(ArgumentError, match="conv1d: out must be apart from x, got an overlap"):
        F.conv1d(x[0, 0], np.ones((3, 3, 1)), out=x[0, 0])


# Corners


@pytest.mark.parametrize("case", ["1d", "3d"])
@pytest.mark.parametrize("order", ORDERS)
def test_an_empty_batch_has_zero_gradients(rng, order, case):
    x, weight, bias, _ = operands(rng, case, np.float32)
    x = ORDERS[order](x[:0])
    forward, backward = doors(case)
    y = forward(x, weight, bias)
    assert y.shape == (0, *reference.conv(np.ones((1, *x.shape[1:])), weight).shape[1:])
    dx, dweight, dbias = backward(y, x, weight)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dweight, np.zeros_like(weight))
    np.testing.assert_array_equal(dbias, np.zeros_like(bias))


def test_a_nan_reaches_the_windows_that_hold_it_only(rng):
    x, weight, bias, options = operands(rng, "3d, padded", np.float32)
    x[1, 1, 0, 2, 3] = np.nan
    touched = np.zeros((2, 3, 4, 5, 6), bool)
    touched[1, :, :2, 1:4, 2:5] = True
    np.testing.assert_array_equal(np.isnan(F.conv3d(x, weight, bias, **options)), touched)
