"""The networks: sizes of the literature, names, and what they refuse."""

import numpy as np
import pytest

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
    ],
    ids=["lenet", "lenet without norms", "resnet18", "resnet50"],
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


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda: models.lenet(norm="layer"), ArgumentError, "lenet: norm must be one of batch, none, got 'layer'"),
        (lambda: models.lenet(num_classes=0), ArgumentError, "out_features must be at least 1, got 0"),
        (lambda: models.lenet(in_channels=1.0), DtypeError, "in_channels must be an integer, got float"),
        (lambda: models.resnet18(num_classes=0), ArgumentError, "num_classes must be at least 1, got 0"),
        (lambda: models.lenet()(np.zeros((1, 1, 32, 32), np.float32)), ShapeError, "must have shape"),
    ],
)
def test_refusals(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
