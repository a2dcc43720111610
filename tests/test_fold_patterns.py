"""The table of patterns: that it is sound itself, the fate of every batch norm, and the numbers whatever the fate."""

from collections import Counter
from functools import cache

import numpy as np
import onnx
import pytest
from fold_patterns import PATTERNS
from onnx_models import run_onnxruntime
from referee import truth

from export import fold_onnx

SEEDS = (0, 1, 2, None)
ARITHMETIC = {"Mul", "Add", "Sub", "Div"}

every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())


@cache
def folded(pattern_name):
    pattern = PATTERNS[pattern_name]
    return fold_onnx(pattern.model(), **pattern.options)


@cache
def wanted(pattern_name, seed):
    """The inputs, and every value of the source in float64."""
    pattern = PATTERNS[pattern_name]
    model = pattern.model()
    feeds = pattern.feeds(model, seed)
    return feeds, truth(model, feeds, every=True)


def nodes(graph):
    """Of a graph or function and all that is inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def every_node(model):
    return [node for graph in (model.graph, *model.functions) for node in nodes(graph)]


def left_over(model):
    """Operators of the main graph, constants aside."""
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def assert_near(got, want, tolerance, name):
    """Within ``tolerance`` of the largest finite value; what is not finite must be so in both."""
    assert got.shape == want.shape, name
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite, err_msg=name)
    largest = np.abs(want[finite]).max(initial=0)
    worst = np.abs(got[finite] - want[finite]).max(initial=0)
    assert worst <= tolerance * largest, f"{name}: {worst / max(largest, 1e-300):.1e} of the largest value"


@every_pattern
def test_the_table_is_sound(pattern):
    """Every model is valid, has an answer that is not zero throughout, and onnxruntime finds the same."""
    model = pattern.model()
    onnx.checker.check_model(model, full_check=True)
    outputs = [output.name for output in model.graph.output]
    assert all(any(np.any(wanted(pattern.name, seed)[1][name]) for seed in SEEDS) for name in outputs)
    for seed in SEEDS:
        feeds, want = wanted(pattern.name, seed)
        if pattern.runs:
            for name, got in zip(outputs, run_onnxruntime(model, feeds), strict=True):
                assert_near(got, want[name], max(pattern.within, 2e-5), name)


@every_pattern
def test_fate(pattern):
    model, report = folded(pattern.name)
    norms = [node for node in every_node(pattern.model()) if node.op_type == "BatchNormalization"]
    kept = sum(node.op_type == "BatchNormalization" for node in every_node(model))
    accounted = Counter(site.batch_norm for site in report.sites if site.operators == "BatchNormalization")
    if not pattern.functions:
        assert accounted == Counter(node.name or node.output[0] for node in norms)
    assert len(accounted) >= len(norms)
    for site in report.sites:
        assert (site.into is None) != (site.reason is None), site
        assert site.how in ("backward", "forward", "merged", None), site
    if pattern.fate == "stays":
        reasons = [site.reason for site in report.sites if site.reason]
        assert any(word in reason for reason in reasons for word in pattern.reason.split("|")), reasons
    if pattern.fate == "gone":
        assert kept == 0, report.sites
        assert [site.reason for site in report.sites] == [None] * len(report.sites)
    if pattern.left is not None:
        answers = [Counter(answer.split()) for answer in pattern.left.split("|")]
        assert left_over(model) in answers


@every_pattern
def test_numbers(pattern):
    """In float64 only the rounding of the folded constants is left; and onnxruntime takes the model."""
    source, (model, report) = pattern.model(), folded(pattern.name)
    onnx.checker.check_model(model, full_check=True)
    outputs = [output.name for output in source.graph.output]
    for seed in SEEDS:
        feeds, want = wanted(pattern.name, seed)
        got = truth(model, feeds, every=True)
        watched = {name for site in report.sites for name in site.values if name in want and name in got}
        for name in (*outputs, *watched):
            assert_near(got[name], want[name], pattern.within, name)
        if pattern.runs:
            for name, array in zip(outputs, run_onnxruntime(model, feeds), strict=True):
                assert array.dtype == run_dtype(source, name)
                assert_near(array, want[name], max(10 * pattern.within, 2e-5), name)


def run_dtype(model, name):
    [kind] = [output.type.tensor_type.elem_type for output in model.graph.output if output.name == name]
    return onnx.helper.tensor_dtype_to_np_dtype(kind)


@every_pattern
def test_what_is_kept(pattern):
    """The source, its names, types, opsets and readers' order; and folding again changes nothing."""
    source, (model, _) = pattern.model(), folded(pattern.name)
    before = source.SerializeToString(deterministic=True)
    again = fold_onnx(source, **pattern.options)[0]
    assert source.SerializeToString(deterministic=True) == before
    assert again == model
    stored = {tensor.name for graph in (source.graph, model.graph) for tensor in graph.initializer}
    assert [value for value in model.graph.input if value.name not in stored] == [
        value for value in source.graph.input if value.name not in stored
    ]
    assert list(model.graph.output) == list(source.graph.output)
    assert (model.ir_version, list(model.opset_import)) == (source.ir_version, list(source.opset_import))
    twice, report = fold_onnx(model, **pattern.options)
    assert left_over(twice) == left_over(model)
    assert all(site.into is None for site in report.sites if site.operators == "BatchNormalization")
