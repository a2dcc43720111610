"""A linear layer, batch norm and an activation as one unit: as one after the other."""

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
from fastbn.functional.linear_bn import suits, unit_backward, unit_forward

TOL = {np.float32: 2e-5, np.float64: 1e-11}
ACTIVATIONS = {None: nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "sigmoid": nn.Sigmoid}

# rows, inputs, outputs: of tiles and vectors whole and not, one of each
SIZES = [(28, 64, 32), (29, 70, 45), (2, 1, 1), (3, 5, 40), (200, 33, 17)]


def operands(sizes, dtype):
    rows, inputs, outputs = sizes
    rng = np.random.default_rng(0)
    shapes = (rows, inputs), (outputs, inputs), *[(outputs,)] * 3
    x, weight, bias, gamma, beta = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    running = [rng.standard_normal(outputs).astype(dtype), (1 + rng.random(outputs)).astype(dtype)]
    return x, weight, bias, gamma, beta, running


def unit(x, weight, bias, gamma, beta, running, activation, training=True):
    assert suits(x, weight)
    return unit_forward(x, weight, bias, gamma, beta, (*running, 0.1, 1e-5), training, activation)


def twin(x, weight, bias, gamma, beta, running, activation, training, dy):
    """y, gradients and running statistics, in float64, by the plain formulas."""
    x, weight, bias, gamma, beta, mean, var = (
        array.astype(np.float64) for array in (x, weight, bias, gamma, beta, *running)
    )
    z = reference.linear(x, weight, bias)
    u, saved = F.batch_norm_forward(z, gamma, beta, running_mean=mean, running_var=var, training=training)
    act = ACTIVATIONS[activation]()
    y = act(u)
    dz, dgamma, dbeta, _ = F.batch_norm_backward(act.backward(dy.astype(np.float64)), saved)
    dbias = np.zeros_like(dbeta) if training else dz.sum(axis=0)
    return y, (dz @ weight, dz.T @ x, dbias, dgamma, dbeta), (mean, var)


def assert_near(got, want, dtype):
    assert got.dtype == dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=TOL[dtype] * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_unit_is_its_layers(sizes, activation, training, dtype):
    given = operands(sizes, dtype)
    if sizes[0] == 2 and training:
        given[0][1] += 1  # two values that are far apart
    running = [array.copy() for array in given[5]]
    y, saved = unit(*given[:5], running, activation, training)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    want, gradients, moved = twin(*given, activation, training, dy)
    assert_near(y, want, dtype)
    for got, expected in zip(unit_backward(dy, saved), gradients, strict=True):
        assert_near(got, expected, dtype)
    for got, expected in zip(running, moved, strict=True):
        assert_near(got, expected, dtype)
    dx, dweight, *_ = unit_backward(np.asfortranarray(dy), saved, need_dx=False)
    assert dx is None
    np.testing.assert_array_equal(dweight, unit_backward(dy, saved)[1])


def test_what_a_layer_does_not_have():
    x, weight, *_ = operands(SIZES[1], np.float32)
    y, saved = unit_forward(x, weight, None, None, None, (None, None, 0.1, 1e-5), True, "relu")
    ones, zeros = np.ones(45, np.float32), np.zeros(45, np.float32)
    same, other = unit(x, weight, zeros, ones, zeros, [zeros.copy(), ones.copy()], "relu")
    np.testing.assert_array_equal(y, same)
    dx, dweight, *rest = unit_backward(y, saved)
    assert rest == [None] * 3
    np.testing.assert_array_equal(dx, unit_backward(y, other)[0])
    np.testing.assert_array_equal(dweight, unit_backward(y, other)[1])


def test_the_bits_do_not_depend_on_the_threads():
    found = []
    for threads in (1, 2, 7):
        fastbn.set_num_threads(threads)
        given = operands((300, 65, 50), np.float32)
        y, saved = unit(*given, "sigmoid")
        found.append([y, *unit_backward(y, saved), *given[5]])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_do_not_vanish(bad):
    given = operands(SIZES[0], np.float32)
    given[0][0, 0] = bad
    y, saved = unit(*given, "relu")
    assert np.isnan(y).all()  # the mean of every channel is
    assert np.isnan(unit_backward(np.ones_like(y), saved)[1]).all()
    y, saved = unit(*operands(SIZES[0], np.float32), "sigmoid")
    dy = np.ones_like(y)
    dy[0, 3] = bad
    dx, dweight, _, dgamma, _ = unit_backward(dy, saved)
    assert not np.isfinite(dx).any()
    assert np.isfinite(dweight).all(axis=1).tolist() == [c != 3 for c in range(32)]
    assert np.isfinite(dgamma).tolist() == [c != 3 for c in range(32)]


def test_a_mean_far_above_the_spread_and_a_channel_without_any():
    x, weight, bias, gamma, beta, running = operands((64, 16, 8), np.float32)
    bias += 1e4
    weight[2] = 0
    y, _ = unit(x, weight, bias, gamma, beta, running, None)
    z = F.linear(x, weight, bias).astype(np.float64)
    want = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5) * gamma + beta
    np.testing.assert_allclose(y, want, atol=1e-5)
    np.testing.assert_array_equal(y[:, 2], np.full(64, beta[2]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.permutations(range(29)))
def test_the_order_of_the_samples_does_not_matter(seed, order):
    x, *rest, running = operands(SIZES[1], np.float64)
    y, saved = unit(x, *rest, [array.copy() for array in running], "sigmoid")
    other, turned = unit(x[order], *rest, [array.copy() for array in running], "sigmoid")
    np.testing.assert_allclose(other, y[order], rtol=1e-10)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    for got, want in zip(unit_backward(dy[order], turned)[1:], unit_backward(dy, saved)[1:], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)


def test_what_does_not_suit():
    x, weight, bias, gamma, beta, running = operands(SIZES[0], np.float32)
    assert suits(x, weight)
    assert not suits(x[:1], weight)  # PyTorch's error, by the layers
    assert not suits(x.astype(np.float64), weight)
    assert not suits(x[:, :1], weight)
    assert not suits(x[None], weight)
    assert not suits(np.zeros((1 << 12, 64), np.float32), np.zeros((1 << 12, 64), np.float32))
    with pytest.raises(ArgumentError, match="must not be negative"):
        unit_forward(x, weight, bias, gamma, beta, (running[0], -running[1], 0.1, 1e-5), False)
    with pytest.raises(ShapeError, match="one entry per channel"):
        unit_forward(x, weight, bias, gamma[1:], beta, (*running, 0.1, 1e-5), True)
    y, saved = unit(x, weight, bias, gamma, beta, running, None)
    with pytest.raises(ShapeError, match="as the output"):
        unit_backward(y[1:], saved)
    with pytest.raises(DtypeError, match="must be float32"):
        unit_backward(y.astype(np.float64), saved)


NETWORKS = {
    "hidden layers": lambda: models.mlp(),
    "two activations": lambda: nn.Sequential(nn.Linear(20, 9), nn.BatchNorm1d(9), nn.ReLU6(), nn.Sigmoid()),
    "no activation": lambda: nn.Sequential(nn.Linear(20, 9, bias=False), nn.BatchNorm1d(9), nn.Linear(9, 3)),
    "frozen": lambda: nn.Sequential(nn.Linear(20, 9), nn.BatchNorm1d(9, affine=False, frozen=True), nn.ReLU()),
    "no running statistics": lambda: nn.Sequential(nn.Linear(20, 9), nn.BatchNorm1d(9, track_running_stats=False)),
    "mean of all batches": lambda: nn.Sequential(nn.Linear(20, 9), nn.BatchNorm1d(9, momentum=None), nn.ReLU()),
}


@pytest.mark.parametrize("batch", [2, 50])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_a_fused_network_is_the_same(network, batch):
    fastbn.manual_seed(0)
    plain = NETWORKS[network]().double()
    fused = fastbn.fuse(copy.deepcopy(plain))
    rng = np.random.default_rng(0)
    features = next(plain.parameters()).shape[1]
    for _ in range(2):
        x = rng.standard_normal((batch, features))
        want, y = plain(x), fused(x)
        np.testing.assert_allclose(y, want, rtol=1e-9, atol=1e-9)
        dy = rng.standard_normal(y.shape)
        np.testing.assert_allclose(fused.backward(dy), plain.backward(dy), rtol=1e-8, atol=1e-8)
        for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
            np.testing.assert_allclose(b.grad, a.grad, rtol=1e-8, atol=1e-8)
        for a, b in zip(plain.buffers(), fused.buffers(), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-9)
    np.testing.assert_allclose(fused.eval()(x), plain.eval()(x), rtol=1e-9, atol=1e-9)


def test_what_does_not_suit_passes_through_the_layers():
    fused = fastbn.fuse(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()))
    with pytest.raises(ShapeError, match="more than 1 value per channel"):
        fused(np.ones((1, 4), np.float32))
    fused[1].freeze()
    y = fused(np.ones((1, 4), np.float32))
    assert fused.backward(y).shape == (1, 4)
    assert fused.backward(fused(np.ones((5, 4), np.float32)) * 0, need_dx=False) is None


def test_a_hook_keeps_a_layer_apart():
    fused = fastbn.fuse(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()))
    seen = []
    fused[1].register_forward_hook(lambda module, x, y: seen.append(y.shape))
    fused(np.ones((5, 4), np.float32))
    assert seen == [(5, 3)]


def test_torch_agrees():
    torch = pytest.importorskip("torch")
    x, weight, bias, gamma, beta, running = operands((50, 30, 20), np.float32)
    tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, weight, bias, gamma, beta)]
    mean, var = (torch.from_numpy(array.copy()) for array in running)
    t = torch.nn.functional
    want = torch.sigmoid(t.batch_norm(t.linear(*tensors[:3]), mean, var, *tensors[3:], training=True))
    y, saved = unit(x, weight, bias, gamma, beta, running, "sigmoid")
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)
    want.backward(torch.from_numpy(dy))
    np.testing.assert_allclose(y, want.detach(), rtol=1e-5, atol=1e-5)
    for got, tensor in zip(unit_backward(dy, saved), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad, rtol=1e-4, atol=1e-4 * float(tensor.grad.abs().max()) + 1e-4)
    np.testing.assert_allclose(running[1], var, rtol=1e-5)
