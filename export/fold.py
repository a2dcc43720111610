"""``fold_onnx``: batch norms of an ONNX model folded into their neighbours, and an account of every one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from export.files import BROKEN, as_model, to_proto
from export.files.broken import reason
from export.folding.chains import fold_chains, leave_alone
from export.folding.fates import FoldReport, FoldSite, Size, size_of
from export.folding.graph import Graph
from export.folding.inline import inline_functions
from export.folding.merge_branches import merge_branches as merge
from export.folding.rules import RULES, affine_node
from export.garbage import collected_later
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


@collected_later()
def fold_graph(
    model: ir.Model,
    *,
    chosen: Callable[[str], bool] | None = None,
    allow_overridable: bool = False,
    merge_branches: bool = False,
) -> FoldReport:
    """``fold_onnx`` on an onnx-ir model, in place. New weights are computed when they are written."""
    inline_functions(model)
    before = size_of(model)
    graph = Graph(model, overridable=allow_overridable)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    fates = {} if chosen is None else leave_alone(graph, nodes, chosen)
    fates |= fold_chains(graph, nodes)
    for node, layer in (merge(graph) if merge_branches else {}).items():
        if node in fates:
            fates[node] = replace(fates[node], into=layer, reason=None, how="merged", values=())
    for node, linear in graph.linears.items():
        RULES[node.op_type].write(graph, node, linear)
    for node, held in list(graph.affines.items()):
        affine_node.write(graph, node, held)
    changed = {value.name for value in graph.changed}
    order = {node: number for number, node in enumerate(nodes)}
    fates = dict(sorted(fates.items(), key=lambda entry: order[entry[0]]))
    sites = (replace(site, values=tuple(n for n in site.values if n not in changed)) for site in fates.values())
    return FoldReport(tuple(sites), before, size_of(model))
