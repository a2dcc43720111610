"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm as modules: PyTorch's names, backward, files, folding, ONNX."""

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import assert_relative, operators, run_onnxruntime

import fastbn
from export import export
from export.convert import to_onnx
from fastbn import nn
from fastbn.errors import ArgumentError, DtypeError, ModelError, ShapeError, StateError

# The layer as fastbn or PyTorch makes it, and the shape of an input.
LAYERS = {
    "layer": (lambda nn: nn.LayerNorm(5), (3, 4, 5)),
    "layer, two axes, no bias": (lambda nn: nn.LayerNorm((4, 5), eps=1e-3, bias=False), (3, 4, 5)),
    "layer, plain": (lambda nn: nn.LayerNorm([5], elementwise_affine=False), (3, 5)),
    "rms": (lambda nn: nn.RMSNorm(5), (3, 4, 5)),
    "rms, plain": (lambda nn: nn.RMSNorm((4, 5), 1e-3, False), (3, 4, 5)),
    "group": (lambda nn: nn.GroupNorm(2, 6), (3, 6, 5, 4)),
    "group of a matrix": (lambda nn: nn.GroupNorm(3, 6, 1e-3), (3, 6)),
    "group, plain": (lambda nn: nn.GroupNorm(6, 6, affine=False), (3, 6, 17)),
    "instance": (lambda nn: nn.InstanceNorm1d(6), (3, 6, 7)),
    "instance, affine": (lambda nn: nn.InstanceNorm2d(6, 1e-3, affine=True), (3, 6, 4, 5)),
    "instance, running": (lambda nn: nn.InstanceNorm3d(6, 1e-5, 0.3, True, True), (3, 6, 2, 4, 5)),
    "instance, still": (lambda nn: nn.InstanceNorm1d(6, momentum=None, track_running_stats=True), (3, 6, 5)),
    "instance, one image": (lambda nn: nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (6, 4, 5)),
}


def randomised(model):
    rng = np.random.default_rng(0)
    for array in model.state_dict().values():
        if array.dtype.kind == "f":
            array[...] = rng.uniform(0.5, 2.0, array.shape)
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_pytorch_agrees_on_names_values_and_gradients(rng, name):
    torch = pytest.importorskip("torch")
    build, shape = LAYERS[name]
    mine, theirs = randomised(build(nn)), build(torch.nn)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.from_numpy(np.array(a)) for key, a in mine.state_dict().items()})
    for training in True, False:
        mine.train(training)
        theirs.train(training)
        x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
        t = torch.from_numpy(x).requires_grad_()
        want = theirs(t)
        np.testing.assert_allclose(mine(x), want.detach().numpy(), rtol=1e-4, atol=1e-5)
        if training:
            want.backward(torch.from_numpy(dy))
            np.testing.assert_allclose(mine.backward(dy), t.grad.numpy(), rtol=1e-4, atol=1e-5)
            gradients = [parameter.grad.numpy() for parameter in theirs.parameters()]
            for got, gradient in zip(mine.parameters(), gradients, strict=True):
                np.testing.assert_allclose(got.grad, gradient, rtol=1e-4, atol=1e-5)
    for key, array in mine.state_dict().items():
        np.testing.assert_allclose(array, theirs.state_dict()[key].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_eval_keeps_nothing_and_a_file_everything(rng, tmp_path, name):
    build, shape = LAYERS[name]
    model = randomised(nn.Sequential(build(nn))).eval()
    x = rng.standard_normal(shape).astype(np.float32)
    y = model(x)
    with pytest.raises(StateError):
        model.backward(y)
    fastbn.save(model, tmp_path / "model.safetensors")
    again = fastbn.load(tmp_path / "model.safetensors")
    assert again[0].config() == model[0].config()
    np.testing.assert_array_equal(again(x), y)


@pytest.mark.parametrize("opset", [10, 17, 21, 23])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "instance, one image"])
def test_onnx(rng, name, dtype, opset):
    build, shape = LAYERS[name]
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), randomised(build(nn))).eval()
    model = model.double() if dtype == np.float64 else model
    proto = ir.to_proto(to_onnx(model, shape[1:], opset))
    onnx.checker.check_model(proto, full_check=True)
    x = rng.standard_normal((2, *shape[1:])).astype(dtype)
    assert_relative(run_onnxruntime(proto, {"input": x})[0], model(x), 1e-5 if dtype == np.float32 else 1e-7)
    whole = {"layer": 17, "group": 21, "rms": 23}
    kind = name.split(",")[0].split()[0]
    if opset >= whole.get(kind, 99):
        names = {"layer": "LayerNormalization", "group": "GroupNormalization", "rms": "RMSNormalization"}
        assert operators(proto)[-1] == names[kind]


def convolutional(axes):
    """A convolution and an instance norm, where it is of constants and where it is not."""
    conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"InstanceNorm{axes}d")
    first = norm(4, affine=True, track_running_stats=True)
    return randomised(nn.Sequential(conv(3, 4, 2), first, nn.ReLU(), conv(4, 5, 1), norm(5)))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_an_instance_norm_with_running_statistics_folds(rng, axes):
    model = convolutional(axes).eval()
    folded = fastbn.fold(model)
    assert [type(module).__name__[:-2] for module in folded.children()] == ["Conv", "Re", "Conv", "InstanceNorm"]
    x = rng.standard_normal((2, 3, *[5] * axes)).astype(np.float32)
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)


def test_one_that_cannot_be_folded_stays():
    """After a linear layer (N, C) is one image (C, L)."""
    model = nn.Sequential(nn.Linear(3, 4), nn.InstanceNorm1d(4, track_running_stats=True))
    assert len(list(fastbn.fold(model).children())) == 2
    bad = convolutional(2)
    bad[1].running_var[2] = -1
    with pytest.raises(ArgumentError, match="fold: batch norm 1: running_var must not be negative"):
        fastbn.fold(bad)


def test_export_folds_it(tmp_path):
    report = export(convolutional(2), tmp_path / "model.onnx", input_shape=(3, 6, 5))
    assert report.ok
    assert report.fold.folded == 1
    assert operators(onnx.load(tmp_path / "model.onnx")) == ["Conv", "Relu", "Conv", "InstanceNormalization"]


@pytest.mark.parametrize("layer", [nn.LayerNorm(5), nn.RMSNorm(5), nn.GroupNorm(2, 4)])
def test_export_proves_the_others(tmp_path, layer):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), layer)
    for opset in 17, 23:
        report = export(model, tmp_path / "model.onnx", input_shape=(3, 6, 5), opset=opset)
        assert report.ok
        assert report.fold.sites[0].into == "Conv 0"


def test_export_refuses_what_has_no_batch_axis_and_negative_variances(tmp_path):
    with pytest.raises(ModelError, match="export: the input of the model must have 4 axes, got 3"):
        export(nn.InstanceNorm2d(1), tmp_path / "model.onnx", input_shape=(4, 5))
    bad = convolutional(2)
    bad[1].running_var[2] = -1
    with pytest.raises(ArgumentError, match="export: instance norm 1: running_var must not be negative"):
        export(bad, tmp_path / "model.onnx", input_shape=(3, 6, 5))


def test_reset_running_stats(rng):
    norm = nn.InstanceNorm1d(3, track_running_stats=True)
    before = copy.deepcopy(norm.state_dict())
    norm(rng.standard_normal((2, 3, 4)).astype(np.float32))
    assert (norm.running_mean != 0).all()
    norm.reset_running_stats()
    for key, array in norm.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


X = np.ones((2, 4, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: nn.LayerNorm(0.5), DtypeError, "LayerNorm: normalized_shape must be an integer, got float"),
        (lambda: nn.LayerNorm(3, -1.0), ArgumentError, "LayerNorm: eps must be at least 0, got -1.0"),
        (lambda: nn.RMSNorm(3, -1.0), ArgumentError, "RMSNorm: eps must be at least 0, got -1.0"),
        (lambda: nn.GroupNorm(3, 4), ArgumentError, "GroupNorm: num_channels must be a multiple of 3, got 4"),
        (lambda: nn.GroupNorm(0, 4), ArgumentError, "GroupNorm: num_groups must be at least 1, got 0"),
        (
            lambda: nn.GroupNorm(2, 6)(X),
            ShapeError,
            "GroupNorm: x must have 6 channels on axis 1, got shape (2, 4, 3)",
        ),
        (lambda: nn.InstanceNorm1d(4, momentum=2.0), ArgumentError,
         "InstanceNorm1d: momentum must be from 0 to 1, got 2.0"),
        (
            lambda: nn.InstanceNorm1d(6)(X),
            ShapeError,
            "InstanceNorm1d: x must have 6 channels on axis 1, got shape (2, 4, 3)",
        ),
        (
            lambda: nn.InstanceNorm2d(6)(X),
            ShapeError,
            "InstanceNorm2d: x must have 6 channels on axis 0, got shape (2, 4, 3)",
        ),
        (
            lambda: nn.InstanceNorm3d(4)(X),
            ShapeError,
            "InstanceNorm3d: x must have 4 or 5 axes (C, D, H, W) or (N, C, D, H, W), got shape (2, 4, 3)",
        ),
        (lambda: nn.LayerNorm(3)(X.astype(np.float16)), DtypeError,
         "LayerNorm: x must be float32 or float64, got float16; cast it with astype"),
    ],
)  # fmt: skip
def test_sentences(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == sentence
