"""Folding of random graphs: the same numbers in float64, every batch norm accounted for, and nothing left to do."""

import re

import hypothesis
import numpy as np
import onnx
from random_graphs import graphs
from referee import truth

from export import fold_onnx

SETTINGS = hypothesis.settings(
    deadline=None, max_examples=300, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)

# What takes a batch norm and may be written as one then.
AFFINE = re.compile(r"\b(BatchNormalization|Mul|Add|Sub|Div)\b")


def feeds(model, batch, seed):
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = {"x": np.random.default_rng(seed).standard_normal((batch, *sizes))}
    return x | {"flag": np.array(batch == 1)} if len(model.graph.input) > 1 else x


def norms(model):
    """Batch norms, in branches too."""
    inner = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    nodes = [node for graph in (model.graph, *inner) for node in graph.node]
    return sum(node.op_type == "BatchNormalization" for node in nodes)


@SETTINGS
@hypothesis.given(graphs())
def test_random_graphs(model):
    folded, report = fold_onnx(model)
    onnx.checker.check_model(folded, full_check=True)
    for seed, batch in enumerate((1, 3)):
        x = feeds(model, batch, seed)
        for output, got, want in zip(model.graph.output, truth(folded, x), truth(model, x), strict=True):
            assert got.shape == want.shape
            assert np.abs(got - want).max() <= 1e-10 * max(np.abs(want).max(), 1), output.name
    of_norms = [site for site in report.sites if site.operators == "BatchNormalization"]
    assert len(of_norms) == norms(model)
    assert norms(folded) <= sum(1 if site.into is None else len(AFFINE.findall(site.into)) for site in report.sites)
    again, _ = fold_onnx(folded)
    assert list(again.graph.node) == list(folded.graph.node)
    assert sorted(map(str, again.graph.initializer)) == sorted(map(str, folded.graph.initializer))
