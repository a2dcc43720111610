"""Folding of whole networks: ONNX's light models, the models of the onnx wheel that PyTorch wrote, networks of ours."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import random_feeds, run_onnxruntime, statistics
from referee import truth

from bench.light import LIGHT, light, reseeded
from export import fold_onnx

CONVERTED = sorted(
    (Path(onnx.__file__).parent / "backend" / "test" / "data" / "pytorch-converted").glob("*/model.onnx")
)


def count(model, *operators):
    return sum(node.op_type in operators for node in model.graph.node)


def assert_near(got, want, tolerance):
    assert got.shape == want.shape
    assert np.abs(want).max() > 0
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("name", LIGHT)
def test_light_models_as_they_come(name):
    """Every weight is made by a ConstantOfShape; scales and shifts of their own follow the batch norms."""
    norms, left = LIGHT[name]
    folded, report = fold_onnx(light(name))
    assert len([site for site in report.sites if site.operators == "BatchNormalization"]) == norms
    assert sum(site.into is None for site in report.sites if site.operators == "BatchNormalization") == left
    assert count(folded, "BatchNormalization", "Mul") <= left
    if not left:
        assert count(folded, "BatchNormalization", "Mul", "Add") == 0
    onnx.checker.check_model(folded, full_check=True)


@pytest.mark.parametrize("name", LIGHT)
def test_light_models_with_random_weights(name, rng):
    model = reseeded(name)
    folded, _ = fold_onnx(model)
    assert count(folded, "BatchNormalization", "Mul") <= LIGHT[name][1]
    x = random_feeds(model, rng)
    assert_near(run_onnxruntime(folded, x)[0], run_onnxruntime(model, x)[0], 1e-5)


def with_batch_norm(path, rng):
    """The model with a batch norm behind its first output; None where that cannot have one."""
    model = onnx.load(path)
    output = model.graph.output[0]
    sizes = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    if output.type.tensor_type.elem_type != TensorProto.FLOAT or len(sizes) < 2:
        return None
    arrays = statistics(rng, sizes[1], "_norm")
    names = [f"{name}_norm" for name in "sbmv"]
    model.graph.node.append(helper.make_node("BatchNormalization", [output.name, *names], ["normed"]))
    if model.opset_import[0].version < 7:
        model.graph.node[-1].attribute.append(helper.make_attribute("is_test", 1))
    model.graph.initializer.extend(numpy_helper.from_array(arrays[name], name) for name in names)
    if model.ir_version < 4:
        model.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, arrays[name].shape) for name in names
        )
    output.name = "normed"
    return model


@pytest.mark.parametrize("path", CONVERTED, ids=lambda path: path.parent.name)
def test_converted_models_with_a_batch_norm_appended(path, rng):
    model = with_batch_norm(path, rng)
    if model is None:
        pytest.skip("its output cannot have a batch norm")
    folded, report = fold_onnx(model)
    onnx.checker.check_model(folded, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    if operators[-2] in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"):
        assert count(folded, "BatchNormalization") == operators.count("BatchNormalization") - 1
    else:
        assert [site.into is None for site in report.sites if site.batch_norm == "normed"] == [True]
    x = integers_for(model, random_feeds(model, rng))
    for got, want in zip(truth(folded, x), truth(model, x), strict=True):
        assert_near(got, want, 1e-5)


def integers_for(model, feeds):
    """Embeddings want indices."""
    return {name: abs(array) % 3 if array.dtype.kind == "i" else array for name, array in feeds.items()}


@pytest.fixture(scope="module")
def zoo():
    pytest.importorskip("torch")
    return pytest.importorskip("bench.zoo")


EXPORTED = (
    "ResNet, basic",
    "ResNet, bottleneck",
    "ResNet-D",
    "ResNet, pre-activated",
    "VGG",
    "MobileNetV1",
    "MobileNetV2",
    "EfficientNet",
    "RegNet",
    "DenseNet",
    "ShuffleNetV2",
    "Inception",
    "RepVGG",
    "MobileOne",
    "LeViT",
    "U-Net",
    "DCGAN",
    "PointNet",
    "video",
    "MLP",
)


def test_every_network_is_tested(zoo):
    assert set(EXPORTED) == set(zoo.NETWORKS)


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", EXPORTED)
def test_exported_networks(zoo, rng, name, opset):
    model, network = zoo.exported(name, opset), zoo.NETWORKS[name]
    folded, report = fold_onnx(model)
    assert len([s for s in report.sites if s.operators == "BatchNormalization"]) == count(model, "BatchNormalization")
    assert sum(site.into is None for site in report.sites) == network.left, report.sites
    onnx.checker.check_model(folded, full_check=True)
    for batch in (1, 3):
        x = random_feeds(model, rng, batch)
        want = truth(model, x)[0]
        assert_near(truth(folded, x)[0], want, 1e-5)
        assert_near(run_onnxruntime(folded, x)[0], want, 1e-4)


@pytest.mark.parametrize("name", ["RepVGG", "MobileOne"])
def test_branches_become_one_convolution(zoo, rng, name):
    model, network = zoo.exported(name), zoo.NETWORKS[name]
    folded, report = fold_onnx(model, merge_branches=True)
    assert sum(site.into is None for site in report.sites) == network.left_merged == 0
    assert count(folded, "Add", "Mul", "BatchNormalization") == 0
    assert count(folded, "Conv") == count(model, "Relu")
    x = random_feeds(model, rng)
    want = truth(model, x)[0]
    assert_near(truth(folded, x)[0], want, 1e-5)
    assert_near(run_onnxruntime(folded, x)[0], want, 1e-4)
