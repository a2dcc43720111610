"""Every layer but batch norm against the reference: both passes, whole networks, arguments and initial values."""

import copy
import math

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close

from fastbn import manual_seed, nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError, StateError

IMAGE = (2, 4, 7, 6)


@pytest.fixture(autouse=True)
def _seed():
    manual_seed(0)


def weights(layer):
    return layer.weight.data, None if layer.bias is None else layer.bias.data


def conv_case(kind=nn.Conv2d, shape=IMAGE, **options):
    layer = kind(4, 6, **options)
    places = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    return (
        layer,
        shape,
        lambda x: reference.conv(x, *weights(layer), **places),
        lambda dy, x: reference.conv_backward(dy, x, layer.weight.data, **places),
    )


def linear_case(shape, **options):
    layer = nn.Linear(shape[-1], 3, **options)
    return (
        layer,
        shape,
        lambda x: reference.linear(x, *weights(layer)),
        lambda dy, x: reference.linear_backward(dy, x, layer.weight.data),
    )


def plain_case(layer, forward, backward, shape=IMAGE):
    return layer, shape, forward, lambda dy, x: (backward(dy, x),)


def max_pool_case(**options):
    return plain_case(
        nn.MaxPool2d(**options),
        lambda x: reference.max_pool2d(x, **options),
        lambda dy, x: reference.max_pool2d_backward(dy, x, **options),
    )


def avg_pool_case(**options):
    return plain_case(
        nn.AvgPool2d(**options),
        lambda x: reference.avg_pool2d(x, **options),
        lambda dy, x: reference.avg_pool2d_backward(dy, x.shape, **options),
    )


manual_seed(0)
CASES = {
    "conv": conv_case(kernel_size=3),
    "conv strided": conv_case(kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), bias=False),
    "conv grouped": conv_case(kernel_size=3, padding="same", dilation=(2, 1), groups=2),
    "conv 1x1": conv_case(kernel_size=1, padding="valid"),
    "conv 1d": conv_case(nn.Conv1d, (2, 4, 9), kernel_size=3, stride=2, padding=1),
    "conv 1d, grouped": conv_case(nn.Conv1d, (2, 4, 9), kernel_size=(3,), padding="same", groups=2, bias=False),
    "conv 3d": conv_case(nn.Conv3d, (2, 4, 5, 4, 6), kernel_size=3, padding=1),
    "conv 3d, strided": conv_case(nn.Conv3d, (2, 4, 5, 4, 6), kernel_size=(3, 2, 1), stride=(2, 1, 3), bias=False),
    "linear": linear_case((5, 4)),
    "linear 3-d": linear_case((2, 5, 4), bias=False),
    "relu": plain_case(nn.ReLU(), reference.relu, reference.relu_backward),
    "relu6": plain_case(nn.ReLU6(), reference.relu6, reference.relu6_backward),
    "sigmoid": plain_case(nn.Sigmoid(), reference.sigmoid, reference.sigmoid_backward),
    "max pool": max_pool_case(kernel_size=2),
    "max pool ceil": max_pool_case(kernel_size=(3, 2), stride=2, padding=1, dilation=(1, 2), ceil_mode=True),
    "avg pool": avg_pool_case(kernel_size=2),
    "avg pool real": avg_pool_case(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    "adaptive avg pool": plain_case(
        nn.AdaptiveAvgPool2d(1),
        lambda x: x.mean(axis=(2, 3), keepdims=True),
        lambda dy, x: np.broadcast_to(dy / (x.shape[2] * x.shape[3]), x.shape),
    ),
    "flatten": plain_case(nn.Flatten(), lambda x: x.reshape(len(x), -1), lambda dy, x: dy.reshape(x.shape)),
    "identity": plain_case(nn.Identity(), lambda x: x, lambda dy, x: dy),
    "dropout of nothing": plain_case(nn.Dropout(0), lambda x: x, lambda dy, x: dy),
    "dropout of all": plain_case(nn.Dropout(1), np.zeros_like, lambda dy, x: np.zeros_like(x)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_are_the_references(name, dtype, order, rng):
    layer, shape, forward, backward = CASES[name]
    layer.double() if dtype is np.float64 else layer.float()
    x = ORDERS[order](rng.normal(size=shape).astype(dtype))
    y = layer(x)
    assert y.dtype == dtype
    assert_close(y, forward(x), dtype)
    dy = rng.normal(size=y.shape).astype(dtype)
    dx = layer.backward(dy)
    want_dx, *want = backward(dy, x)
    assert dx.dtype == dtype
    assert_close(dx, want_dx, dtype)
    for parameter, gradient in zip(layer.parameters(), want, strict=False):
        assert parameter.grad.dtype == dtype
        assert_close(parameter.grad, gradient, dtype, scale=10)


@pytest.mark.parametrize("name", CASES)
def test_without_dx_the_parameters_gradients_are_the_same(name, rng):
    layer, shape, *_ = CASES[name]
    layer = copy.deepcopy(layer).float()
    x = rng.normal(size=shape).astype(np.float32)
    dy = np.ones_like(layer(x))
    layer.backward(dy)
    want = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x)
    dx = layer.backward(dy, need_dx=False)
    assert dx is None or dx.shape == x.shape
    for parameter, gradient in zip(layer.parameters(), want, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)


def test_a_convolution_leaves_dx_out():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    assert model.backward(np.ones_like(model(np.ones((1, 1, 2, 2), np.float32))), need_dx=False) is None


# Whole networks


def downsampling_block(channels, out):
    body = {
        "conv1": nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(out),
        "act": nn.Sigmoid(),
        "conv2": nn.Conv2d(out, out, 3, padding=1),
    }
    shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=2), nn.BatchNorm2d(out))
    return nn.Residual(body, downsample=shortcut, activation=nn.ReLU())


def network():
    manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Residual(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.MaxPool2d(2),
        downsampling_block(3, 4),
        nn.AvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.BatchNorm1d(5),
        nn.Linear(5, 2),
    ).double()


def test_a_networks_gradients_are_finite_differences(rng):
    model = network()
    for parameter in model.parameters():
        parameter.data += 0.1 * rng.normal(size=parameter.shape)  # gamma 1 and beta 0 would hide mistakes
    x = rng.normal(size=(3, 2, 8, 8))
    dy = rng.normal(size=model(x).shape)
    dx = model.backward(dy)
    np.testing.assert_allclose(dx, reference.numerical_gradient(model, x, dy), rtol=1e-5, atol=1e-7)
    for name, parameter in model.named_parameters():
        values = parameter.data

        def of(candidate, parameter=parameter):
            parameter.data = candidate
            return model(x)

        want = reference.numerical_gradient(of, values, dy)
        parameter.data = values
        np.testing.assert_allclose(parameter.grad, want, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_networks_output_does_not_depend_on_the_memory_order(rng):
    model = network().float().eval()
    x = rng.normal(size=(3, 2, 8, 8)).astype(np.float32)
    assert_close(model(ORDERS["channels_last"](x)), model(x), np.float32)


def test_a_network_without_dx_has_the_same_gradients(rng):
    model = network().float()
    x = rng.normal(size=(3, 2, 8, 8)).astype(np.float32)
    dy = np.ones_like(model(x))
    model.backward(dy)
    want = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(x)
    assert model.backward(dy, need_dx=False) is None
    for parameter, gradient in zip(model.parameters(), want, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)


# Containers


def test_sequential_by_position_and_by_name():
    first, second = nn.ReLU(), nn.Sigmoid()
    model = nn.Sequential({"a": first, "b": second})
    assert [name for name, _ in model.chain()] == ["a", "b"]
    assert [name for name, _ in nn.Sequential(first, second).chain()] == ["0", "1"]
    assert len(model) == 2
    assert (model[0], model[-1]) == (first, second)
    assert list(model) == [first, second]
    x = np.array([[-1.0, 2.0]], np.float32)
    np.testing.assert_array_equal(model(x), second(first(x)))


def test_an_empty_sequential_is_the_identity():
    x = np.ones((1, 2), np.float32)
    assert nn.Sequential()(x) is x
    assert nn.Sequential().backward(x, need_dx=False) is x


@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("activation", [False, True])
def test_residual_is_its_formula(downsample, activation, rng):
    body, shortcut = nn.Linear(3, 3), nn.Linear(3, 3)
    block = nn.Residual(
        {"fc": body}, downsample=shortcut if downsample else None, activation=nn.ReLU() if activation else None
    )
    x, dy = rng.normal(size=(2, 4, 3)).astype(np.float32)
    total = reference.linear(x, *weights(body)) + (reference.linear(x, *weights(shortcut)) if downsample else x)
    assert_close(block(x), reference.relu(total) if activation else total, np.float32)
    g = reference.relu_backward(dy, total) if activation else dy
    dx, dweight, dbias = reference.linear_backward(g, x, body.weight.data)
    dx = dx + (reference.linear_backward(g, x, shortcut.weight.data)[0] if downsample else g)
    assert_close(block.backward(dy), dx, np.float32)
    assert_close(body.weight.grad, dweight, np.float32)
    assert_close(body.bias.grad, dbias, np.float32)
    if downsample:
        assert_close(shortcut.weight.grad, reference.linear_backward(g, x, shortcut.weight.data)[1], np.float32)


def test_residual_without_a_body_doubles():
    block = nn.Residual()
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(block(x), 2 * x)
    np.testing.assert_array_equal(block.backward(x), 2 * x)


def test_backward_leaves_the_gradient_it_is_given_alone(rng):
    model = nn.Sequential(nn.Residual(nn.Identity()), nn.Residual(nn.ReLU(), downsample=nn.Identity()), nn.Flatten())
    x, dy = rng.normal(size=(2, 4, 3)).astype(np.float32)
    kept = dy.copy()
    model(x)
    model.backward(dy)
    np.testing.assert_array_equal(dy, kept)


def test_flatten_is_in_logical_order_and_keeps_empty_batches():
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(nn.Flatten()(ORDERS["channels_last"](x)), np.arange(24)[None])
    assert np.shares_memory(nn.Flatten()(x), x)
    assert nn.Flatten()(np.empty((0, 2, 3), np.float32)).shape == (0, 6)
    assert nn.Flatten()(np.empty((2, 0, 3), np.float32)).shape == (2, 0)


# Refusals

BAD_ARGUMENTS = [
    (lambda: nn.Conv2d(0, 1, 1), ArgumentError, "Conv2d: in_channels must be at least 1, got 0"),
    (lambda: nn.Conv2d(1, 1.5, 1), DtypeError, "Conv2d: out_channels must be an integer, got float"),
    (lambda: nn.Conv2d(1, 1, 0), ArgumentError, "Conv2d: kernel_size must be at least 1, got 0"),
    (lambda: nn.Conv2d(1, 1, (1, 2, 3)), ArgumentError, "kernel_size must be an integer or a pair of them, got (1, 2"),
    (lambda: nn.Conv2d(1, 1, 1, stride=0), ArgumentError, "Conv2d: stride must be at least 1, got 0"),
    (lambda: nn.Conv2d(1, 1, 1, padding=-1), ArgumentError, "Conv2d: padding must be at least 0, got -1"),
    (lambda: nn.Conv2d(1, 1, 1, padding="full"), ArgumentError, "pair, 'valid' or 'same', got 'full'"),
    (lambda: nn.Conv2d(1, 1, 3, stride=2, padding="same"), ArgumentError, "padding 'same' must come with stride 1"),
    (lambda: nn.Conv2d(1, 1, 2, padding="same"), ArgumentError, "odd kernels, got stride (1, 1), kernel (2, 2)"),
    (lambda: nn.Conv2d(1, 1, 1, dilation=0), ArgumentError, "Conv2d: dilation must be at least 1, got 0"),
    (lambda: nn.Conv2d(4, 6, 1, groups=0), ArgumentError, "Conv2d: groups must be at least 1, got 0"),
    (lambda: nn.Conv2d(4, 6, 1, groups=4), ArgumentError, "groups must divide in_channels 4 and out_channels 6, got 4"),
    (
        lambda: nn.Conv1d(1, 1, (1, 2)),
        ArgumentError,
        "Conv1d: kernel_size must be an integer or a tuple of one, got (1",
    ),
    (lambda: nn.Conv3d(1, 1, 1, stride=(1, 2)), ArgumentError, "Conv3d: stride must be an integer or a triple of them"),
    (lambda: nn.Conv3d(1, 1, 1, padding="full"), ArgumentError, "integer, a triple, 'valid' or 'same', got 'full'"),
    (lambda: nn.Linear(0, 1), ArgumentError, "Linear: in_features must be at least 1, got 0"),
    (lambda: nn.Linear(1, "2"), DtypeError, "Linear: out_features must be an integer, got str"),
    (lambda: nn.Linear(True, 2), DtypeError, "Linear: in_features must be an integer, got bool"),
    (lambda: nn.AdaptiveAvgPool2d(2), ArgumentError, "output_size must be 1, got 2; use AvgPool2d"),
    (lambda: nn.AdaptiveAvgPool2d((1, 2)), ArgumentError, "output_size must be 1, got (1, 2)"),
    (lambda: nn.Sequential(nn.ReLU(), 5), DtypeError, "Sequential: 1 must be a Module, got int"),
    (lambda: nn.Sequential({"a.b": nn.ReLU()}), ArgumentError, "a name must be a word without dots, got 'a.b'"),
    (lambda: nn.Sequential({"": nn.ReLU()}), ArgumentError, "a name must be a word without dots, got ''"),
    (lambda: nn.Residual({"activation": nn.ReLU()}), ArgumentError, "must not be downsample or activation, got act"),
    (lambda: nn.Residual(nn.ReLU), DtypeError, "Residual: 0 must be a Module, got type"),
    (lambda: manual_seed(-1), ArgumentError, "manual_seed: seed must be at least 0, got -1"),
    (lambda: manual_seed(1.0), DtypeError, "manual_seed: seed must be an integer, got float"),
    (lambda: nn.init.kaiming_uniform_(np.ones((2, 2)), mode="x"), ArgumentError, "'fan_in' or 'fan_out', got 'x'"),
    (lambda: nn.init.kaiming_normal_(np.ones(2)), ArgumentError, "at least 2 axes, none empty, got shape (2,)"),
]


@pytest.mark.parametrize(("make", "error", "sentence"), BAD_ARGUMENTS, ids=[sentence for *_, sentence in BAD_ARGUMENTS])
def test_bad_arguments(make, error, sentence):
    with pytest.raises(error) as caught:
        make()
    assert sentence in str(caught.value)


ZEROS = np.zeros((2, 3, 4, 4), np.float32)
BAD_INPUTS = [
    (nn.Conv2d(4, 1, 1), ZEROS, ShapeError, "conv2d: weight must have shape"),
    (nn.Conv2d(3, 1, 5), ZEROS, ShapeError, "x must be at least as large as the dilated kernel"),
    (nn.Conv2d(3, 1, 1), ZEROS[0], ShapeError, "conv2d: x must have 4 axes (N, C, H, W), got shape (3, 4, 4)"),
    (nn.Conv2d(3, 1, 1), ZEROS.astype(np.float64), DtypeError, "weight must be float64 as x is, got float32"),
    (nn.Conv1d(3, 1, 1), ZEROS, ShapeError, "conv1d: x must have 3 axes (N, C, L), got shape (2, 3, 4, 4)"),
    (nn.Conv3d(3, 1, 1), ZEROS, ShapeError, "conv3d: x must have 5 axes (N, C, D, H, W), got shape (2, 3, 4, 4)"),
    (nn.Linear(5, 1), ZEROS, ShapeError, "linear: x must have shape (*, 5) to fit weight"),
    (nn.Linear(4, 1, matrix_only=True), ZEROS, ShapeError, "must have 2 axes (N, C) once a batch norm is folded in"),
    (nn.AdaptiveAvgPool2d(), ZEROS[0], ShapeError, "AdaptiveAvgPool2d: x must have 4 axes"),
    (nn.MaxPool2d(5), ZEROS, ShapeError, "max_pool2d: x must be at least as large as the window (5, 5), got (4, 4)"),
    (
        nn.MaxPool2d(2, padding=2),
        ZEROS,
        ArgumentError,
        "padding must be at most half of kernel_size (2, 2), got (2, 2)",
    ),
    (nn.AvgPool2d(0), ZEROS, ArgumentError, "avg_pool2d: kernel_size must be at least 1, got 0"),
    (nn.Residual(nn.Linear(4, 3)), ZEROS, ShapeError, "Residual: the shortcut must have shape (2, 3, 4, 3), as the bo"),
    (nn.ReLU(), [1.0], DtypeError, "relu: x must be a NumPy array, got list; use numpy.asarray"),
    (nn.AdaptiveAvgPool2d(), [1.0], DtypeError, "x must be a NumPy array, got list"),
]


@pytest.mark.parametrize(("layer", "x", "error", "sentence"), BAD_INPUTS, ids=[case[-1] for case in BAD_INPUTS])
def test_bad_inputs(layer, x, error, sentence):
    with pytest.raises(error) as caught:
        layer(x)
    assert sentence in str(caught.value)


# Losses


def test_cross_entropy_loss_is_the_reference_and_serves_one_backward(rng):
    criterion = nn.CrossEntropyLoss()
    logits, targets = rng.normal(size=(5, 3)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    assert_close(criterion(logits, targets), reference.cross_entropy(logits, targets), np.float32)
    assert_close(criterion.backward(), reference.cross_entropy_backward(logits, targets), np.float32)
    with pytest.raises(StateError, match=r"a call with logits and targets must come first, got none"):
        criterion.backward()


# Initial values


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(lambda: nn.Linear(100, 300), 100), (lambda: nn.Conv2d(12, 60, (3, 5), groups=2), 6 * 15)],
    ids=["linear", "conv"],
)
def test_initial_values_are_uniform_in_pytorchs_bounds(layer, fan_in):
    manual_seed(0)
    weight, bias = weights(layer())
    bound = 1 / math.sqrt(fan_in)
    for values in (weight, bias):
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
    np.testing.assert_allclose(weight.std(), bound / math.sqrt(3), rtol=0.05)
    np.testing.assert_allclose(weight.mean(), 0, atol=0.05 * bound)


def test_normal_values():
    manual_seed(0)
    array = np.empty((100, 200), np.float32)
    nn.init.normal_(array, 2.0, 0.01)
    np.testing.assert_allclose(array.mean(), 2, atol=3e-4)
    np.testing.assert_allclose(array.std(), 0.01, rtol=0.02)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 30 * 4), ("fan_out", 50 * 4)])
@pytest.mark.parametrize("fill", [nn.init.kaiming_uniform_, nn.init.kaiming_normal_])
def test_kaiming_variance(fill, mode, fan):
    manual_seed(0)
    array = np.empty((50, 30, 2, 2), np.float32)
    fill(array, 0.5, mode)
    np.testing.assert_allclose(array.var(), 2 / (1.25 * fan), rtol=0.05)


def test_the_same_seed_gives_the_same_model():
    first, second = (network() for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    manual_seed(1)
    assert not np.array_equal(nn.Linear(2, 2).weight.data, nn.Linear(2, 2).weight.data)
