"""Convolution, batch norm, activation and average pooling of small images side by side: as one after the other."""

import copy

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import fastbn
from fastbn import functional as F
from fastbn import models, nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.functional.conv_bn_lanes import unit_backward, unit_forward
from fastbn.functional.conv_geometry import Window
from fastbn.functional.conv_lanes import backward_tiles
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels._simd_lanes import LANE_VECTORS
from fastbn.kernels.lanes import TILE_FIELDS

TOL = {np.float32: 2e-5, np.float64: 1e-11}
ACTIVATIONS = {None: nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid}

# x without its images, weight, stride, padding, dilation, groups; activation and pooling.
CASES = {
    "first of LeNet": ((1, 14, 14), (6, 1, 5, 5), 1, 0, 1, 1, "sigmoid", (2, 2)),
    "more outputs than rows of a tile": ((6, 9, 8), (16, 6, 3, 3), 1, 1, 1, 1, "sigmoid", (2, 2)),
    "windows that leave pixels out": ((3, 9, 11), (5, 3, 3, 3), 1, 0, 1, 1, "relu", (2, 3)),
    "no pooling": ((3, 7, 6), (4, 3, 3, 2), 1, 1, 1, 1, "relu6", (1, 1)),
    "no activation": ((2, 8, 8), (7, 2, 1, 1), 1, 0, 1, 1, None, (4, 4)),
    "groups": ((4, 9, 7), (6, 2, 3, 3), 1, 1, 1, 2, "relu", (1, 2)),
    "stride": ((3, 11, 9), (4, 3, 3, 3), 2, 1, 1, 1, "sigmoid", (2, 1)),
    "stride larger than the kernel": ((2, 9, 9), (3, 2, 1, 1), 3, 0, 1, 1, None, (1, 1)),
    "dilation": ((3, 10, 10), (8, 3, 3, 3), 1, 2, 2, 1, "sigmoid", (3, 3)),
}


def images(lanes, ragged):
    return 2 * lanes + (lanes // 2 + 1 if ragged else 0)


def operands(case, dtype, ragged=False):
    x_shape, w_shape, *sizes, activation, pool = CASES[case]
    rng = np.random.default_rng(0)
    n = images(VECTOR_BYTES // np.dtype(dtype).itemsize, ragged)
    arrays = [rng.standard_normal(shape) for shape in ((n, *x_shape), w_shape, *[(w_shape[0],)] * 4)]
    running = [rng.standard_normal(w_shape[0]), 1 + rng.random(w_shape[0])]
    x, weight, bias, gamma, beta, _ = (array.astype(dtype) for array in arrays)
    return x, weight, bias, tuple(sizes), gamma, beta, [array.astype(dtype) for array in running], activation, pool


def unit(x, weight, bias, sizes, gamma, beta, running, activation, pool, training=True):
    found = unit_forward(x, weight, bias, *sizes, gamma, beta, (*running, 0.1, 1e-5), training, activation, pool)
    assert found is not None
    return found


def twin(x, weight, bias, sizes, gamma, beta, running, activation, pool, training, dy):
    """y, gradients and running statistics, in float64, by the plain formulas."""
    x, weight, bias, gamma, beta, mean, var = (
        None if array is None else array.astype(np.float64) for array in (x, weight, bias, gamma, beta, *running)
    )
    z = reference.conv2d(x, weight, bias, *sizes)
    u, saved = F.batch_norm_forward(z, gamma, beta, running_mean=mean, running_var=var, training=training)
    act = ACTIVATIONS[activation]()
    s = act(u)
    y = reference.avg_pool2d(s, pool)
    du = act.backward(reference.avg_pool2d_backward(dy.astype(np.float64), s.shape, pool))
    dz, dgamma, dbeta, _ = F.batch_norm_backward(du, saved)
    dx, dweight, dbias = reference.conv2d_backward(dz, x, weight, *sizes)
    return y, (dx, dweight, np.zeros_like(dbias) if training else dbias, dgamma, dbeta), (mean, var)


def assert_near(got, want, dtype):
    assert got.dtype == dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOL[dtype] * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_unit_is_its_layers(case, training, ragged, dtype):
    given = operands(case, dtype, ragged)
    running = [array.copy() for array in given[6]]
    y, saved = unit(*given[:6], running, *given[7:], training=training)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    want, gradients, moved = twin(*given, training, dy)
    assert_near(y, want, dtype)
    assert y.flags.c_contiguous
    for got, expected in zip(unit_backward(dy, saved), gradients, strict=True):
        assert_near(got, expected, dtype)
    for got, expected in zip(running, moved, strict=True):
        assert_near(got, expected, dtype)
    dx, dweight, *_ = unit_backward(dy, saved, need_dx=False)
    assert dx is None
    np.testing.assert_array_equal(dweight, unit_backward(dy, saved)[1])


def test_what_a_layer_does_not_have():
    x, weight, _, sizes, *_, activation, pool = operands("first of LeNet", np.float32)
    y, saved = unit_forward(x, weight, None, *sizes, None, None, (None, None, 0.1, 1e-5), True, activation, pool)
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    same, other = unit(x, weight, zeros, sizes, ones, zeros, [zeros.copy(), ones.copy()], activation, pool)
    np.testing.assert_array_equal(y, same)
    dx, dweight, dbias, dgamma, dbeta = unit_backward(y, saved)
    assert dbias is dgamma is dbeta is None
    np.testing.assert_array_equal(dx, unit_backward(y, other)[0])
    np.testing.assert_array_equal(dweight, unit_backward(y, other)[1])


@pytest.mark.parametrize("case", ["first of LeNet", "groups"])
def test_the_bits_do_not_depend_on_the_threads(case):
    found = []
    for threads in (1, 2, 7):
        fastbn.set_num_threads(threads)
        given = operands(case, np.float32, ragged=True)
        y, saved = unit(*given)
        found.append([y, *unit_backward(y, saved), *given[6]])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_do_not_vanish(bad):
    given = operands("more outputs than rows of a tile", np.float32)
    given[0][0, 0, 4, 4] = bad
    y, saved = unit(*given)
    assert np.isnan(y).all()  # the mean of every channel is
    assert np.isnan(unit_backward(np.ones_like(y), saved)[1]).all()
    clean = operands("more outputs than rows of a tile", np.float32)
    y, saved = unit(*clean)
    dy = np.ones_like(y)
    dy[0, 3, 0, 0] = np.nan
    _, dweight, _, dgamma, _ = unit_backward(dy, saved)
    assert np.isnan(dweight[3]).all()
    assert np.isfinite(np.delete(dweight, 3, axis=0)).all()
    assert np.isnan(dgamma).tolist() == [c == 3 for c in range(16)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(list(CASES)))
def test_the_gradient_to_x_is_a_derivative(seed, case):
    """By the slope along a random direction, of smooth activations."""
    x, weight, bias, sizes, gamma, beta, running, activation, pool = operands(case, np.float64)
    activation = "sigmoid" if activation else None
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(x.shape)

    def run(x):
        fresh = [array.copy() for array in running]
        return unit(x, weight, bias, sizes, gamma, beta, fresh, activation, pool)

    y, saved = run(x)
    dy = rng.standard_normal(y.shape)
    slope = ((run(x + 1e-6 * direction)[0] - run(x - 1e-6 * direction)[0]) * dy).sum() / 2e-6
    np.testing.assert_allclose((unit_backward(dy, saved)[0] * direction).sum(), slope, rtol=1e-5, atol=1e-5)


def test_what_does_not_suit_is_left_to_others():
    x, weight, bias, sizes, gamma, beta, running, *_ = operands("first of LeNet", np.float32)
    rest = *sizes, gamma, beta, (*running, 0.1, 1e-5), True
    assert unit_forward(x[:2], weight, bias, *rest) is None
    assert unit_forward(x[:0], weight, bias, *rest) is None
    assert unit_forward(x, weight, bias, *rest, "sigmoid", (11, 11)) is None
    with pytest.raises(ShapeError, match="must have shape"):
        unit_forward(np.repeat(x, 2, axis=1), weight, bias, *rest)
    with pytest.raises(DtypeError, match="must be float32"):
        unit_forward(x, weight.astype(np.float64), bias, *rest)
    with pytest.raises(ArgumentError, match="must not be negative"):
        unit_forward(x, weight, bias, *rest[:6], (running[0], -running[1], 0.1, 1e-5), False)
    y, saved = unit_forward(x, weight, bias, *rest)
    with pytest.raises(ShapeError, match="as the output"):
        unit_backward(y[1:], saved)


def few(activation, pool=None, **options):
    layers = [nn.Conv2d(3, 5, 3, **options), nn.BatchNorm2d(5), activation()]
    return nn.Sequential(*layers, *([pool] if pool else []), nn.Conv2d(5, 4, 2), nn.BatchNorm2d(4))


NETWORKS = {
    "LeNet": lambda: models.lenet(in_channels=3),
    "overlapping windows": lambda: few(nn.Sigmoid, nn.AvgPool2d(3, 2)),
    "padded windows": lambda: few(nn.ReLU, nn.AvgPool2d(2, padding=1)),
    "two poolings": lambda: nn.Sequential(few(nn.ReLU6, nn.AvgPool2d((2, 1))), nn.AvgPool2d(2), nn.Sigmoid()),
    "pooling before the activation": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AvgPool2d(2), nn.ReLU(), nn.MaxPool2d(2)
    ),
    "frozen": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False, frozen=True), nn.Sigmoid(), nn.AvgPool2d(2)
    ),
    "residual": lambda: nn.Residual(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), activation=nn.ReLU()),
}


@pytest.mark.parametrize("batch", [3, 24])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_a_fused_network_is_the_same(network, batch):
    fastbn.manual_seed(0)
    plain = NETWORKS[network]().double()
    fused = fastbn.fuse(copy.deepcopy(plain))
    rng = np.random.default_rng(0)
    for _ in range(2):
        x = rng.standard_normal((batch, 3, 28, 28))
        want, y = plain(x), fused(x)
        np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)
        dy = rng.standard_normal(y.shape)
        np.testing.assert_allclose(fused.backward(dy), plain.backward(dy), rtol=1e-8, atol=1e-8)
        for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
            np.testing.assert_allclose(b.grad, a.grad, rtol=1e-8, atol=1e-8)
        for a, b in zip(plain.buffers(), fused.buffers(), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9)
    np.testing.assert_allclose(fused.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)


def test_little_of_the_padding_is_multiplied():
    """Of LeNet's second gradient to x, 1600 products a pair of channels: 2400 by whole rows of pixels and taps."""
    window = Window((5, 5), (1, 1), (0, 0), (1, 1))
    tiles = backward_tiles((16, 6, 5, 5), 1, (12, 12), (8, 8), window, 4)[2].reshape(-1, TILE_FIELDS)
    lines, runs = tiles[:, 4], tiles[:, 6]
    assert 1600 <= (lines * runs).sum() * LANE_VECTORS / 16 <= 2000


def test_torch_agrees():
    torch = pytest.importorskip("torch")
    x, weight, bias, sizes, gamma, beta, running, _, pool = operands("first of LeNet", np.float32)
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, weight, bias, gamma, beta)]
    mean, var = (torch.from_numpy(array.copy()) for array in running)
    t = torch.nn.functional
    normed = t.batch_norm(t.conv2d(*tensors[:3], *sizes), mean, var, *tensors[3:], training=True)
    want = t.avg_pool2d(torch.sigmoid(normed), pool)
    y, saved = unit(x, weight, bias, sizes, gamma, beta, running, "sigmoid", pool)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    want.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(y, want.detach(), rtol=1e-5, atol=1e-5)
    for got, tensor in zip(unit_backward(dy, saved), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad, rtol=1e-4, atol=1e-4 * float(tensor.grad.abs().max()) + 1e-4)
    np.testing.assert_allclose(running[1], var, rtol=1e-5)
