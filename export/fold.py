"""Batch norms of an ONNX graph folded into the nodes before them, and an account of every one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from export.constants import drop_unused
from export.files import BROKEN, as_model, to_proto
from export.refused import Refused
from export.rules import RULES
from export.rules.batch_norm import BatchNormNode
from fastbn.errors import FastbnError, ModelError


@dataclass(frozen=True)
class FoldSite:
    """What became of one batch norm: folded into the node ``into`` (operator and name), or kept for ``reason``."""

    batch_norm: str
    into: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Size:
    """Nodes, parameters (elements of initialisers) and their bytes."""

    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class FoldReport:
    """Every batch norm of a model and its fate, and the model's size before and after."""

    sites: tuple[FoldSite, ...]
    before: Size
    after: Size

    @property
    def folded(self) -> int:
        """How many batch norms are gone."""
        return sum(site.into is not None for site in self.sites)


def fold_onnx(model_or_path: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, FoldReport]:
    """Fold every BatchNormalization that follows a Conv, ConvTranspose or Gemm with constant weights.

    The weights are folded in float64 and rounded once. Names of inputs and outputs, metadata, opsets and whatever is
    not folded stay as they are; the source is not changed. Returns the new model and the report.
    Raises ModelError for a file that is not an ONNX model.
    """
    model = as_model(model_or_path)
    try:
        report = fold_graph(model)
        return to_proto(model), report
    except BROKEN as error:
        raise ModelError(f"fold_onnx: the model must be valid ONNX, got {error}") from error


def fold_graph(model: ir.Model) -> FoldReport:
    """``fold_onnx`` on an onnx-ir model, in place."""
    before = _size(model)
    sites = [_fold_node(model, node) for node in list(_batch_norms(model))]
    return FoldReport(tuple(sites), before, _size(model))


def _fold_node(model: ir.Model, node: ir.Node) -> FoldSite:
    name = node.name or node.outputs[0].name or "batch norm"
    norm = BatchNormNode.read(model, node)
    if isinstance(norm, Refused):
        return FoldSite(name, reason=norm.reason)
    producer = norm.x.producer()
    rule = None if producer is None or producer.domain not in ("", "ai.onnx") else RULES.get(producer.op_type)
    if producer is None:
        return FoldSite(name, reason="nothing comes before it: it reads an input of the graph")
    if rule is None:
        return FoldSite(name, reason=f"it follows {producer.op_type}, which cannot take a batch norm")
    try:
        refused = rule.refuse(model, norm, producer)
        if refused is not None:
            return FoldSite(name, reason=refused.reason)
        rule.rewrite(model, norm, producer)
    except FastbnError as error:
        return FoldSite(name, reason=str(error))
    constants = list(node.inputs[1:])
    norm.take_over(producer)
    drop_unused(model.graph, constants)
    return FoldSite(name, into=f"{producer.op_type} {producer.name}".rstrip())


def _batch_norms(model: ir.Model) -> Iterator[ir.Node]:
    yield from _batch_norms_in(model.graph)
    for function in model.functions.values():
        yield from _batch_norms_in(function)


def _batch_norms_in(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    for node in ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx"):
            yield node


def _size(model: ir.Model) -> Size:
    tensors: list[Any] = [
        value.const_value for value in model.graph.initializers.values() if value.const_value is not None
    ]
    nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(model.graph))
    return Size(nodes, sum(tensor.size for tensor in tensors), sum(tensor.nbytes for tensor in tensors))
