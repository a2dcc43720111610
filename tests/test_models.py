"""The networks: sizes of the literature, names, and what they refuse."""

import numpy as np
import pytest

import fastbn
from fastbn import models, nn, optim
from fastbn.errors import ArgumentError, DtypeError, ShapeError
from fastbn.models.norms import NORMS


def size(model):
    return sum(parameter.size for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters", "entries"),
    [
        (models.lenet, 44_878, 30),
        (lambda: models.lenet(norm="none"), 44_426, 10),
        (lambda: models.lenet(norm="weight"), 44_426 + 226, 14),
        (lambda: models.lenet(norm="fixup"), 44_426 + 9, 19),
        (models.resnet18, 11_689_512, 122),
        (models.resnet50, 25_557_032, 320),
        (models.mobilenet_v2, 3_504_872, 314),
    ],
    ids=[
        "lenet",
        "lenet without norms",
        "lenet with weight norm",
        "lenet with FixUp",
        "resnet18",
        "resnet50",
        "mobilenet_v2",
    ],
)
def test_parameters_and_entries_of_the_state(model, parameters, entries):
    built = model()
    assert size(built) == parameters
    assert len(built.state_dict()) == entries


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_of_lenet_trains_and_is_the_same_network_folded(norm, rng):
    fastbn.manual_seed(0)
    model = models.lenet(norm=norm)
    x = rng.normal(size=(8, 1, 28, 28)).astype(np.float32)
    targets = np.arange(8) % 10
    loss, sgd = nn.CrossEntropyLoss(), optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(12):
        model.zero_grad()
        losses.append(loss(model(x), targets))
        model.backward(loss.backward(), need_dx=False)
        sgd.step()
    assert losses[-1] < losses[0]
    model.eval()
    folded = fastbn.fold(model)
    assert len(folded) == 12 + {"group": 4, "layer": 4, "instance": 2}.get(norm, 0)  # these do not fold
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


LAYERS = {"batch": "BatchNorm1d", "renorm": "BatchRenorm1d", "group": "GroupNorm", "layer": "LayerNorm"}


@pytest.mark.parametrize("norm", NORMS)
def test_mlp_places_its_norm(norm, rng):
    x = rng.normal(size=(4, 2, 3)).astype(np.float32)
    kinds = {}
    for placement in ("pre", "post"):
        model = models.mlp(3, 6, (5, 4), norm=norm, placement=placement, activation="relu")
        y = model(x)
        assert y.shape == (4, 3)
        model.backward(y, need_dx=False)
        kinds[placement] = [type(layer).__name__ for layer in model]
    if norm in LAYERS:
        assert kinds["pre"][1:4] == ["Linear", LAYERS[norm], "ReLU"]
        assert kinds["post"][1:4] == ["Linear", "ReLU", LAYERS[norm]]
    else:
        assert kinds["pre"] == kinds["post"]
        assert ("ScalarAffine" in kinds["pre"]) == (norm == "fixup")


def test_mlp_is_that_of_the_original_paper():
    model = models.mlp()
    assert size(model) == 784 * 100 + 2 * 100 * 100 + 100 * 10 + 3 * 300 + 10
    assert [type(layer).__name__ for layer in model][1:4] == ["Linear", "BatchNorm1d", "Sigmoid"]


@pytest.mark.parametrize("norm", ["fixup", "weight"])
def test_resnet18_with_another_norm(norm, rng):
    model = models.resnet18(4, 2, norm_layer=norm)
    x = rng.normal(size=(2, 2, 32, 32)).astype(np.float32)
    y = model(x)
    assert y.shape == (2, 4)
    model.backward(np.ones_like(y), need_dx=False)
    assert all(parameter.grad is not None for parameter in model.parameters())
    names = list(model.state_dict())
    assert not any("bn" in name for name in names)
    assert ("conv1.bias" in names) == (norm == "weight")


def test_resnet_takes_a_function_that_makes_norms():
    model = models.resnet18(3, norm_layer=lambda channels: nn.BatchNorm2d(channels, affine=False))
    assert size(model) == size(models.resnet18(3)) - 2 * 4_800
    assert "layer2.0.downsample.1.running_mean" in model.state_dict()


@pytest.mark.parametrize("make", [models.resnet18, models.resnet50])
def test_zero_init_residual_is_torchvisions(make):
    model = make(2, zero_init_residual=True)
    last = "bn2" if make is models.resnet18 else "bn3"
    for name, parameter in model.named_parameters():
        if "bn" in name and name.endswith("weight"):
            assert (parameter.data == (0 if f"{last}.weight" in name else 1)).all()
    assert make(2).layer1[0].bn2.weight.data.all()


def test_lenet_takes_other_channels_and_classes(rng):
    model = models.lenet(num_classes=3, in_channels=2)
    assert model(rng.normal(size=(2, 2, 28, 28)).astype(np.float32)).shape == (2, 3)


def test_resnet18_has_torchvisions_names_and_trains_on_small_pictures(rng):
    model = models.resnet18(num_classes=5, in_channels=1)
    names = list(model.state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert names[-2:] == ["fc.weight", "fc.bias"]
    assert "layer2.0.downsample.0.weight" in names
    assert "layer1.0.downsample.0.weight" not in names
    assert "layer4.1.bn2.num_batches_tracked" in names
    x = rng.normal(size=(2, 1, 32, 32)).astype(np.float32)
    y = model(x)
    assert y.shape == (2, 5)
    model.backward(np.ones_like(y), need_dx=False)
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


def test_mobilenet_v2_has_torchvisions_names_and_shapes():
    state = models.mobilenet_v2().state_dict()
    shapes = {name: array.shape for name, array in state.items()}
    assert shapes | TORCHVISION == shapes
    assert list(state)[:7] == [*list(TORCHVISION)[:6], "features.1.conv.0.0.weight"]
    assert list(state)[-2:] == ["classifier.1.weight", "classifier.1.bias"]
    strided = {block: f"features.{block}.conv.1.0.weight" for block in range(2, 18)}
    # Expanded channels of every block after the first.
    assert [shapes[name][0] for name in strided.values()] == [
        *(96, 144, 144, *(192,) * 3, *(384,) * 4, *(576,) * 3, *(960,) * 3),
    ]


# Of torchvision.models.mobilenet_v2().state_dict()
TORCHVISION = {
    "features.0.0.weight": (32, 3, 3, 3),
    "features.0.1.weight": (32,),
    "features.0.1.bias": (32,),
    "features.0.1.running_mean": (32,),
    "features.0.1.running_var": (32,),
    "features.0.1.num_batches_tracked": (),
    "features.1.conv.0.0.weight": (32, 1, 3, 3),
    "features.1.conv.0.1.weight": (32,),
    "features.1.conv.1.weight": (16, 32, 1, 1),
    "features.1.conv.2.weight": (16,),
    "features.1.conv.2.num_batches_tracked": (),
    "features.2.conv.0.0.weight": (96, 16, 1, 1),
    "features.2.conv.0.1.running_var": (96,),
    "features.2.conv.1.0.weight": (96, 1, 3, 3),
    "features.2.conv.1.1.bias": (96,),
    "features.2.conv.2.weight": (24, 96, 1, 1),
    "features.2.conv.3.running_mean": (24,),
    "features.3.conv.0.0.weight": (144, 24, 1, 1),
    "features.3.conv.2.weight": (24, 144, 1, 1),
    "features.4.conv.2.weight": (32, 144, 1, 1),
    "features.7.conv.2.weight": (64, 192, 1, 1),
    "features.11.conv.2.weight": (96, 384, 1, 1),
    "features.14.conv.2.weight": (160, 576, 1, 1),
    "features.17.conv.0.0.weight": (960, 160, 1, 1),
    "features.17.conv.1.0.weight": (960, 1, 3, 3),
    "features.17.conv.2.weight": (320, 960, 1, 1),
    "features.17.conv.3.num_batches_tracked": (),
    "features.18.0.weight": (1280, 320, 1, 1),
    "features.18.1.running_var": (1280,),
    "classifier.1.weight": (1000, 1280),
    "classifier.1.bias": (1000,),
}


@pytest.mark.parametrize(
    ("width_mult", "widths"),
    [
        (0.1, (8, 8, 8, 8, 8, 16, 16, 32, 1280)),
        (0.35, (16, 8, 8, 16, 24, 32, 56, 112, 1280)),
        (0.75, (24, 16, 24, 24, 48, 72, 120, 240, 1280)),
        (1.4, (48, 24, 32, 48, 88, 136, 224, 448, 1792)),
    ],
)
def test_mobilenet_v2s_widths_are_multiples_of_8(width_mult, widths):
    """Those of the networks that others trained; 0.35 and 1.4 are in the paper's table of results."""
    model = models.mobilenet_v2(2, width_mult=width_mult)
    state = model.state_dict()
    got = [state["features.0.0.weight"].shape[0], state["features.1.conv.1.weight"].shape[0]]
    got += [state[f"features.{block}.conv.2.weight"].shape[0] for block in (2, 4, 7, 11, 14, 17)]
    assert (*got, state["features.18.0.weight"].shape[0]) == widths
    assert state["classifier.1.weight"].shape == (2, widths[-1])


def test_mobilenet_v2_begins_with_torchvisions_values():
    fastbn.manual_seed(0)
    state = models.mobilenet_v2().state_dict()
    for name in ("features.17.conv.0.0.weight", "features.17.conv.1.0.weight", "features.18.0.weight"):
        fan_out = state[name].shape[0] * state[name][0, 0].size
        np.testing.assert_allclose(state[name].std(), np.sqrt(2 / fan_out), rtol=0.03)
    np.testing.assert_allclose(state["classifier.1.weight"].std(), 0.01, rtol=0.01)
    np.testing.assert_array_equal(state["classifier.1.bias"], 0)
    np.testing.assert_array_equal(state["features.9.conv.3.weight"], 1)
    np.testing.assert_array_equal(state["features.9.conv.3.bias"], 0)


def test_mobilenet_v2_trains_on_small_pictures_of_any_channels(rng):
    model = models.mobilenet_v2(5, 1, width_mult=0.1)
    x = rng.normal(size=(2, 1, 32, 32)).astype(np.float32)
    y = model(x)
    assert y.shape == (2, 5)
    model.backward(np.ones_like(y), need_dx=False)
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())
    assert model.classifier[0].p == 0.2


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: models.lenet(norm="x"), ArgumentError, "lenet: norm must be one of batch, .*, none, got 'x'"),
        (lambda: models.mlp(norm=None), ArgumentError, "mlp: norm must be one of batch, .*, none, got None"),
        (lambda: models.mlp(placement="in"), ArgumentError, "mlp: placement must be 'pre' or 'post', got 'in'"),
        (
            lambda: models.mlp(activation="tanh"),
            ArgumentError,
            "activation must be 'sigmoid' or 'relu', got 'tanh'",
        ),
        (lambda: models.mlp(in_features=0), ArgumentError, "mlp: in_features must be at least 1, got 0"),
        (lambda: models.mlp(hidden=(3, 0)), ArgumentError, "Linear: out_features must be at least 1, got 0"),
        (lambda: models.resnet18(norm_layer="x"), ArgumentError, "resnet: norm must be one of batch, .*, got 'x'"),
        (
            lambda: models.resnet18(zero_init_residual=True, norm_layer="none"),
            ArgumentError,
            "zero_gamma_: model must have a Residual block that ends in a norm, got none in Sequential",
        ),
        (lambda: models.lenet(num_classes=0), ArgumentError, "out_features must be at least 1, got 0"),
        (lambda: models.lenet(in_channels=1.0), DtypeError, "in_channels must be an integer, got float"),
        (lambda: models.resnet18(num_classes=0), ArgumentError, "num_classes must be at least 1, got 0"),
        (lambda: models.mobilenet_v2(0), ArgumentError, "mobilenet_v2: num_classes must be at least 1, got 0"),
        (lambda: models.mobilenet_v2(in_channels="3"), DtypeError, "in_channels must be an integer, got str"),
        (lambda: models.mobilenet_v2(width_mult="1"), DtypeError, "width_mult must be a number, got str"),
        (lambda: models.mobilenet_v2(width_mult=-1.0), ArgumentError, "width_mult must be at least 0, got -1.0"),
        (lambda: models.mobilenet_v2(width_mult=0), ArgumentError, "width_mult must be positive and finite, got 0"),
        (lambda: models.mobilenet_v2(width_mult=np.inf), ArgumentError, "must be positive and finite, got inf"),
        (lambda: models.mobilenet_v2(dropout=1.1), ArgumentError, "Dropout: p must be from 0 to 1, got 1.1"),
        (lambda: models.lenet()(np.zeros((1, 1, 32, 32), np.float32)), ShapeError, "must have shape"),
    ],
)
def test_refusals(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
