"""fastbn models as ONNX: the same outputs at every opset and batch, what is folded, the report, and what is refused."""

import copy
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_models import assert_relative, initializers, operators, run_onnxruntime

import fastbn
from export import export
from export.convert import to_onnx
from export.fold import fold_graph
from fastbn import nn
from fastbn.errors import ArgumentError, FastbnError, ModelError, ShapeError
from fastbn.models import lenet, mobilenet_v2

OPSETS = (10, 13, 17, 21)


def randomised(model, seed=0):
    """Random parameters and statistics; every batch norm's first scale is 0 and its second negative."""
    rng = np.random.default_rng(seed)
    for name, array in model.state_dict().items():
        if name.endswith("running_var"):
            array[...] = rng.uniform(0.3, 2.0, array.shape)
        elif not name.endswith("num_batches_tracked"):
            array[...] = rng.standard_normal(array.shape) / max(1.0, np.sqrt(array[:1].size))
    for module in model.modules():
        if isinstance(module, nn.batchnorm.BatchNorm) and module.weight is not None:
            module.weight.data[:2] = 0.0, -1.5
    return model


def residual():
    first = nn.Residual(
        {
            "conv1": nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
            "bn1": nn.BatchNorm2d(8),
            "relu": nn.ReLU(),
            "conv2": nn.Conv2d(8, 12, (1, 3), stride=2, padding=(0, 1)),
            "bn2": nn.BatchNorm2d(12, eps=1e-3),
        },
        downsample=nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12)),
        activation=nn.ReLU(),
    )
    depthwise = nn.Conv2d(12, 12, 3, padding="same", groups=12)
    second = nn.Residual({"conv": depthwise, "bn": nn.BatchNorm2d(12)})
    return nn.Sequential(
        {
            "conv": nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            "bn": nn.BatchNorm2d(8),
            "relu": nn.ReLU(),
            "max": nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
            "block": first,
            "depthwise": second,
            "avg": nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
            "gap": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "fc": nn.Linear(12, 5),
        }
    )


def mlp(**options):
    return nn.Sequential(
        nn.Linear(6, 8, bias=False),
        nn.BatchNorm1d(8, **options),
        nn.ReLU(),
        nn.Linear(8, 4),
        nn.BatchNorm1d(4, **options),
        nn.Sigmoid(),
    )


def clipped():
    """ReLU6, Dropout, and a batch norm deep in a residual, as in MobileNetV2."""
    inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4), nn.ReLU6())
    block = nn.Residual({"conv": nn.Sequential(inner, nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))})
    features = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU6(), block)
    classifier = nn.Sequential(nn.Dropout(), nn.Linear(4, 5))
    names = ("features", "avgpool", "flatten", "classifier")
    return nn.Sequential(dict(zip(names, (features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier), strict=True)))


def shared():
    """One block at two places, and a convolution at two places with a batch norm for each."""
    block = nn.Sequential({"conv": nn.Conv2d(3, 3, 3, padding=1), "bn": nn.BatchNorm2d(3)})
    conv = nn.Conv2d(3, 3, 1)
    names = ("one", "relu", "two", "a", "na", "b", "nb")
    return nn.Sequential(
        dict(zip(names, (block, nn.ReLU(), block, conv, nn.BatchNorm2d(3), conv, nn.BatchNorm2d(3)), strict=True))
    )


def folded_in_training(**options):
    return nn.Sequential(
        {
            "conv": nn.ConvBn2d(2, 4, 3, stride=2, bias=True, relu=True, **options),
            "flatten": nn.Flatten(),
            "fc": nn.LinearBn1d(16, 3, **options),
        }
    )


def in_eighths(weight):
    return np.round(weight * 8) / 8


def alone(layer):
    return nn.Sequential({"bn": layer})


INPUT = "nothing comes before it: it reads an input of the graph"

# name: (the model, one sample's shape, where each batch norm goes)
NETWORKS = {
    "lenet": (lenet, (1, 28, 28), {"1": "Conv 0", "5": "Conv 4", "10": "Gemm 9", "13": "Gemm 12"}),
    "residual": (
        residual,
        (3, 17, 19),
        {
            "bn": "Conv conv",
            "block.bn1": "Conv block.conv1",
            "block.bn2": "Conv block.conv2",
            "block.downsample.1": "Conv block.downsample.0",
            "depthwise.bn": "Conv depthwise.conv",
        },
    ),
    "mlp": (mlp, (6,), {"1": "Gemm 0", "4": "Gemm 3"}),
    "mlp, no affine": (lambda: mlp(affine=False), (6,), {"1": "Gemm 0", "4": "Gemm 3"}),
    "mlp, frozen": (lambda: mlp(frozen=True), (6,), {"1": "Gemm 0", "4": "Gemm 3"}),
    "mlp, cumulative": (lambda: mlp(momentum=None), (6,), {"1": "Gemm 0", "4": "Gemm 3"}),
    "mlp, float64": (lambda: mlp().double(), (6,), {"1": "Gemm 0", "4": "Gemm 3"}),
    "shared": (
        shared,
        (3, 6, 5),
        {"one.bn": "Conv one.conv", "two.bn": "Conv two.conv", "na": "Conv a", "nb": "Conv b"},
    ),
    "BatchNorm1d on (N, C)": (lambda: alone(nn.BatchNorm1d(4)), (4,), {"bn": INPUT}),
    "BatchNorm1d on (N, C, L)": (lambda: alone(nn.BatchNorm1d(4)), (4, 7), {"bn": INPUT}),
    "BatchNorm2d alone": (lambda: alone(nn.BatchNorm2d(4)), (4, 3, 2), {"bn": INPUT}),
    "BatchNorm3d alone": (lambda: alone(nn.BatchNorm3d(4)), (4, 2, 3, 2), {"bn": INPUT}),
    "Linear on (N, L, C)": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2, bias=False)),
        (4, 5),
        {"1": "Add 0.add before it acts on another axis"},
    ),
    "Flatten to Linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)),
        (3, 2, 2),
        {"2": "Gemm 1"},
    ),
    "names that ONNX uses": (
        lambda: nn.Sequential({"input": nn.Conv2d(1, 2, 3), "output": nn.BatchNorm2d(2)}),
        (1, 5, 5),
        {"output": "Conv input"},
    ),
    "a residual called add": (
        lambda: nn.Residual({"add": nn.Conv2d(2, 2, 1), "bn": nn.BatchNorm2d(2)}),
        (2, 3, 3),
        {"bn": "Conv add"},
    ),
    "clipped": (
        clipped,
        (3, 6, 7),
        {
            "features.1": "Conv features.0",
            "features.3.conv.0.1": "Conv features.3.conv.0.0",
            "features.3.conv.2": "Conv features.3.conv.1",
        },
    ),
    "ReLU6 alone": (nn.ReLU6, (2, 3), {}),
    "ReLU6 in two places": (lambda: nn.Sequential(*[nn.ReLU6()] * 2), (5,), {}),
    "dropout alone": (nn.Dropout, (2, 3), {}),
    "dropout before a batch norm": (
        lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.BatchNorm1d(2)),
        (3,),
        {"2": "Gemm 0"},
    ),
    "one axis": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1, groups=1, stride=2), nn.BatchNorm1d(4), nn.ReLU()),
        (3, 9),
        {"1": "Conv 0"},
    ),
    "three axes": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 2), bias=False), nn.BatchNorm3d(4)),
        (2, 3, 4, 5),
        {"1": "Conv 0"},
    ),
    "folded in training": (folded_in_training, (2, 6, 5), {"conv.bn": "Conv conv.conv", "fc.bn": "Gemm fc.linear"}),
    "folded in training, quantised": (lambda: folded_in_training(weight_quantizer=in_eighths), (2, 6, 5), {}),
    "folded in training, for good": (lambda: nn.fold_(folded_in_training()), (2, 6, 5), {}),
    "one layer": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 5), {}),
    "no layer": (nn.Sequential, (2, 3), {}),
    "identity": (nn.Identity, (2,), {}),
}


def made(name):
    build, shape, fates = NETWORKS[name]
    return randomised(build()).eval(), shape, fates


def inputs(model, shape, batch, seed=1):
    dtype = next((parameter.dtype for parameter in model.parameters()), np.dtype(np.float32))
    return np.random.default_rng(seed).standard_normal((batch, *shape)).astype(dtype)


def exact(model, x):
    """The model's output, computed in float64."""
    return copy.deepcopy(model).double().eval()(x.astype(np.float64))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_before_and_after_folding(name, opset):
    model, shape, fates = made(name)
    written = to_onnx(model, shape, opset)
    unfolded = ir.to_proto(written)
    report = fold_graph(written)
    folded = ir.to_proto(written)
    assert {site.batch_norm for site in report.sites} == fates.keys()
    for site in report.sites:
        assert (site.into or site.reason).startswith(fates[site.batch_norm])
    assert report.folded == sum(site.into is not None for site in report.sites)
    assert operators(folded).count("BatchNormalization") == len(fates) - report.folded
    for proto in (unfolded, folded):
        onnx.checker.check_model(proto, full_check=True)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
        assert [value.name for value in proto.graph.input] == ["input"]
        assert [value.name for value in proto.graph.output] == ["output"]
        for batch in (1, 5):
            x = inputs(model, shape, batch)
            [got] = run_onnxruntime(proto, {"input": x})
            assert got.dtype == x.dtype
            assert_relative(got, exact(model, x), 1e-13 if x.dtype == np.float64 else 1e-5)


POOLS = {
    "max": lambda k, s, p, ceil: nn.MaxPool2d(k, s, p, ceil_mode=ceil),
    "max dilated": lambda k, s, p, ceil: nn.MaxPool2d(k, s, p, 2, ceil),
    "avg": lambda k, s, p, ceil: nn.AvgPool2d(k, s, p, ceil),
    "avg without pad": lambda k, s, p, ceil: nn.AvgPool2d(k, s, p, ceil, False),
}


@pytest.mark.parametrize("opset", [10, 17, 22])
@pytest.mark.parametrize("kind", POOLS)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pooling_at_the_edges(kind, ceil_mode, opset):
    """Every way a last window can hang over the edge; where fastbn refuses the window, there is nothing to compare."""
    compared = 0
    for kernel, stride, padding, height in np.ndindex(4, 4, 3, 4):
        pool = POOLS[kind]((kernel + 1, 2), (stride + 1, 3), (padding, 1), ceil_mode).eval()
        x = np.random.default_rng(0).standard_normal((2, 2, height + 4, 5)).astype(np.float32)
        try:
            want = pool(x)
        except FastbnError:
            continue
        [got] = run_onnxruntime(ir.to_proto(to_onnx(pool, x.shape[1:], opset)), {"input": x})
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6, err_msg=f"{pool!r} on {x.shape}")
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("name", ["lenet", "residual", "mlp", "mlp, no affine", "mlp, float64"])
def test_folded_weights_are_those_of_fold_bit_for_bit(name):
    model, shape, _ = made(name)
    written = to_onnx(model, shape, 17)
    fold_graph(written)
    stored = {
        name.replace(".weight.bias", ".bias"): array for name, array in initializers(ir.to_proto(written)).items()
    }
    want = fastbn.fold(model).state_dict()
    assert stored.keys() == want.keys()
    for key, array in stored.items():
        assert array.dtype == want[key].dtype
        # An ONNX graph holds eps in float32, which shows in float64 weights.
        rtol = 0 if array.dtype == np.float32 else 1e-7
        np.testing.assert_allclose(array, want[key], rtol=rtol, err_msg=key)


def test_report_of_lenet(tmp_path):
    model, shape, fates = made("lenet")
    report = export(model, tmp_path / "lenet.onnx", input_shape=shape)
    assert report.path == str(tmp_path / "lenet.onnx")
    assert report.ok
    assert {site.batch_norm: site.into for site in report.fold.sites} == fates
    assert all(site.reason is None for site in report.fold.sites)
    assert report.fold.folded == 4
    before, after = report.fold.before, report.fold.after
    assert (before.nodes, before.parameters, before.bytes) == (16, 45330, 4 * 45330)
    assert (after.nodes, after.parameters, after.bytes) == (12, 44426, 4 * 44426)
    for comparison in (report.against_model, report.against_unfolded):
        assert comparison.ok
        assert comparison.inputs == 3
        assert 0 < comparison.max_rel < 1e-5
        assert comparison.tolerance == 1e-4
        assert [output.output for output in comparison.outputs] == ["output"]
    as_json = json.loads(json.dumps(report.as_dict()))
    assert as_json["ok"] is True
    assert as_json["fold"]["after"] == {"nodes": 12, "parameters": 44426, "bytes": 4 * 44426}
    assert [entry.name for entry in tmp_path.iterdir()] == ["lenet.onnx"]


@pytest.mark.parametrize("opset", [10, 17])
def test_mobilenet_v2_loses_all_its_batch_norms(tmp_path, opset):
    fastbn.manual_seed(0)
    model = mobilenet_v2(10, width_mult=0.1)
    rng = np.random.default_rng(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean[...] = rng.normal(size=module.num_features)
            module.running_var[...] = rng.uniform(0.5, 2, module.num_features)
    report = export(model, tmp_path / "mobilenet.onnx", input_shape=(3, 64, 64), opset=opset)
    assert report.ok
    assert report.against_model.max_rel < 1e-5
    assert report.fold.folded == len(report.fold.sites) == 52
    proto = onnx.load(tmp_path / "mobilenet.onnx")
    onnx.checker.check_model(proto, full_check=True)
    kinds = operators(proto)
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Conv": 52,
        "Clip": 35,
        "Add": 11,  # one more than at full width: here the first block has as many channels after as before
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
    }
    clip = next(node for node in proto.graph.node if node.op_type == "Clip")
    if opset < 11:
        assert {attribute.name: attribute.f for attribute in clip.attribute} == {"min": 0, "max": 6}
    else:
        stored = initializers(proto)
        assert [(stored[name].dtype, stored[name].item()) for name in clip.input[1:]] == [("f", 0), ("f", 6)]


def test_file_on_disk(tmp_path):
    model, shape, _ = made("lenet")
    path = tmp_path / "lenet.onnx"
    export(model, str(path), input_shape=(1, *shape), opset=13)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.producer_name == "fastbn"
    assert proto.producer_version == fastbn.__version__
    assert proto.opset_import[0].version == 13
    [value] = proto.graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
    assert sizes == ["N", 1, 28, 28]
    [value] = proto.graph.output
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["N", 10]
    x = inputs(model, shape, 2)
    assert_relative(run_onnxruntime(str(path), {"input": x})[0], exact(model, x), 1e-5)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_unfolded_path_keeps_the_twin(tmp_path, kind):
    model, shape, _ = made("mlp")
    folded, unfolded = tmp_path / "folded.onnx", tmp_path / "unfolded.onnx"
    report = export(model, kind(folded), input_shape=shape, unfolded_path=kind(unfolded))
    assert report.ok
    assert sorted(tmp_path.iterdir()) == [folded, unfolded]
    assert operators(onnx.load(unfolded)).count("BatchNormalization") == 2
    assert operators(onnx.load(folded)).count("BatchNormalization") == 0
    stored = initializers(onnx.load(unfolded))
    for key, array in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(stored[key], array)


def test_no_fold(tmp_path):
    model, shape, _ = made("mlp")
    report = export(model, tmp_path / "mlp.onnx", input_shape=shape, fold=False)
    assert report.ok
    assert report.fold is None
    assert report.against_unfolded is None
    assert report.as_dict()["fold"] is None
    assert operators(onnx.load(tmp_path / "mlp.onnx")).count("BatchNormalization") == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["mlp.onnx"]


def test_no_fold_keeps_the_twin_when_asked(tmp_path):
    """Not silently less than what was asked for."""
    model, shape, _ = made("mlp")
    export(model, tmp_path / "mlp.onnx", input_shape=shape, fold=False, unfolded_path=tmp_path / "unfolded.onnx")
    assert operators(onnx.load(tmp_path / "unfolded.onnx")).count("BatchNormalization") == 2


def test_one_path_for_both_models_is_refused(tmp_path):
    model, shape, _ = made("mlp")
    path = tmp_path / "mlp.onnx"
    with pytest.raises(FastbnError, match=r"must .* got"):
        export(model, path, input_shape=shape, unfolded_path=tmp_path / "." / "mlp.onnx")
    assert not list(tmp_path.iterdir())


def test_differing_outputs_are_written_all_the_same(tmp_path):
    model, shape, _ = made("mlp")
    report = export(model, tmp_path / "mlp.onnx", input_shape=shape, tolerance=0)
    assert not report.ok
    assert report.as_dict()["ok"] is False
    assert (tmp_path / "mlp.onnx").is_file()


def test_export_replaces_a_file(tmp_path):
    model, shape, _ = made("mlp")
    (tmp_path / "mlp.onnx").write_text("what was there before")
    assert export(model, tmp_path / "mlp.onnx", input_shape=shape).ok
    assert operators(onnx.load(tmp_path / "mlp.onnx")).count("Gemm") == 2


def test_model_is_left_as_it_was(tmp_path):
    model = randomised(lenet())
    x = inputs(model, (1, 28, 28), 4)
    model.train().backward(np.ones_like(model(x)))
    output = model(x)
    model[1].training = model[8].training = False
    state = {key: array.copy() for key, array in model.state_dict().items()}
    grads = [parameter.grad.copy() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    saved = [module._saved for module in model.modules()]
    assert export(model, tmp_path / "lenet.onnx", input_shape=(1, 28, 28)).ok
    assert [module.training for module in model.modules()] == modes
    assert all(module._saved is kept for module, kept in zip(model.modules(), saved, strict=True))
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        np.testing.assert_array_equal(parameter.grad, grad)
    model.backward(np.ones_like(output))


def test_training_mode_exports_eval_mode(tmp_path):
    model, shape, _ = made("mlp")
    export(model.train(), tmp_path / "mlp.onnx", input_shape=shape)
    x = inputs(model, shape, 3)
    assert_relative(run_onnxruntime(str(tmp_path / "mlp.onnx"), {"input": x})[0], exact(model, x), 1e-5)


# Refusals


class Twice(nn.Module):
    def forward(self, x):
        return x + x


def negative_variance():
    model = mlp()
    model[4].running_var[2] = -0.25
    return model


def without_statistics(layer):
    return nn.Sequential({"conv": nn.Conv2d(1, 2, 1), "bn": layer})


REFUSED = {
    "a module of the user's": (Twice, (3,), {}, ModelError, "the model must be a layer of fastbn.nn, got Twice"),
    "one inside": (
        lambda: nn.Sequential({"a": nn.Sequential({"b": Twice()})}),
        (3,),
        {},
        ModelError,
        "a.b must be a layer of fastbn.nn, got Twice",
    ),
    "one as activation": (
        lambda: nn.Sequential(nn.Residual(nn.ReLU(), activation=Twice())),
        (3,),
        {},
        ModelError,
        "0.activation must be a layer of fastbn.nn, got Twice",
    ),
    "no running statistics": (
        lambda: without_statistics(nn.BatchNorm2d(2, track_running_stats=False)),
        (1, 4, 4),
        {},
        ModelError,
        "batch norm bn must have running statistics",
    ),
    "no running statistics, one value per channel": (
        lambda: mlp(track_running_stats=False),
        (6,),
        {},
        ModelError,
        "batch norm 1 must have running statistics",
    ),
    "negative variance": (negative_variance, (6,), {}, FastbnError, r"batch norm 4: .*-0.25 in channel 2"),
    "float64 convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3)).double(),
        (1, 5, 5),
        {},
        ModelError,
        "onnxruntime must be able to run the model",
    ),
    "opset below": (mlp, (6,), {"opset": 9}, ArgumentError, "opset must be an integer from 10 to"),
    "opset above": (mlp, (6,), {"opset": 99}, ArgumentError, "opset must be .* got 99"),
    "opset as a float": (mlp, (6,), {"opset": 17.0}, ArgumentError, "opset must be .* got 17.0"),
    "opset as a bool": (mlp, (6,), {"opset": True}, ArgumentError, "opset must be .* got True"),
    "opset as text": (mlp, (6,), {"opset": "17"}, ArgumentError, "opset must be .* got '17'"),
    "tolerance below zero": (mlp, (6,), {"tolerance": -1.0}, ArgumentError, "tolerance must be at least 0"),
    "tolerance NaN": (mlp, (6,), {"tolerance": float("nan")}, ArgumentError, "tolerance must be at least 0"),
    "empty input_shape": (mlp, (), {}, ArgumentError, "input_shape must be positive integers"),
    "zero in input_shape": (mlp, (0,), {}, ArgumentError, "input_shape must be positive integers"),
    "float in input_shape": (mlp, (6.0,), {}, ArgumentError, "input_shape must be positive integers"),
    "bool in input_shape": (mlp, (True, 6), {}, ArgumentError, "input_shape must be positive integers"),
    "text as input_shape": (mlp, "6", {}, ArgumentError, "input_shape must be positive integers"),
    "number as input_shape": (mlp, 6, {}, FastbnError, "input_shape must be"),
    "None as input_shape": (mlp, None, {}, FastbnError, "input_shape must be"),
    "another input_shape": (mlp, (7,), {}, ShapeError, "must"),
    "too few axes": (lenet, (28, 28), {}, ShapeError, "must have 4 axes"),
    "wrong channels": (lenet, (3, 28, 28), {}, ShapeError, "channel|weight must have shape"),
    "something else than a model": (lambda: 3, (3,), {}, FastbnError, "model must be"),
    "a class": (lambda: nn.ReLU, (3,), {}, FastbnError, "model must be"),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_and_writes_nothing(tmp_path, case, fold):
    build, shape, options, kind, sentence = REFUSED[case]
    with pytest.raises(kind, match=sentence) as caught:
        export(build(), tmp_path / "model.onnx", input_shape=shape, fold=fold, **options)
    assert "must" in str(caught.value)
    assert "got" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_float64_batch_norm_without_parameters(tmp_path):
    """Its dtype shows in its statistics only."""
    model = alone(nn.BatchNorm1d(4, affine=False)).double()
    model.bn.running_mean[...] = 0.1
    assert export(model, tmp_path / "bn.onnx", input_shape=(4,)).ok
    assert onnx.load(tmp_path / "bn.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE


@pytest.mark.parametrize("paths", [("missing/a.onnx", None), ("a.onnx", "missing/b.onnx")])
def test_missing_folder(tmp_path, monkeypatch, paths):
    model, shape, _ = made("mlp")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="must be in a folder that exists, got no missing"):
        export(model, paths[0], input_shape=shape, unfolded_path=paths[1])
    assert not list(tmp_path.iterdir())


def test_folder_in_the_place_of_the_file(tmp_path):
    model, shape, _ = made("mlp")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ModelError, match="must be a file, got a folder"):
        export(model, tmp_path / "model.onnx", input_shape=shape)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_files_that_were_there_survive_a_failure(tmp_path):
    folded, unfolded = tmp_path / "model.onnx", tmp_path / "unfolded.onnx"
    folded.write_text("one")
    unfolded.write_text("two")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).double()
    with pytest.raises(ModelError, match="onnxruntime must be able to run"):
        export(model, folded, input_shape=(1, 5, 5), unfolded_path=unfolded)
    assert folded.read_text() == "one"
    assert unfolded.read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 2


def test_variance_that_cannot_be_folded_keeps_the_batch_norm(tmp_path):
    model = randomised(mlp())
    model[1].running_var[2] = np.nan
    report = export(model, tmp_path / "mlp.onnx", input_shape=(6,))
    kept, folded = report.fold.sites
    assert kept.into is None
    assert "nan in channel 2" in kept.reason
    assert folded.into == "Gemm 3"
    assert operators(onnx.load(tmp_path / "mlp.onnx")).count("BatchNormalization") == 1
