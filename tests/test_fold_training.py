"""Batch norms folded while they train: the laws, every variant's gradients, quantisers, and the way in and out."""

import copy

import numpy as np
import pytest
import reference
from helpers import ORDERS, assert_close

import fastbn
from fastbn import nn, optim
from fastbn.errors import ArgumentError, DtypeError, ModelError, ShapeError, StateError

MODES = ["batch", "corrected"]
GAMMAS = ["random", "with zeros"]


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


# name: the module, x's shape
PAIRS = {
    "1d": (lambda **options: nn.ConvBn1d(4, 6, 3, stride=2, padding=1, groups=2, **options), (3, 4, 9)),
    "2d": (lambda **options: nn.ConvBn2d(3, 4, (3, 2), padding=(1, 0), **options), (3, 3, 5, 4)),
    "2d, bias": (lambda **options: nn.ConvBn2d(3, 4, 3, bias=True, **options), (2, 3, 5, 6)),
    "2d, depthwise": (lambda **options: nn.ConvBn2d(4, 4, 3, padding="same", groups=4, **options), (2, 4, 4, 5)),
    "3d": (lambda **options: nn.ConvBn3d(2, 3, 2, bias=True, **options), (2, 2, 3, 4, 3)),
    "linear": (lambda **options: nn.LinearBn1d(5, 4, **options), (7, 5)),
    "linear, no bias": (lambda **options: nn.LinearBn1d(5, 4, bias=False, **options), (7, 5)),
}


def made(name, rng, gamma="random", dtype=np.float64, **options):
    """The module with parameters and statistics that hide nothing, and an input."""
    make, shape = PAIRS[name]
    module = make(**options)
    bn = module.bn
    bn.weight.data[...] = rng.normal(size=bn.num_features)
    if gamma == "with zeros":
        bn.weight.data[::2] = 0
    bn.bias.data[...] = rng.normal(size=bn.num_features)
    bn.running_mean[...] = rng.normal(size=bn.num_features)
    bn.running_var[...] = rng.uniform(0.2, 3, bn.num_features)
    module = module.double() if dtype is np.float64 else module
    return module, (rng.normal(size=shape) + 0.5).astype(dtype)


def pair(module):
    """The same layer and batch norm one after the other, apart from ``module``."""
    twin = copy.deepcopy(module)
    return nn.Sequential({twin.layer_name: twin.layer, "bn": twin.bn}).train(module.training)


def shifted(weight):
    """A quantiser whose gradient really is what passes straight through: it adds constants."""
    return weight + 0.1 * np.cos(np.arange(weight.size)).reshape(weight.shape).astype(weight.dtype)


def rounded(weight):
    """Steps of 1/8."""
    return np.round(weight * 8) / 8


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def close(got, want, tolerance):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max(initial=0)))


# Laws


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("quantizer", [None, np.copy], ids=["none", "identity"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAIRS)
def test_without_rounding_it_is_the_layer_and_the_batch_norm(name, mode, gamma, quantizer, frozen, rng):
    module, x = made(name, rng, gamma, mode=mode, weight_quantizer=quantizer)
    if frozen:
        module.freeze_bn_stats()
    twin = pair(module)
    for _ in range(2):  # twice: running statistics move in between
        y, want = module(x), twin(x)
        close(y, want, 1e-12)
        dy = rng.normal(size=y.shape)
        close(module.backward(dy), twin.backward(dy), 1e-10)
        assert list(gradients(module)) == list(gradients(twin))
        for parameter, gradient in gradients(twin).items():
            close(gradients(module)[parameter], gradient, 1e-10)
    for key, array in twin.state_dict().items():
        np.testing.assert_allclose(module.state_dict()[key], array, rtol=1e-15, err_msg=key)
    close(module.eval()(x), twin.eval()(x), 1e-12)


@pytest.mark.parametrize("quantizer", [None, rounded])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["1d", "2d", "3d"])
def test_relu_and_memory_order(name, mode, order, quantizer, rng):
    module, x = made(name, rng, mode=mode, weight_quantizer=quantizer, relu=True)
    twin = copy.deepcopy(module)
    twin.relu = False
    y, before = module(ORDERS[order](x)), twin(x)
    assert y.flags.c_contiguous == ORDERS[order](before).flags.c_contiguous
    close(y, np.maximum(before, 0), 1e-12)
    dy = rng.normal(size=y.shape)
    close(module.backward(ORDERS[order](dy)), twin.backward(np.where(before > 0, dy, 0.0)), 1e-10)
    for name, gradient in gradients(twin).items():
        close(gradients(module)[name], gradient, 1e-10)
    close(module.eval()(x), np.maximum(twin.eval()(x), 0), 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PAIRS)
def test_float32(name, mode, rng):
    module, x = made(name, rng, dtype=np.float32, mode=mode, weight_quantizer=rounded)
    exact = copy.deepcopy(module).double()
    y = module(x)
    assert y.dtype == np.float32
    used = module.folded_weight.astype(np.float64)  # rounding in float64 might go the other way
    exact.weight_quantizer = lambda _: used
    assert_close(y, exact(x.astype(np.float64)), np.float32, scale=10)
    dy = rng.normal(size=y.shape).astype(np.float32)
    dx = module.backward(dy)
    assert dx.dtype == np.float32
    assert_close(dx, exact.backward(dy.astype(np.float64)), np.float32, scale=10)
    for key, gradient in gradients(exact).items():
        assert gradients(module)[key].dtype == np.float32
        assert_close(gradients(module)[key], gradient, np.float32, scale=10)


# Formulas, and gradients


def formula(module, x, quantizer):
    """The outputs as the papers have them, from the twin's operations; float64."""
    layer, bn = module.layer, module.bn
    weight, gamma, beta = layer.weight.data, bn.weight.data, bn.bias.data
    c = np.zeros(len(gamma)) if layer.bias is None else layer.bias.data
    options = {} if x.ndim == 2 else {o: getattr(layer, o) for o in ("stride", "padding", "dilation", "groups")}
    operation = reference.linear if x.ndim == 2 else reference.conv
    along = (-1, *(1,) * (weight.ndim - 1))
    z = operation(x, weight, c, **options)
    axes = (0, *range(2, z.ndim))
    mu_r, sigma_r = bn.running_mean, np.sqrt(bn.running_var + bn.eps)
    mu_b, sigma_b = z.mean(axis=axes), np.sqrt(z.var(axis=axes) + bn.eps)
    scale = gamma / (sigma_b if module.mode == "batch" and not bn.frozen else sigma_r)
    used = quantizer(weight * scale.reshape(along))
    if bn.frozen:
        return operation(x, used, beta + (c - mu_r) * scale, **options)
    shift = beta + (c - mu_b) * gamma / sigma_b
    if module.mode == "batch":
        return operation(x, used, shift, **options)
    channel = (1, -1, *(1,) * (z.ndim - 2))
    return operation(x, used, **options) * (sigma_r / sigma_b).reshape(channel) + shift.reshape(channel)


VARIANTS = {"batch": ("batch", False), "corrected": ("corrected", False), "frozen": ("corrected", True)}


@pytest.mark.parametrize("quantizer", [shifted, rounded, np.zeros_like])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PAIRS)
def test_outputs_are_the_formulas(name, variant, gamma, quantizer, rng):
    mode, frozen = VARIANTS[variant]
    module, x = made(name, rng, gamma, mode=mode, weight_quantizer=quantizer)
    module.bn.frozen = frozen
    want = formula(module, x, quantizer)
    close(module(x), want, 1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_finite_differences(name, variant, gamma, rng):
    """Of a quantiser that adds constants: the only kind whose gradient does pass straight through."""
    mode, frozen = VARIANTS[variant]
    module, x = made(name, rng, gamma, mode=mode, weight_quantizer=shifted)
    module.bn.frozen = frozen
    dy = rng.normal(size=module(x).shape)
    start = copy.deepcopy(module)  # of the second step: running statistics have moved
    module(x)
    dx = module.backward(dy)

    def check(gradient, outputs, point):
        want = reference.numerical_gradient(outputs, point, dy, h=1e-5)
        np.testing.assert_allclose(gradient, want, rtol=1e-6, atol=1e-6)

    check(dx, lambda value: formula(start, value, shifted), x)
    for key, parameter in start.named_parameters():
        values = parameter.data

        def outputs(candidate, parameter=parameter):
            parameter.data = candidate
            return formula(start, x, shifted)

        check(gradients(module)[key], outputs, values)
        parameter.data = values


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["1d", "2d, bias", "2d, depthwise", "3d", "linear"])
def test_torch_agrees_on_straight_through_gradients(name, variant, gamma, rng):
    torch = pytest.importorskip("torch")
    mode, frozen = VARIANTS[variant]
    module, x = made(name, rng, gamma, mode=mode, weight_quantizer=rounded)
    module.bn.frozen = frozen
    tensors = {key: torch.tensor(p.data, requires_grad=True) for key, p in module.named_parameters()}
    mean, var = torch.tensor(module.bn.running_mean), torch.tensor(module.bn.running_var)
    start = torch.tensor(x, requires_grad=True)
    weight, c = tensors[f"{module.layer_name}.weight"], tensors.get(f"{module.layer_name}.bias", torch.zeros(()))
    g, beta = tensors["bn.weight"], tensors["bn.bias"]
    layer = module.layer

    def operate(weight):
        if x.ndim == 2:
            return torch.nn.functional.linear(start, weight)
        convolve = getattr(torch.nn.functional, f"conv{x.ndim - 2}d")
        return convolve(start, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def channels(vector):
        return vector.reshape(-1, *(1,) * (x.ndim - 2))

    def quantized(scale):
        folded = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        return folded + (torch.round(folded * 8) / 8 - folded).detach()

    z = operate(weight)
    axes = (0, *range(2, x.ndim))
    sigma_r = torch.sqrt(var + module.bn.eps)
    sigma_b, mu_b = torch.sqrt(z.var(dim=axes, unbiased=False) + module.bn.eps), z.mean(dim=axes)
    if frozen:
        y = operate(quantized(g / sigma_r)) + channels(beta + (c - mean) * g / sigma_r)
    elif mode == "batch":
        y = operate(quantized(g / sigma_b)) + channels(beta - mu_b * g / sigma_b)
    else:
        y = operate(quantized(g / sigma_r)) * channels(sigma_r / sigma_b) + channels(beta - mu_b * g / sigma_b)
    dy = rng.normal(size=tuple(y.shape))
    y.backward(torch.tensor(dy))
    close(module(x), y.detach().numpy(), 1e-12)
    close(module.backward(dy), start.grad.numpy(), 1e-10)
    for key, tensor in tensors.items():
        want = np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        close(gradients(module)[key], want, 1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", PAIRS)
def test_without_dx_the_parameters_gradients_are_the_same(name, variant, rng):
    mode, frozen = VARIANTS[variant]
    module, x = made(name, rng, mode=mode, weight_quantizer=rounded)
    module.bn.frozen = frozen
    twin = copy.deepcopy(module)
    dy = np.ones_like(module(x))
    module.backward(dy)
    twin(x)
    assert x.ndim == 2 or twin.backward(dy, need_dx=False) is None
    if x.ndim == 2:
        twin.backward(dy, need_dx=False)
    for key, gradient in gradients(module).items():
        np.testing.assert_array_equal(gradients(twin)[key], gradient)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_norm_without_parameters_and_an_empty_batch(mode, rng):
    pair = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=False)
    module = nn.ConvBn2d.from_pair(*pair, mode, weight_quantizer=rounded)
    y = module(np.ones((0, 2, 3, 3), np.float32))
    assert y.shape == (0, 3, 3, 3)
    assert module.backward(y).shape == (0, 2, 3, 3)
    x = rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    for _ in range(2):
        module.backward(module(x))
        module.freeze_bn_stats()
    assert list(gradients(module)) == ["conv.weight", "conv.bias"]


# Folded weights


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_quantiser_sees_the_folded_weight_and_gives_the_one_convolved_with(variant, rng):
    mode, frozen = VARIANTS[variant]
    seen = []
    module, x = made("2d", rng, mode=mode, weight_quantizer=lambda w: seen.append(w.copy()) or rounded(w))
    module.bn.frozen = frozen
    before = module.bn.running_var.copy()
    module(x)
    saved = module.bn.saved
    var = saved.var if variant == "batch" else before
    scale = module.bn.weight.data / np.sqrt(var + module.bn.eps)
    np.testing.assert_allclose(seen[0], module.conv.weight.data * scale[:, None, None, None], rtol=1e-12)
    np.testing.assert_array_equal(module.folded_weight, rounded(seen[0]))
    module.eval()
    np.testing.assert_array_equal(module.folded_weight, module.plain().weight.data)
    np.testing.assert_array_equal(module.folded_bias, module.plain().bias.data)


@pytest.mark.parametrize("mode", MODES)
def test_without_a_quantiser_the_folded_weight_is_that_of_the_statistics_used(mode, rng):
    module, x = made("2d, bias", rng, mode=mode)
    before = module.bn.running_mean.copy(), module.bn.running_var.copy()
    module(x)
    saved = module.bn.saved
    statistics = (saved.mean, saved.var) if mode == "batch" else before
    conv, bn = module.conv, module.bn
    arrays = conv.weight.data, conv.bias.data, *statistics, bn.eps, bn.weight.data, bn.bias.data
    weight, bias = fastbn.functional.fold_conv_bn_weights(*arrays)
    np.testing.assert_array_equal(module.folded_weight, weight)
    np.testing.assert_array_equal(module.folded_bias, bias)


def test_a_quantiser_that_works_in_place_is_as_good(rng):
    def in_place(weight):
        weight[...] = rounded(weight)
        return weight

    module, x = made("2d", rng, weight_quantizer=rounded)
    twin = copy.deepcopy(module)
    twin.weight_quantizer = in_place
    dy = np.ones_like(module(x))
    np.testing.assert_array_equal(twin(x), module(x))
    np.testing.assert_array_equal(twin.backward(dy), module.backward(dy))


@pytest.mark.parametrize(
    ("quantizer", "error", "sentence"),
    [
        (lambda w: w.tolist(), DtypeError, "ConvBn2d: what weight_quantizer returns must be a NumPy array, got list"),
        (lambda w: w.astype(np.float32), DtypeError, "returns must be float64 as the weight is, got float32"),
        (lambda w: w[:1], ShapeError, r"must have shape \(4, 3, 3, 2\), as the weight, got \(1, 3, 3, 2\)"),
    ],
)
def test_what_a_quantiser_may_not_return(quantizer, error, sentence, rng):
    module, x = made("2d", rng, weight_quantizer=quantizer)
    with pytest.raises(error, match=sentence):
        module(x)


# Freezing


def test_frozen_statistics_stay_and_train_the_network_of_eval_mode(rng):
    module, x = made("2d", rng, mode="corrected", weight_quantizer=rounded)
    model = nn.Sequential({"block": module})
    assert nn.freeze_bn_stats(model) is model
    state = {name: array.copy() for name, array in model.state_dict().items()}
    y = model.train()(x)
    np.testing.assert_array_equal(y, copy.deepcopy(model).eval()(x))
    for name, array in state.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    assert nn.unfreeze_bn_stats(model) is model
    model(x)
    assert (model.state_dict()["block.bn.running_mean"] != state["block.bn.running_mean"]).all()
    assert model.state_dict()["block.bn.num_batches_tracked"] == state["block.bn.num_batches_tracked"] + 1


def test_a_batch_norm_in_eval_mode_alone_counts_as_frozen(rng):
    module, x = made("2d", rng)
    module.bn.eval()
    np.testing.assert_array_equal(module(x), copy.deepcopy(module).eval()(x))
    assert module.backward(np.ones_like(module(x))) is not None


@pytest.mark.parametrize("mode", MODES)
def test_hooks_of_the_batch_norm_see_its_output(mode, rng):
    module, x = made("2d", rng, mode=mode, weight_quantizer=np.zeros_like)
    twin, seen = pair(module), []
    module.bn.register_forward_hook(lambda bn, z, y: seen.append(y))
    module(x)
    np.testing.assert_array_equal(seen[0], twin(x))


def test_statistics_that_are_not_finite_name_the_layer(rng):
    module, x = made("2d", rng, weight_quantizer=rounded)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(ArgumentError, match=r"^ConvBn2d: fold_conv_bn_weights: .* must be positive, got nan"):
        module(x)


def test_eval_mode_keeps_nothing(rng):
    module, x = made("2d", rng, weight_quantizer=rounded)
    module.eval()(x)
    with pytest.raises(StateError, match=r"ConvBn2d\.backward: a forward pass in training mode must come first"):
        module.backward(x)


def test_running_statistics_are_estimated_anew(rng):
    module, x = made("2d", rng, weight_quantizer=rounded)
    twin = pair(module)
    for model in (module, twin):
        fastbn.update_bn_stats(model, [x, 2 * x[:2]])
    np.testing.assert_array_equal(module.bn.running_var, twin[1].running_var)
    assert module.bn.num_batches_tracked == 2


# The end of training


def network(**options):
    return nn.Sequential(
        nn.ConvBn2d(2, 4, 3, padding=1, relu=True, **options),
        nn.MaxPool2d(2),
        nn.Residual({"a": nn.ConvBn2d(4, 4, 3, padding=1, bias=True, **options)}, activation=nn.ReLU()),
        nn.Flatten(),
        nn.LinearBn1d(36, 5, relu=True, **options),
        nn.Linear(5, 3),
    )


def trained(rng, **options):
    model = network(**options)
    x = rng.normal(size=(16, 2, 6, 6)).astype(np.float32)
    targets = rng.integers(0, 3, 16)
    fastbn.fit(model, (x, targets), epochs=2, optimizer=optim.SGD(model.parameters(), lr=0.1), batch_size=8)
    return model, x


@pytest.mark.parametrize("quantizer", [None, rounded])
@pytest.mark.parametrize("mode", MODES)
def test_fold_in_place_changes_no_output_and_unfold_gives_the_bits_back(mode, quantizer, rng):
    model, x = trained(rng, mode=mode, weight_quantizer=quantizer)
    parameters = list(model.parameters())
    state = {name: array.copy() for name, array in model.state_dict().items()}
    want = model.eval()(x)
    assert nn.fold_(model) is model
    np.testing.assert_array_equal(model(x), want)
    assert not any("bn" in name for name in model.state_dict())
    assert nn.unfold(model) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == list(state)
    for name, array in state.items():
        np.testing.assert_array_equal(model.state_dict()[name], array, strict=True)
    np.testing.assert_array_equal(model(x), want)


def test_a_folded_layer_trains_as_the_plain_one(rng):
    module, x = made("2d", rng, relu=True)
    plain = module.plain().train()
    module.fold_()
    dy = rng.normal(size=module(x).shape)
    np.testing.assert_array_equal(module(x), plain(x))
    np.testing.assert_array_equal(module.backward(dy), plain.backward(dy))
    assert list(gradients(module)) == list(gradients(plain))
    for key, gradient in gradients(plain).items():
        np.testing.assert_array_equal(gradients(module)[key], gradient)


def test_calls_at_the_wrong_time(rng):
    module, _ = made("2d", rng)
    model = nn.Sequential({"a": module, "b": nn.LinearBn1d(2, 2)})
    with pytest.raises(StateError, match=r"^ConvBn2d\.unfold: the layer must be folded, got one that is not; call"):
        module.unfold()
    with pytest.raises(StateError, match=r"^unfold: every layer must be folded, got a that is not; call fold_ first$"):
        nn.unfold(model)
    module.fold_()
    for name in ("fold_", "freeze_bn_stats", "unfreeze_bn_stats"):
        with pytest.raises(StateError, match=rf"^ConvBn2d\.{name}: the layer must not be folded, got one that is"):
            getattr(module, name)()
    with pytest.raises(StateError, match=r"^fold_: no layer must be folded yet, got a that is; call unfold first$"):
        nn.fold_(model)
    assert not model[1].folded
    with pytest.raises(StateError, match="got b that is not"):
        nn.unfold(model)
    assert module.folded


def test_folding_all_or_none():
    model = nn.Sequential({"a": nn.LinearBn1d(2, 2), "b": nn.LinearBn1d(2, 2)})
    model[1].bn.running_var[1] = -1
    with pytest.raises(ArgumentError, match=r"^fold_: b: .* bn_rv must not be negative, got -1\.0 in channel 1"):
        nn.fold_(model)
    assert [layer.folded for layer in model] == [False, False]


@pytest.mark.parametrize("walk", [nn.fold_, nn.unfold, nn.freeze_bn_stats, nn.unfreeze_bn_stats])
def test_what_is_no_model(walk):
    with pytest.raises(DtypeError, match=rf"{walk.__name__}: model must be a fastbn\.nn\.Module, got int"):
        walk(3)


# Folding away


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("quantizer", [None, rounded])
def test_fold_leaves_plain_layers(quantizer, in_place, rng):
    model, x = trained(rng, weight_quantizer=quantizer)
    want = model.eval()(x)
    if in_place:
        nn.fold_(model)
    folded = fastbn.fold(model)
    kinds = {type(module).__name__ for module in folded.modules()}
    assert kinds == {"Sequential", "Residual", "Conv2d", "Linear", "ReLU", "MaxPool2d", "Flatten"}
    np.testing.assert_allclose(folded(x), want, rtol=1e-5, atol=1e-6)  # fused: other sums, in another memory order
    assert "0.conv.weight" in folded.state_dict()
    assert "2.a.weight" in folded.state_dict()
    folded[0][0].weight.unlock()
    folded[0][0].weight.data[...] = 0
    np.testing.assert_array_equal(model(x), want)


def test_a_layer_alone_and_one_used_twice_are_folded(rng):
    module, x = made("linear", rng)
    assert type(fastbn.fold(module)) is nn.Linear
    close(fastbn.fold(module)(x), module.eval()(x), 1e-12)
    block = nn.ConvBn2d(3, 3, 1)
    folded = fastbn.fold(nn.Sequential(block, nn.ReLU(), block))
    assert folded[0] is folded[2]


class Doubled(nn.ConvBn2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_with_a_forward_of_its_own_is_right(rng):
    model = nn.Sequential(Doubled(2, 3, 1))
    x = rng.normal(size=(2, 2, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(fastbn.fold(model)(x), model.eval()(x))


def test_a_batch_norm_that_cannot_be_folded_is_named():
    model = nn.Sequential({"block": nn.ConvBn2d(2, 3, 1)})
    model[0].bn.running_var[2] = -0.5
    with pytest.raises(ArgumentError, match=r"^fold: batch norm block\.bn: .* must not be negative, got -0\.5"):
        fastbn.fold(model)
    model[0].bn.running_var[2] = np.nan
    with pytest.raises(ArgumentError, match=r"^fold: block: "):
        fastbn.fold(model)


def test_a_folded_linear_layer_refuses_three_axes(rng):
    module, _ = made("linear", rng, dtype=np.float32)
    x = np.ones((2, 4, 5), np.float32)
    with pytest.raises(ShapeError, match=r"LinearBn1d: x must have 2 axes \(N, C\), got shape \(2, 4, 5\)"):
        module(x)
    with pytest.raises(ShapeError, match="x must have 2 axes"):
        module.plain()(x)
    assert module.fold_().linear.matrix_only
    assert not module.unfold().linear.matrix_only


# In and out


def test_from_pair_shares_everything(rng):
    conv, bn = nn.Conv2d(3, 4, 3, stride=2, groups=1), nn.BatchNorm2d(4, eps=1e-3, momentum=None).freeze()
    module = nn.ConvBn2d.from_pair(conv.eval(), bn, "corrected", relu=True)
    assert (module.conv, module.bn) == (conv, bn)
    assert not module.training
    assert list(module.state_dict()) == list(nn.Sequential({"conv": conv, "bn": bn}).state_dict())
    x = rng.normal(size=(2, 3, 5, 5)).astype(np.float32)
    np.testing.assert_allclose(module(x), np.maximum(bn.eval()(conv(x)), 0), rtol=1e-5, atol=1e-5)


BAD_PAIRS = [
    ((nn.Linear(2, 3), nn.BatchNorm2d(3)), {}, DtypeError, "ConvBn2d: conv must be a Conv2d, got Linear"),
    ((nn.Conv2d(2, 3, 1), nn.BatchNorm1d(3)), {}, DtypeError, "ConvBn2d: bn must be a BatchNorm2d, got BatchNorm1d"),
    ((nn.Conv2d(2, 3, 1), nn.BatchNorm2d(4)), {}, ShapeError, "ConvBn2d: bn must have 3 channels, got 4"),
    (
        (nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        {},
        ArgumentError,
        "ConvBn2d: bn must have running statistics, got track_running_stats=False",
    ),
    (
        (nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)),
        {"mode": "scale"},
        ArgumentError,
        "ConvBn2d: mode must be 'batch' or 'corrected', got 'scale'",
    ),
]


@pytest.mark.parametrize(("layers", "options", "error", "sentence"), BAD_PAIRS, ids=[case[-1] for case in BAD_PAIRS])
def test_pairs_that_do_not_fit(layers, options, error, sentence):
    with pytest.raises(error) as caught:
        nn.ConvBn2d.from_pair(*layers, **options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("mode", MODES)
def test_checkpoints(mode, tmp_path, rng):
    model, x = trained(rng, mode=mode)
    model[0].freeze_bn_stats()
    want = model.eval()(x)
    fastbn.save(model, tmp_path / "model.safetensors")
    loaded = fastbn.load(tmp_path / "model.safetensors")
    assert repr(loaded) == repr(model)
    np.testing.assert_array_equal(loaded(x), want)
    nn.fold_(model)
    fastbn.save(model, tmp_path / "folded.safetensors")
    folded = fastbn.load(tmp_path / "folded.safetensors")
    assert list(folded.state_dict()) == list(model.state_dict())
    np.testing.assert_array_equal(folded(x), want)


def test_a_checkpoint_of_other_children_is_refused(tmp_path, monkeypatch):
    model = nn.Sequential(nn.LinearBn1d(2, 3))
    model[0]._modules["bn"] = nn.BatchNorm2d(3)
    fastbn.save(model, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="LinearBn1d: bn must be a BatchNorm1d, got BatchNorm2d"):
        fastbn.load(tmp_path / "model.safetensors")


def test_summary_counts_the_children():
    module = nn.ConvBn2d(3, 4, 3, bias=True)
    ordinary = nn.Sequential({"conv": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4)})
    got, want = (fastbn.summary(model, (2, 3, 5, 5)) for model in (module, ordinary))
    assert got.rows[1:] == want.rows[1:]
    assert (got.mult_adds, got.forward_backward_bytes) == (want.mult_adds, want.forward_backward_bytes)
