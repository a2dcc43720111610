"""fastbn.fold: the same outputs with the batch norms gone, and every case where one must stay."""

import copy

import numpy as np
import pytest

import fastbn
from fastbn import models, nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError

GAMMAS = ["random", "with zeros"]


@pytest.fixture(autouse=True)
def _seed():
    fastbn.manual_seed(0)


def randomize(model, rng, gamma="random"):
    """Statistics, gammas and betas that hide nothing."""
    for module in model.modules():
        if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            continue
        if module.affine:
            module.weight.data[...] = rng.normal(size=module.num_features)
            module.bias.data[...] = rng.normal(size=module.num_features)
            if gamma == "with zeros":
                module.weight.data[::2] = 0
        if module.track_running_stats:
            module.running_mean[...] = rng.normal(size=module.num_features)
            module.running_var[...] = rng.uniform(0.2, 3, module.num_features)
    return model


def norms(model):
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def assert_same_outputs(folded, model, x):
    want = copy.deepcopy(model).eval()(x)
    tolerance = 1e-12 if x.dtype == np.float64 else 1e-5
    assert folded(x).dtype == x.dtype
    np.testing.assert_allclose(folded(x), want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def blocks():
    """A ResNet in small: identity and projected shortcuts, names as torchvision's."""

    def block(channels, out, stride):
        body = {
            "conv1": nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(out),
            "relu": nn.ReLU(),
            "conv2": nn.Conv2d(out, out, 3, padding=1, bias=False),
            "bn2": nn.BatchNorm2d(out, affine=False),
        }
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride), nn.BatchNorm2d(out, eps=0.1))
        return nn.Residual(body, downsample=None if stride == 1 else shortcut, activation=nn.ReLU())

    return nn.Sequential(
        {
            "conv1": nn.Conv2d(2, 4, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(4),
            "layer1": nn.Sequential(block(4, 4, 1)),
            "layer2": nn.Sequential(block(4, 6, 2)),
            "flatten": nn.Flatten(),
            "fc": nn.Linear(54, 3),
            "bn": nn.BatchNorm1d(3),
        }
    )


NETWORKS = {
    "lenet": (models.lenet, (3, 1, 28, 28)),
    "residual": (blocks, (3, 2, 6, 6)),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), nn.Conv2d(9, 9, 1, groups=9, bias=False), nn.BatchNorm2d(9)
        ),
        (2, 6, 5, 5),
    ),
    "strides, padding, dilation": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=(1, 2)), nn.BatchNorm2d(4)),
        (2, 3, 9, 9),
    ),
    "1 axis": (
        lambda: nn.Sequential(nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 3, 1)),
        (2, 4, 7),
    ),
    "3 axes": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2, bias=False), nn.BatchNorm3d(3)), (2, 2, 3, 4, 4)),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5)), (3, 4)),
    "two in a row": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.BatchNorm1d(5)), (3, 4)),
    "frozen": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, frozen=True)), (3, 4)),
    "nested in a residual": (
        lambda: nn.Sequential(
            nn.Residual({"conv": nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU6())}), nn.Dropout()
        ),
        (2, 3, 4, 4),
    ),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))), nn.ReLU()),
        (2, 2, 3, 3),
    ),
}


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folded_network_gives_the_same_outputs_without_batch_norms(name, dtype, gamma, rng):
    make, shape = NETWORKS[name]
    model = randomize(make(), rng, gamma)
    model = model.double() if dtype is np.float64 else model
    folded = fastbn.fold(model)
    assert norms(folded) == []
    assert not any(module.training for module in folded.modules())
    assert_same_outputs(folded, model, rng.normal(size=shape).astype(dtype))


def test_the_original_is_left_alone(rng):
    model = randomize(models.lenet(), rng)
    x = rng.normal(size=(4, 1, 28, 28)).astype(np.float32)
    model.backward(np.ones_like(model(x)), need_dx=False)
    model(x)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    folded = fastbn.fold(model)
    assert all(parameter.grad is None for parameter in folded.parameters())
    for parameter in folded.parameters():
        parameter.unlock()
    for array in folded.state_dict().values():
        array[...] = 0
    assert list(model.state_dict()) == list(before)
    for name, array in before.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    assert all(parameter.grad is gradients[name] for name, parameter in model.named_parameters())
    assert all(module.training and module._saved is not None for module in model)


def test_the_names_of_what_is_left_do_not_change(rng):
    folded = fastbn.fold(randomize(blocks(), rng))
    kept = {name.rpartition(".")[0] for name in folded.state_dict()}
    assert kept == {
        "conv1",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer2.0.downsample.0",
        "fc",
    }


def test_folding_twice_changes_nothing_more(rng):
    once = fastbn.fold(randomize(models.lenet(), rng))
    twice = fastbn.fold(once)
    assert repr(twice) == repr(once)
    for name, array in once.state_dict().items():
        np.testing.assert_array_equal(twice.state_dict()[name], array)


def test_a_folded_network_can_be_saved_and_loaded(rng, tmp_path):
    folded = fastbn.fold(randomize(models.lenet(), rng))
    fastbn.save(folded, tmp_path / "folded.safetensors")
    loaded = fastbn.load(tmp_path / "folded.safetensors")
    x = rng.normal(size=(2, 1, 28, 28)).astype(np.float32)
    np.testing.assert_array_equal(loaded(x), folded(x))
    assert [module.matrix_only for module in loaded if isinstance(module, nn.Linear)] == [True, True, False]


def test_resnet18_folds_whole(rng):
    model = randomize(models.resnet18(num_classes=4), rng)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 0.3  # or the outputs grow from block to block
    folded = fastbn.fold(model)
    assert norms(folded) == []
    assert_same_outputs(folded, model, rng.normal(size=(1, 3, 32, 32)).astype(np.float32))


def test_mobilenet_v2_folds_whole(rng):
    """Batch norms in a Sequential in a Residual, and after depthwise convolutions; 0.1: the narrowest there is."""
    model = randomize(models.mobilenet_v2(4, width_mult=0.1), rng)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data *= 0.3
    assert len(norms(model)) == 52
    folded = fastbn.fold(model)
    assert norms(folded) == []
    assert len(folded.state_dict()) == 2 * 52 + 2
    assert_same_outputs(folded, model, rng.normal(size=(2, 3, 32, 32)).astype(np.float32))


def test_what_did_not_require_gradients_does_not_after(rng):
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    folded = fastbn.fold(randomize(model, rng))
    assert [parameter.requires_grad for parameter in folded.parameters()] == [False, False]


# Where a batch norm stays


def shared_layer():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3))


def shared_norm():
    norm = nn.BatchNorm2d(3)
    return nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.Conv2d(3, 3, 1), norm)


def shared_across_branches():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Residual(conv, nn.BatchNorm2d(3), downsample=nn.Sequential(conv))


def shared_with_a_nested_one():
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(nn.Sequential(conv), nn.ReLU(), conv, nn.BatchNorm2d(3))


STAYS = {
    "layer used twice": (shared_layer, ["1", "4"]),
    "norm used twice": (shared_norm, ["1"]),
    "layer in both branches": (shared_across_branches, ["1"]),
    "layer used deeper too": (shared_with_a_nested_one, ["3"]),
    "no running statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
        ["1"],
    ),
    "after one without running statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3)),
        ["1", "2"],
    ),
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), ["0"]),
    "after an activation": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), ["2"]),
    "after a pool": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.AvgPool2d(2), nn.BatchNorm2d(3)), ["2"]),
    "across a container": (lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)), ["1"]),
    "after a sum": (lambda: nn.Sequential(nn.Residual(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)), ["1"]),
    "first of a body": (lambda: nn.Residual(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)), ["0"]),
    "as the activation": (lambda: nn.Residual(nn.Conv2d(3, 3, 1), activation=nn.BatchNorm2d(3)), ["activation"]),
    "as the shortcut": (lambda: nn.Residual(nn.Conv2d(3, 3, 1), downsample=nn.BatchNorm2d(3)), ["downsample"]),
    "alone": (lambda: nn.BatchNorm2d(3), [""]),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_batch_norm_that_cannot_go_stays_and_the_outputs_are_right(name, rng):
    make, names = STAYS[name]
    model = randomize(make(), rng)
    folded = fastbn.fold(model)
    assert norms(folded) == names
    assert_same_outputs(folded, model, rng.normal(size=(2, 3, 4, 4)).astype(np.float32))


def test_a_block_used_twice_is_folded_within(rng):
    block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model = randomize(nn.Sequential(block, nn.ReLU(), block), rng)
    folded = fastbn.fold(model)
    assert norms(folded) == []
    assert folded[0] is folded[2]
    assert_same_outputs(folded, model, rng.normal(size=(2, 3, 4, 4)).astype(np.float32))


def test_layers_that_share_a_weight_are_folded_apart(rng):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    randomize(model, rng)
    assert_same_outputs(fastbn.fold(model), model, rng.normal(size=(4, 3)).astype(np.float32))


class Skipping(nn.Sequential):
    """Adds the input after every layer."""

    def forward(self, x):
        for _, module in self.chain():
            x = module(x) + x
        return x


class Twofold(nn.Residual):
    """Reads the batch norm by its name."""

    def forward(self, x):
        return self.bn(nn.ReLU()(self.fc(x)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Skipping(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        lambda: Twofold({"fc": nn.Linear(3, 3), "bn": nn.BatchNorm1d(3)}),
    ],
    ids=["sequential", "residual"],
)
def test_a_container_with_a_forward_of_its_own_is_right(make, rng):
    model = randomize(make(), rng)
    assert_same_outputs(fastbn.fold(model), model, rng.normal(size=(4, 3)).astype(np.float32))


def test_linear_then_batch_norm_refuses_three_axes_after_folding(rng):
    """Linear acts on the last axis, BatchNorm1d on axis 1: with L = C both fit, and folding would be wrong."""
    model = randomize(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), rng).eval()
    x = rng.normal(size=(2, 5, 4)).astype(np.float32)
    assert model(x).shape == (2, 5, 5)
    with pytest.raises(ShapeError, match=r"x must have 2 axes \(N, C\) once a batch norm is folded in, got shape"):
        fastbn.fold(model)(x)


# Refusals


def test_a_negative_variance_names_the_layer(rng):
    model = randomize(blocks(), rng)
    model[3][0].downsample[1].running_var[2] = -0.5
    sentence = r"^fold: batch norm layer2\.0\.downsample\.1: .* must not be negative, got -0\.5 in channel 2$"
    with pytest.raises(ArgumentError, match=sentence):
        fastbn.fold(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["running_mean", "weight"])
def test_what_would_not_be_finite_names_the_layer(place, value, rng):
    model = randomize(nn.Sequential({"fc": nn.Linear(2, 3), "bn": nn.BatchNorm1d(3)}), rng)
    dict(model[1].state_dict())[place][0] = value
    with pytest.raises(ArgumentError, match=r"^fold: batch norm bn: .* must be finite in float32, got"):
        fastbn.fold(model)


def test_no_variance_and_no_eps_name_the_layer():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, eps=0.0))
    model[1].running_var[1] = 0
    with pytest.raises(
        ArgumentError, match=r"batch norm 1: .* bn_rv \+ bn_eps must be positive, got 0\.0 in channel 1"
    ):
        fastbn.fold(model)


@pytest.mark.parametrize("thing", [None, "model.safetensors", np.zeros(3)])
def test_what_is_no_model(thing):
    with pytest.raises(DtypeError, match=r"fold: model must be a fastbn\.nn\.Module, got"):
        fastbn.fold(thing)
