"""The networks: sizes of the literature, names, and what they refuse."""

import numpy as np
import pytest

import fastbn
from fastbn import models
from fastbn.errors import ArgumentError, DtypeError, ShapeError


def size(model):
    return sum(parameter.size for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters", "entries"),
    [
        (models.lenet, 44_878, 30),
        (lambda: models.lenet(norm="none"), 44_426, 10),
        (models.resnet18, 11_689_512, 122),
        (models.resnet50, 25_557_032, 320),
        (models.mobilenet_v2, 3_504_872, 314),
    ],
    ids=["lenet", "lenet without norms", "resnet18", "resnet50", "mobilenet_v2"],
)
def test_parameters_and_entries_of_the_state(model, parameters, entries):
    built = model()
    assert size(built) == parameters
    assert len(built.state_dict()) == entries


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
            "mlp: activation must be 'sigmoid' or 'relu', got 'tanh'",
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
