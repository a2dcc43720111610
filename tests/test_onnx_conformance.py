"""ONNX's own cases for BatchNormalization. There momentum weighs the old value, and running variances are biased."""

import importlib
import pkgutil

import numpy as np
import pytest

import fastbn.functional as F

node = pytest.importorskip("onnx.backend.test.case.node")

NAMES = ["batchnorm_example", "batchnorm_epsilon", "batchnorm_example_training_mode", "batchnorm_epsilon_training_mode"]


@pytest.fixture(scope="module")
def cases():
    for module in pkgutil.iter_modules(node.__path__):
        if module.name.startswith("batch"):  # batchnorm or batch_normalization: importing it makes the cases
            importlib.import_module(f"{node.__name__}.{module.name}")
    return {case.name.removeprefix("test_"): case for case in node._NodeTestCases}


@pytest.mark.parametrize("name", NAMES)
def test_case(cases, name):
    case = cases[name]
    attributes = {attribute.name: attribute for attribute in case.model.graph.node[0].attribute}
    eps = attributes["epsilon"].f if "epsilon" in attributes else 1e-5
    momentum = attributes["momentum"].f if "momentum" in attributes else 0.9
    training = "training_mode" in attributes and attributes["training_mode"].i == 1
    ((x, weight, bias, mean, var), outputs) = case.data_sets[0]
    new_mean, new_var = mean.copy(), var.copy()
    y = F.batch_norm(x, new_mean, new_var, weight, bias, training, momentum=1 - momentum, eps=eps)
    if training:
        count = x.size // x.shape[1]
        new_var = momentum * var + (new_var - momentum * var) * (count - 1) / count
    got = (y, new_mean, new_var) if training else (y,)
    for a, b in zip(got, outputs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
