"""Convolution, forward and backward: against the twin, finite differences and torch, then memory and corners."""

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close, channels_last
from layouts import LAYOUTS, strided, unaligned

import fastbn.functional as F
from fastbn.errors import ArgumentError, ShapeError
from fastbn.functional import conv_lanes, conv_patches, conv_planes
from fastbn.functional.conv import engine_for
from fastbn.functional.conv_geometry import Window
from fastbn.kernels._simd import VECTOR_BYTES

DTYPES = [np.float32, np.float64]

# name: x's shape, weight's shape, options
CASES = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "stride": ((2, 3, 8, 7), (4, 3, 3, 3), {"stride": 2, "padding": 1}),
    "stride skips the last row": ((2, 2, 9, 10), (3, 2, 2, 2), {"stride": (3, 4)}),
    "all pairs": ((2, 3, 9, 8), (4, 3, 2, 4), {"stride": (2, 1), "padding": (0, 2), "dilation": (3, 1)}),
    "row kernel": ((2, 3, 5, 6), (4, 3, 1, 5), {"padding": (0, 2)}),
    "column kernel": ((2, 3, 5, 6), (4, 3, 3, 1), {"stride": (1, 2)}),
    "dilation": ((1, 2, 11, 9), (3, 2, 3, 3), {"dilation": 2, "padding": 2}),
    "groups": ((2, 6, 5, 6), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((2, 5, 6, 7), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    "depthwise, twice, stride": ((2, 3, 6, 7), (6, 1, 3, 3), {"groups": 3, "stride": 2, "padding": 1}),
    "1x1, two blocks of channels": ((2, 300, 5, 5), (40, 300, 1, 1), {}),
    "1x1, two blocks of outputs": ((2, 3, 5, 4), (300, 3, 1, 1), {}),
    "1x1, stride": ((2, 5, 7, 8), (6, 5, 1, 1), {"stride": 3}),
    "three blocks of pixels": ((2, 4, 20, 19), (15, 4, 3, 3), {"padding": 1}),
    "one block of pixels, exactly": ((1, 2, 8, 16), (14, 2, 1, 1), {}),
    "weights wider than a block": ((2, 33, 6, 5), (7, 33, 3, 3), {"padding": 1}),
    "kernel larger than a block": ((1, 2, 12, 12), (3, 2, 11, 11), {"padding": 5}),
    "kernel larger than the image": ((2, 2, 3, 2), (3, 2, 5, 5), {"padding": 2}),
    "padding beyond the kernel": ((2, 2, 3, 4), (3, 2, 2, 2), {"padding": 3}),
    "pixels beyond a run": ((1, 3, 30, 31), (5, 3, 3, 3), {"padding": 1}),
    "stride and dilation share a factor": ((2, 3, 13, 15), (4, 3, 3, 2), {"stride": (2, 4), "dilation": (4, 6)}),
    "stride beyond the kernel, padded": ((2, 4, 11, 9), (6, 2, 2, 1), {"stride": 5, "padding": 2, "groups": 2}),
    "more images than runs": ((17, 1, 5, 5), (2, 1, 3, 3), {}),
    "a last run of fewer images": ((7, 16, 5, 5), (64, 16, 3, 3), {}),
    "blocks of several images": ((5, 128, 3, 3), (1040, 128, 1, 1), {}),
    "blocks, a plane for every tap": ((9, 64, 3, 2), (136, 64, 3, 3), {"padding": 1}),
    "blocks, a plane for every tap, stride": ((3, 72, 6, 5), (136, 36, 3, 2), {"padding": 1, "stride": 2, "groups": 2}),
    "depthwise of whole vectors": ((2, 32, 17, 15), (32, 1, 3, 3), {"groups": 32, "padding": 1}),
    "depthwise, a part of a vector": ((2, 19, 9, 8), (19, 1, 5, 3), {"groups": 19, "stride": 2, "dilation": (1, 2)}),
    "blocks": ((2, 16, 7, 6), (16, 16, 3, 3), {"padding": 1}),
    "blocks, not filled": ((2, 20, 9, 8), (40, 20, 3, 3), {"stride": 2, "padding": 1}),
    "blocks, whole panels": ((3, 64, 14, 14), (64, 64, 3, 3), {"padding": 1}),
    "blocks, 1x1": ((2, 32, 5, 5), (70, 32, 1, 1), {}),
    "blocks, 1x1, stride": ((2, 16, 7, 8), (16, 16, 1, 1), {"stride": 3}),
    "blocks, dilation": ((1, 17, 11, 9), (33, 17, 3, 3), {"dilation": 2, "padding": 2}),
    "blocks, groups": ((2, 32, 8, 7), (48, 16, 3, 2), {"groups": 2, "stride": (2, 1)}),
    "blocks, stride beyond the kernel": ((2, 16, 9, 10), (16, 16, 2, 2), {"stride": (3, 4)}),
    "blocks, padding beyond the kernel": ((2, 16, 3, 4), (16, 16, 2, 2), {"padding": 3}),
    "blocks, rows in several tasks": ((1, 16, 61, 67), (16, 16, 5, 3), {"padding": (2, 1)}),
    "blocks, images in several runs": ((19, 16, 5, 5), (32, 16, 3, 3), {"padding": 1}),
    "patches": ((3, 3, 17, 15), (20, 3, 7, 7), {"stride": 2, "padding": 3}),
    "blocks, small images": ((5, 64, 3, 4), (96, 64, 3, 3), {"padding": 1}),
    "blocks, small images, stride": ((5, 80, 6, 5), (64, 80, 3, 3), {"padding": 1, "stride": 2}),
    "blocks, small images, groups": (
        (3, 64, 5, 6),
        (136, 32, 3, 3),
        {"padding": (2, 1), "dilation": (2, 1), "groups": 2},
    ),
    "blocks, small images, several runs": ((33, 64, 2, 2), (64, 64, 3, 3), {"padding": 1}),
    "blocks, nothing but padding": ((2, 64, 1, 1), (64, 64, 1, 1), {"padding": 4, "stride": 5}),
    "patches, taps apart": ((2, 5, 13, 12), (33, 5, 3, 3), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    "patches, rows in several tasks": ((2, 1, 40, 41), (16, 1, 5, 4), {"padding": (2, 6)}),
    "single pixels": ((3, 33, 13, 11), (72, 33, 1, 1), {}),
    "single pixels, one vector of outputs": ((2, 72, 9, 10), (16, 72, 1, 1), {}),
    "side by side": ((32, 6, 12, 12), (16, 6, 5, 5), {}),
    "side by side, one channel": ((32, 1, 9, 10), (6, 1, 5, 5), {}),
    "side by side, a part of a block": ((29, 3, 6, 5), (7, 3, 3, 3), {"padding": 1}),
    "side by side, all pairs": ((29, 3, 9, 8), (4, 3, 2, 4), {"stride": (2, 1), "padding": (0, 2), "dilation": (3, 1)}),
    "side by side, groups": ((32, 6, 5, 6), (14, 3, 3, 3), {"groups": 2, "padding": 1}),
    "side by side, stride beyond the kernel": ((29, 4, 11, 9), (6, 2, 2, 1), {"stride": 5, "padding": 2, "groups": 2}),
    "side by side, kernel larger than the image": ((32, 2, 3, 2), (3, 2, 5, 5), {"padding": 2}),
    "side by side, padding beyond the kernel": ((32, 2, 3, 4), (3, 2, 2, 2), {"padding": 3}),
    "side by side, blocks in several runs": ((530, 1, 3, 3), (2, 1, 2, 2), {}),
    "one pixel": ((2, 3, 4, 5), (4, 3, 4, 5), {}),
    "one of everything": ((1, 1, 1, 1), (1, 1, 1, 1), {}),
}


def operands(rng, x_shape, weight_shape, dtype):
    """x, weight, bias."""
    arrays = rng.standard_normal(x_shape), rng.standard_normal(weight_shape), rng.standard_normal(weight_shape[0])
    return tuple(array.astype(dtype) for array in arrays)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(rng, dtype, order, case):
    x_shape, weight_shape, options = CASES[case]
    x, weight, bias = operands(rng, x_shape, weight_shape, dtype)
    y = F.conv2d(ORDERS[order](x), weight, bias, **options)
    assert y.dtype == dtype
    assert_close(y, reference.conv2d(x, weight, bias, **options), dtype, scale=10)


@pytest.mark.parametrize("case", ["plain", "blocks"])
def test_gradients_that_nobody_needs_are_left_out(rng, case):
    x_shape, weight_shape, options = CASES[case]
    x, weight, _ = operands(rng, x_shape, weight_shape, np.float32)
    dy = F.conv2d(x, weight, **options)
    dx, dweight, dbias = F.conv2d_backward(dy, x, weight, **options, need_dx=False, need_dbias=False)
    assert dx is None
    assert dbias is None
    np.testing.assert_array_equal(dweight, F.conv2d_backward(dy, x, weight, **options)[1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(rng, dtype, order, case):
    x_shape, weight_shape, options = CASES[case]
    x, weight, _ = operands(rng, x_shape, weight_shape, dtype)
    dy = rng.standard_normal(reference.conv2d(x, weight, **options).shape).astype(dtype)
    want = reference.conv2d_backward(dy, x, weight, **options)
    x = ORDERS[order](x)
    got = F.conv2d_backward(ORDERS[order](dy), x, weight, **options)
    assert got[0].strides == x.strides
    for gradient, wanted in zip(got, want, strict=True):
        assert gradient.dtype == dtype
        assert_close(gradient, wanted, dtype, scale=10)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("residual_order", [None, *ORDERS])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_bias_residual_and_relu_are_each_optional(rng, order, biased, residual_order, relu):
    x, weight, bias = operands(rng, (2, 4, 13, 11), (30, 2, 3, 3), np.float32)
    bias = bias if biased else None
    residual = rng.standard_normal((2, 30, 11, 9)).astype(np.float32) if residual_order else None
    want = reference.conv2d(x, weight, bias, groups=2, residual=residual, relu=relu)
    residual = ORDERS[residual_order](residual) if residual_order else None
    y = F.conv2d(ORDERS[order](x), weight, bias, groups=2, residual=residual, relu=relu)
    assert_close(y, want, np.float32, scale=10)


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (1, 1)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
def test_same_keeps_the_size_and_valid_pads_nothing(rng, kernel, dilation):
    x, weight, _ = operands(rng, (2, 3, 13, 14), (4, 3, *kernel), np.float64)
    dilations = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    padding = tuple(d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True))
    same = F.conv2d(x, weight, padding="same", dilation=dilation)
    assert same.shape[2:] == x.shape[2:]
    assert_close(same, reference.conv2d(x, weight, padding=padding, dilation=dilation), np.float64)
    valid = F.conv2d(x, weight, padding="valid", dilation=dilation)
    assert_close(valid, reference.conv2d(x, weight, dilation=dilation), np.float64)
    gradients = F.conv2d_backward(same, x, weight, padding="same", dilation=dilation)
    want = reference.conv2d_backward(same, x, weight, padding=padding, dilation=dilation)
    for gradient, wanted in zip(gradients, want, strict=True):
        assert_close(gradient, wanted, np.float64, scale=10)


@pytest.mark.parametrize("order", ORDERS)
def test_finite_differences(rng, order):
    x, weight, _ = operands(rng, (2, 4, 5, 4), (6, 2, 3, 2), np.float64)
    options = {"stride": (2, 1), "padding": 1, "groups": 2}
    dy = rng.standard_normal(F.conv2d(x, weight, **options).shape)
    dx, dweight, dbias = F.conv2d_backward(dy, ORDERS[order](x), weight, **options)

    def check(gradient, forward, point):
        np.testing.assert_allclose(gradient, reference.numerical_gradient(forward, point, dy), rtol=1e-7, atol=1e-7)

    check(dx, lambda value: F.conv2d(ORDERS[order](value), weight, **options), x)
    check(dweight, lambda value: F.conv2d(x, value, **options), weight)
    check(dbias, lambda value: F.conv2d(x, weight, value, **options), np.zeros(6))


@pytest.mark.parametrize("case", CASES)
def test_torch_agrees(rng, case):
    torch = pytest.importorskip("torch")
    x_shape, weight_shape, options = CASES[case]
    arrays = operands(rng, x_shape, weight_shape, np.float64)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    want = torch.nn.functional.conv2d(*tensors, **options)
    dy = rng.standard_normal(tuple(want.shape))
    want.backward(torch.tensor(dy))
    assert_close(F.conv2d(*arrays, **options), want.detach().numpy(), np.float64, scale=10)
    for gradient, tensor in zip(F.conv2d_backward(dy, *arrays[:2], **options), tensors, strict=True):
        assert_close(gradient, tensor.grad.numpy(), np.float64, scale=10)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.int64])
def test_options_may_be_numpy_integers(rng, kind):
    x, weight, _ = operands(rng, (2, 4, 6, 5), (6, 2, 3, 3), np.float64)
    options = {"stride": 2, "padding": 1, "dilation": 1, "groups": 2}
    want = F.conv2d(x, weight, **options)
    np.testing.assert_array_equal(F.conv2d(x, weight, **{name: kind(n) for name, n in options.items()}), want)


def test_without_dx(rng):
    x, weight, _ = operands(rng, (2, 3, 5, 5), (4, 3, 3, 3), np.float64)
    dy = rng.standard_normal((2, 4, 3, 3))
    dx, dweight, dbias = F.conv2d_backward(dy, x, weight, need_dx=False)
    assert dx is None
    _, want_dweight, want_dbias = F.conv2d_backward(dy, x, weight)
    np.testing.assert_array_equal(dweight, want_dweight)
    np.testing.assert_array_equal(dbias, want_dbias)


# Memory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_values(rng, layout):
    x, weight, bias = operands(rng, (2, 4, 7, 6), (6, 2, 3, 3), np.float32)
    residual, dy = rng.standard_normal((2, 2, 6, 7, 6)).astype(np.float32)
    options = {"groups": 2, "padding": 1}
    want = reference.conv2d(x, weight, bias, residual=residual, **options)
    want_gradients = reference.conv2d_backward(dy, x, weight, **options)
    x, weight, residual, dy = map(LAYOUTS[layout], (x, weight, residual, dy))
    y = F.conv2d(x, weight, bias, residual=residual, **options)
    assert_close(y, want, np.float32, scale=10)
    for gradient, wanted in zip(F.conv2d_backward(dy, x, weight, **options), want_gradients, strict=True):
        assert gradient.dtype.isnative
        assert_close(gradient, wanted, np.float32, scale=10)


@pytest.mark.parametrize("layout", [strided, unaligned])
def test_bias_of_any_layout(rng, layout):
    x, weight, bias = operands(rng, (2, 4, 7, 6), (6, 4, 3, 3), np.float32)
    assert_close(F.conv2d(x, weight, layout(bias)), reference.conv2d(x, weight, bias), np.float32, scale=10)


@pytest.mark.parametrize("x_order", ORDERS)
@pytest.mark.parametrize("dy_order", ORDERS)
def test_dy_may_lie_in_the_other_order(rng, x_order, dy_order):
    x, weight, _ = operands(rng, (2, 4, 6, 5), (5, 4, 3, 3), np.float64)
    dy = rng.standard_normal((2, 5, 4, 3))
    want = reference.conv2d_backward(dy, x, weight)
    got = F.conv2d_backward(ORDERS[dy_order](dy), ORDERS[x_order](x), weight)
    for gradient, wanted in zip(got, want, strict=True):
        assert_close(gradient, wanted, np.float64)


@pytest.mark.parametrize("order", ORDERS)
def test_the_output_lies_as_x(rng, order):
    x, weight, _ = operands(rng, (2, 3, 6, 5), (4, 3, 3, 3), np.float32)
    y = F.conv2d(ORDERS[order](x), weight)
    assert y.strides == ORDERS[order](y).strides


@pytest.mark.parametrize("target", ["new", "residual"])
@pytest.mark.parametrize("order", ORDERS)
def test_out_is_written_and_returned(rng, order, target):
    x, weight, bias = operands(rng, (2, 4, 7, 6), (5, 4, 3, 3), np.float64)
    residual = rng.standard_normal((2, 5, 5, 4))
    want = reference.conv2d(x, weight, bias, residual=residual, relu=True)
    residual = ORDERS[order](residual)
    out = residual if target == "residual" else np.full_like(residual, np.nan)
    assert F.conv2d(ORDERS[order](x), weight, bias, residual=residual, relu=True, out=out) is out
    assert_close(out, want, np.float64)


def test_out_unaligned_is_written_or_refused(rng):
    x, weight, _ = operands(rng, (2, 3, 5, 5), (3, 3, 1, 1), np.float64)
    out = unaligned(np.zeros_like(x))
    try:
        F.conv2d(x, weight, out=out)
    except ArgumentError:
        return
    assert_close(out, reference.conv2d(x, weight), np.float64)


@pytest.mark.parametrize("wrong", [channels_last, strided, np.asfortranarray])
def test_out_in_another_memory_order_is_refused(rng, wrong):
    x, weight, _ = operands(rng, (2, 3, 6, 5), (4, 3, 1, 1), np.float64)
    with pytest.raises(ArgumentError, match="dense in the memory order of x"):
        F.conv2d(x, weight, out=wrong(np.empty((2, 4, 6, 5))))


@pytest.mark.parametrize("overlapped", ["x", "residual"])
def test_out_overlapping_an_operand_in_part_is_refused(overlapped):
    memory = np.zeros(60)
    arrays = {name: np.ones((2, 1, 5, 5)) for name in ("x", "residual")} | {overlapped: memory[:50].reshape(2, 1, 5, 5)}
    with pytest.raises(ArgumentError, match=rf"out must be ({overlapped} itself or )?apart from .*got an overlap"):
        F.conv2d(arrays["x"], np.ones((1, 1, 1, 1)), residual=arrays["residual"], out=memory[10:].reshape(2, 1, 5, 5))


def test_out_may_not_be_x():
    x = np.ones((2, 1, 5, 5))
    with pytest.raises(ArgumentError, match="out must be apart from x"):
        F.conv2d(x, np.ones((1, 1, 1, 1)), out=x)


# Corners


@pytest.mark.parametrize("order", ORDERS)
def test_an_empty_batch_has_zero_gradients(order):
    x, weight = ORDERS[order](np.zeros((0, 3, 6, 5), np.float32)), np.ones((4, 3, 3, 3), np.float32)
    y = F.conv2d(x, weight, np.ones(4, np.float32))
    assert (y.shape, y.dtype) == ((0, 4, 4, 3), np.float32)
    dx, dweight, dbias = F.conv2d_backward(y, x, weight)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dweight, np.zeros_like(weight))
    np.testing.assert_array_equal(dbias, np.zeros(4))


@pytest.mark.parametrize(("channels_out", "channels", "kernel"), [(4, 0, 3), (4, 2, 0), (0, 2, 3)])
def test_an_empty_weight_is_refused(channels_out, channels, kernel):
    x, weight = np.ones((2, channels, 6, 5)), np.ones((channels_out, channels, kernel, kernel))
    dy = np.ones((2, channels_out, 7 - kernel, 6 - kernel))
    with pytest.raises(ShapeError, match="weight must not be empty"):
        F.conv2d(x, weight)
    with pytest.raises(ShapeError, match="weight must not be empty"):
        F.conv2d_backward(dy, x, weight)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("order", ORDERS)
def test_nan_and_inf_reach_the_windows_that_hold_them_only(rng, order, bad):
    x, weight, bias = operands(rng, (2, 3, 7, 6), (5, 3, 3, 3), np.float32)
    want = F.conv2d(ORDERS[order](x), weight, bias, padding=1)
    x[1, 2, 3, 4] = bad
    y = F.conv2d(ORDERS[order](x), weight, bias, padding=1)
    touched = np.zeros(want.shape, bool)
    touched[1, :, 2:5, 3:6] = True
    np.testing.assert_array_equal(np.isfinite(y), ~touched)
    np.testing.assert_array_equal(y[~touched], want[~touched])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("image", [0, 13, 28])
def test_nan_and_inf_stay_in_their_image_among_others_side_by_side(rng, image, bad):
    x, weight, bias = operands(rng, (29, 3, 7, 6), (5, 3, 3, 3), np.float32)
    dy = rng.standard_normal((29, 5, 7, 6)).astype(np.float32)
    want, want_dx = F.conv2d(x, weight, bias, padding=1), F.conv2d_backward(dy, x, weight, padding=1)[0]
    x[image, 2, 3, 4] = dy[image, 1, 3, 4] = bad
    y, (dx, dweight, _) = F.conv2d(x, weight, bias, padding=1), F.conv2d_backward(dy, x, weight, padding=1)
    touched = np.zeros(want.shape, bool)
    touched[image, :, 2:5, 3:6] = True
    for array, wanted in ((y, want), (dx, want_dx)):
        where = touched[:, : array.shape[1]]
        np.testing.assert_array_equal(np.isfinite(array), ~where)
        np.testing.assert_array_equal(array[~where], wanted[~where])
    assert not np.isfinite(dweight[1]).any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("images", [29, 32])
def test_bias_residual_and_relu_of_images_side_by_side(rng, images, relu):
    x, weight, bias = operands(rng, (images, 3, 7, 6), (5, 3, 3, 3), np.float32)
    out = rng.standard_normal((images, 5, 5, 4)).astype(np.float32)
    want = reference.conv2d(x, weight, bias, residual=out, relu=relu)
    assert_close(F.conv2d(x, weight, bias, residual=out, relu=relu), want, np.float32, scale=10)
    assert_close(F.conv2d(x, weight, bias, residual=out, relu=relu, out=out), want, np.float32, scale=10)


def test_few_channels_into_many_go_by_patches_where_the_output_is_channels_last():
    x, window = np.zeros((2, 3, 9, 9), np.float32), Window((7, 7), (2, 2), (3, 3), (1, 1))
    assert engine_for(x, (64, 3, 7, 7), window, 1, (2, 64, 5, 5)) is conv_patches
    assert engine_for(channels_last(x), (64, 3, 7, 7), window, 1, (2, 64, 5, 5), follows=True) is conv_patches
    assert engine_for(x, (64, 3, 7, 7), window, 1, (2, 64, 5, 5), follows=True) is not conv_patches
    assert engine_for(x, (8, 3, 7, 7), window, 1, (2, 8, 5, 5)) is conv_planes


def test_small_images_go_side_by_side_where_the_batch_fills_blocks():
    weight, y_shape, window = (5, 3, 3, 3), (5, 8, 6), Window((3, 3), (1, 1), (0, 0), (1, 1))
    few, many = np.zeros((2, 3, 10, 8), np.float32), np.zeros((32, 3, 10, 8), np.float32)
    large = np.zeros((32, 3, 300, 300), np.float32)
    assert engine_for(many, weight, window, 1, (32, *y_shape), follows=True) is conv_lanes
    assert engine_for(few, weight, window, 1, (2, *y_shape), follows=True) is conv_planes
    lanes = VECTOR_BYTES // 4
    assert engine_for(many[:lanes], weight, window, 1, (lanes, *y_shape), follows=True) is conv_lanes
    assert engine_for(many[: lanes - 1], weight, window, 1, (lanes - 1, *y_shape), follows=True) is conv_planes
    assert engine_for(large, weight, window, 1, (32, 5, 298, 298), follows=True) is conv_planes
    assert engine_for(channels_last(many), weight, window, 1, (32, *y_shape), follows=True) is conv_planes


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_pass_a_relu_and_the_gradients(rng, bad):
    x, weight, bias = operands(rng, (2, 3, 7, 6), (5, 3, 3, 3), np.float32)
    dy = rng.standard_normal((2, 5, 5, 4)).astype(np.float32)
    bias[1] = bad
    y = F.conv2d(x, weight, bias, relu=True)
    np.testing.assert_array_equal(np.isfinite(y).all(axis=(0, 2, 3)), np.arange(5) != 1)
    assert not np.isfinite(y[:, 1]).any()
    dy[0, 3, 2, 2] = bad
    dx, dweight, dbias = F.conv2d_backward(dy, x, weight)
    touched = np.zeros(x.shape, bool)
    touched[0, :, 2:5, 2:5] = True
    np.testing.assert_array_equal(np.isfinite(dx), ~touched)
    np.testing.assert_array_equal(np.isfinite(dweight).all(axis=(1, 2, 3)), np.arange(5) != 3)
    np.testing.assert_array_equal(np.isfinite(dbias), np.arange(5) != 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [(0, 1, 0, 0), (1, 1, 2, 0), (0, 1, 6, 5), (1, 1, 4, 5)], ids=str)
@pytest.mark.parametrize("case", ["plain", "groups", "stride"])
def test_nan_and_inf_in_x_reach_the_weights_they_meet(rng, case, place, bad):
    weight_shape, options = {
        "plain": ((5, 4, 3, 3), {}),
        "groups": ((6, 2, 3, 3), {"groups": 2, "padding": 1}),
        "stride": ((5, 4, 3, 3), {"stride": 2, "padding": 1}),
    }[case]
    x, weight, _ = operands(rng, (2, 4, 7, 6), weight_shape, np.float32)
    dy = rng.standard_normal(reference.conv2d(x, weight, **options).shape).astype(np.float32)
    x[place] = bad
    _, dweight, dbias = F.conv2d_backward(dy, x, weight, **options)
    _, want, _ = reference.conv2d_backward(dy, x, weight, **options)
    assert not np.isfinite(dweight[~np.isfinite(want)]).any()
    assert np.isfinite(dbias).all()


@pytest.mark.parametrize("order", ORDERS)
def test_dbias_is_summed_in_float64(rng, order):
    x, weight, _ = operands(rng, (3, 2, 60, 70), (3, 2, 1, 1), np.float32)
    dy = rng.standard_normal((3, 3, 60, 70)).astype(np.float32)
    _, _, dbias = F.conv2d_backward(ORDERS[order](dy), ORDERS[order](x), weight)
    np.testing.assert_array_equal(dbias, dy.sum(axis=(0, 2, 3), dtype=np.float64).astype(np.float32))
