"""The table of a model: figures of the literature, torchinfo's lines, and a model left as it was."""

import numpy as np
import pytest

import fastbn
from fastbn import models, nn
from fastbn.errors import ArgumentError, DtypeError, ShapeError


def test_lenets_figures():
    figures = fastbn.summary(models.lenet(), (1, 1, 28, 28))
    assert figures.parameters == figures.trainable == 44_878
    assert figures.mult_adds == 286_786
    assert figures.total_bytes == figures.input_bytes + figures.forward_backward_bytes + figures.parameter_bytes
    lines = str(figures).splitlines()
    for line in [
        "Total params: 44,878",
        "Trainable params: 44,878",
        "Non-trainable params: 0",
        "Total mult-adds (M): 0.29",
        "Input size (MB): 0.00",
        "Forward/backward pass size (MB): 0.08",
        "Params size (MB): 0.18",
        "Estimated Total Size (MB): 0.26",
    ]:
        assert line in lines


def test_lenets_parameters_layer_by_layer():
    rows = fastbn.summary(models.lenet(), (1, 1, 28, 28)).rows
    assert [row.parameters for row in rows if row.parameters] == [156, 12, 2416, 32, 30840, 240, 10164, 168, 850]
    assert [(row.kind, row.depth, row.index) for row in rows[:3]] == [
        ("Sequential", 0, 1),
        ("Conv2d", 1, 1),
        ("BatchNorm2d", 1, 2),
    ]
    assert rows[1].output_shape == (1, 6, 24, 24)
    assert rows[-1].output_shape == (1, 10)


def test_the_folded_lenet_has_452_parameters_fewer():
    assert fastbn.summary(fastbn.fold(models.lenet()), (1, 1, 28, 28)).parameters == 44_426


def test_multiply_adds_and_outputs_grow_with_the_batch():
    one, eight = (fastbn.summary(models.lenet(), (n, 1, 28, 28)) for n in (1, 8))
    assert eight.mult_adds == 8 * one.mult_adds
    assert eight.forward_backward_bytes == 8 * one.forward_backward_bytes
    assert eight.input_bytes == 8 * one.input_bytes
    assert eight.parameter_bytes == one.parameter_bytes


@pytest.mark.parametrize(
    ("layer", "shape", "mult_adds"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9), 2 * 42 * 7),
        (nn.Conv3d(1, 2, (1, 2, 3), bias=False), (3, 1, 4, 5, 6), 3 * 12 * 4 * 4 * 4),
    ],
)
def test_convolutions_over_other_axes_are_counted_a_pixel(layer, shape, mult_adds):
    assert fastbn.summary(layer, shape).mult_adds == mult_adds


def test_frozen_parameters_are_not_trainable():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    figures = fastbn.summary(model, (1, 4))
    assert (figures.parameters, figures.trainable) == (15 + 8, 8)
    assert "Non-trainable params: 15" in str(figures)


def shared_convolution(library):
    """One convolution that sees 8 x 8 pixels, then 4 x 4."""
    conv = library.Conv2d(2, 2, 3, padding=1)
    return library.Sequential(conv, library.MaxPool2d(2), conv)


def test_a_shared_layer_is_counted_once_and_works_at_every_size_it_is_called_with():
    figures = fastbn.summary(shared_convolution(nn), (1, 2, 8, 8))
    assert figures.parameters == 38
    assert figures.mult_adds == 38 * (64 + 16)
    assert figures.forward_backward_bytes == 2 * 4 * 2 * (64 + 16)


class Own(nn.Module):
    """A model with a child and a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.scale = nn.Parameter(np.ones(3, np.float32))

    def forward(self, x):
        return self.fc(x) * self.scale.data


def test_a_row_holds_its_own_parameters_only():
    figures = fastbn.summary(Own(), (2, 4))
    assert [(row.kind, row.parameters) for row in figures.rows] == [("Own", 3), ("Linear", 15)]
    assert figures.parameters == 18


def test_the_model_is_left_as_it_was(rng):
    model = models.lenet()
    x = rng.normal(size=(2, 1, 28, 28)).astype(np.float32)
    model(x)
    model[1].eval()
    kept = model[0]._saved
    before = {name: array.copy() for name, array in model.state_dict().items()}
    fastbn.summary(model, (3, 1, 28, 28))
    assert model[0]._saved is kept
    assert model.training
    assert not model[1].training
    assert not any(module._forward_hooks for module in model.modules())
    for name, array in before.items():
        np.testing.assert_array_equal(model.state_dict()[name], array)


def test_float64_and_single_layers():
    assert fastbn.summary(nn.Linear(4, 3).double(), (2, 4)).parameters == 15
    assert str(fastbn.summary(nn.ReLU(), (2, 4))).splitlines()[3].split() == ["ReLU", "[2,", "4]", "--"]


@pytest.mark.parametrize(
    ("shape", "error", "sentence"),
    [
        ((28,), ShapeError, r"summary: input_shape must include the batch, \(N, C, ...\), got \(28,\)"),
        ((), ShapeError, r"must include the batch"),
        ((0, 1, 28, 28), ArgumentError, "summary: input_shape must be at least 1, got 0"),
        ((1, 1, 28, 28.0), DtypeError, "summary: input_shape must be an integer, got float"),
        ((1, 3, 28, 28), ShapeError, "conv2d: weight must have shape"),
        ((1, 28, 28), ShapeError, "conv2d: x must have 4 axes"),
        ((1, 1, 4, 4), ShapeError, "x must be at least as large as the dilated kernel"),
    ],
)
def test_bad_shapes(shape, error, sentence):
    with pytest.raises(error, match=sentence):
        fastbn.summary(models.lenet(), shape)


# torchinfo


def lenet(library):
    return library.Sequential(
        library.Conv2d(1, 6, 5),
        library.BatchNorm2d(6),
        library.Sigmoid(),
        library.AvgPool2d(2),
        library.Conv2d(6, 16, 5),
        library.BatchNorm2d(16),
        library.Sigmoid(),
        library.AvgPool2d(2),
        library.Flatten(),
        library.Linear(256, 120),
        library.BatchNorm1d(120),
        library.Sigmoid(),
        library.Linear(120, 84),
        library.BatchNorm1d(84),
        library.Sigmoid(),
        library.Linear(84, 10),
    )


def nested(library):
    inner = library.Sequential(library.Conv2d(6, 3, 1, bias=False), library.Sequential(library.ReLU()))
    return library.Sequential(
        library.Conv2d(3, 6, (3, 5), stride=2, groups=3), inner, library.AdaptiveAvgPool2d(1), library.Flatten()
    )


def wide(library):
    """More than a thousand million multiply-adds, from one row of pixels."""
    return library.Sequential(library.Conv2d(1, 4000, 1), library.Conv2d(4000, 70, 1), library.ReLU())


NETWORKS = {
    "lenet": (lenet, (1, 1, 28, 28)),
    "lenet, batch of 256": (lenet, (256, 1, 28, 28)),
    "nested": (nested, (2, 3, 9, 9)),
    "giga": (wide, (8, 1, 23, 23)),
    "linear on 3 axes": (lambda library: library.Sequential(library.Linear(4, 3), library.ReLU()), (2, 5, 4)),
    "one layer": (lambda library: library.Linear(4, 3), (2, 4)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_is_torchinfos_line_by_line(name):
    torch, torchinfo = pytest.importorskip("torch"), pytest.importorskip("torchinfo")
    make, shape = NETWORKS[name]
    table = str(torchinfo.summary(make(torch.nn), input_size=shape, verbose=0, device="cpu"))
    # torchinfo prints the name of its own enumeration here.
    table = table.replace("(Units.MEGABYTES)", "(M)").replace("(Units.GIGABYTES)", "(G)")
    assert str(fastbn.summary(make(nn), shape)).splitlines() == [line.rstrip() for line in table.splitlines()]


def test_a_shared_layers_figures_are_torchinfos():
    torch, torchinfo = pytest.importorskip("torch"), pytest.importorskip("torchinfo")
    ours = fastbn.summary(shared_convolution(nn), (1, 2, 8, 8))
    theirs = torchinfo.summary(shared_convolution(torch.nn), input_size=(1, 2, 8, 8), verbose=0, device="cpu")
    assert (ours.parameters, ours.mult_adds) == (theirs.total_params, theirs.total_mult_adds)
    assert ours.forward_backward_bytes == theirs.total_output_bytes
