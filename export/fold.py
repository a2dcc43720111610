"""``fold_onnx``: batch norms of an ONNX model folded into their neighbours, and an account of every one."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from export.files import BROKEN, as_model, to_proto
from export.files.broken import reason
from export.folding.chains import fold_chains, is_batch_norm
from export.folding.fates import FoldReport, FoldSite, Size
from export.folding.graph import Graph, is_onnx, name_of
from export.folding.merge_branches import merge_branches as merge
from export.folding.rules import RULES, affine_node
from fastbn.errors import ModelError

__all__ = ["FoldReport", "FoldSite", "Size", "fold_graph", "fold_onnx"]


def fold_onnx(
    model_or_path: str | Path | onnx.ModelProto,
    *,
    chosen: Callable[[str], bool] | None = None,
    allow_overridable: bool = False,
    merge_branches: bool = False,
) -> tuple[onnx.ModelProto, FoldReport]:
    """Fold every batch norm that mathematics allows into its neighbours, whatever it is spelled with.

    chosen: which batch norms, by the name in the report; all unless given. allow_overridable: initialisers that the
    caller may override count as constants. merge_branches: convolutions and batch norms of one value that are added
    become one convolution. Weights are folded in float64 and rounded once. Names of inputs and outputs, metadata,
    opsets and whatever is not folded stay as they are; the source is not changed.
    Returns the new model and the report. Raises ModelError for a file that is not an ONNX model.
    """
    model = as_model(model_or_path)
    try:
        report = fold_graph(model, chosen=chosen, allow_overridable=allow_overridable, merge_branches=merge_branches)
        return to_proto(model), report
    except BROKEN as error:
        raise ModelError(f"fold_onnx: the model must be valid ONNX, got {reason(error)}") from error


def fold_graph(
    model: ir.Model,
    *,
    chosen: Callable[[str], bool] | None = None,
    allow_overridable: bool = False,
    merge_branches: bool = False,
) -> FoldReport:
    """``fold_onnx`` on an onnx-ir model, in place. New weights are computed when they are written."""
    before = _size(model)
    _inline(model)
    graph = Graph(model, overridable=allow_overridable)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    if chosen is not None:
        graph.left_alone = {node for node in nodes if is_batch_norm(node) and not chosen(name_of(node))}
    fates = fold_chains(graph, nodes)
    for node, layer in (merge(graph) if merge_branches else {}).items():
        if node in fates:
            fates[node] = replace(fates[node], into=layer, reason=None, how="merged", values=())
    for node, linear in graph.linears.items():
        RULES[node.op_type].write(graph, node, linear)
    for node, held in list(graph.affines.items()):
        affine_node.write(graph, node, held)
    changed = {value.name for value in graph.changed}
    sites = (replace(site, values=tuple(n for n in site.values if n not in changed)) for site in fates.values())
    return FoldReport(tuple(sites), before, _size(model))


def _inline(model: ir.Model) -> None:
    """Put the model's own functions that have a batch norm in the place of their calls."""

    def holds(function: ir.Function) -> bool:
        nodes = list(ir.traversal.RecursiveGraphIterator(function.graph))
        inner = (model.functions.get(node.op_identifier()) for node in nodes if not is_onnx(node))
        return any(is_batch_norm(node) for node in nodes) or any(holds(called) for called in inner if called)

    if model.functions:
        InlinePass(holds)(model)


def _size(model: ir.Model) -> Size:
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    graphs = [model.graph, *model.graph.subgraphs()]
    tensors: list[Any] = [value.const_value for graph in graphs for value in graph.initializers.values()]
    tensors += [node.outputs[0].const_value for node in nodes if node.op_type == "Constant"]
    sizes = [(tensor.size, tensor.dtype.itemsize) for tensor in tensors if tensor is not None]
    return Size(len(nodes), sum(size for size, _ in sizes), sum(math.ceil(size * width) for size, width in sizes))
