"""Batch norms of an ONNX graph folded into their neighbours, and an account of every one."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from export import merge_branches as branches
from export.files import BROKEN, as_model, to_proto
from export.graph import Graph, Held, describe, is_onnx, name_of, reads_shape
from export.push import Plan, backward, forward
from export.refused import Refused
from export.rules import RULES, affine_node
from export.rules.arithmetic import OPERATORS
from fastbn.errors import ModelError


@dataclass(frozen=True)
class FoldSite:
    """What became of one batch norm, or of a chain of Mul, Add, Sub, Div with constants that is one.

    batch_norm: the name of its node, or of its output. into: the nodes that absorbed it; reason: why it stays.
    how: "backward", "forward", or "merged" with other nodes of its kind. operators: what it was spelled with.
    values: those nearest behind it that hold the same numbers in the source and in the folded graph.
    """

    batch_norm: str
    into: str | None = None
    reason: str | None = None
    how: str | None = None
    operators: str = "BatchNormalization"
    values: tuple[str, ...] = ()


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
    become one convolution. Weights are folded in float64 and rounded once. Names of inputs and
    outputs, metadata, opsets and whatever is not folded stay as they are; the source is not changed.
    Returns the new model and the report. Raises ModelError for a file that is not an ONNX model.
    """
    model = as_model(model_or_path)
    try:
        report = fold_graph(model, chosen=chosen, allow_overridable=allow_overridable, merge_branches=merge_branches)
        return to_proto(model), report
    except BROKEN as error:
        raise ModelError(f"fold_onnx: the model must be valid ONNX, got {error}") from error


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
        graph.left_alone = {node for node in nodes if _is_batch_norm(node) and not chosen(name_of(node))}
    done: set[ir.Node] = set()
    sites: list[FoldSite] = []
    for node in nodes:
        if node in done or not (_is_batch_norm(node) or (node.op_type in OPERATORS and is_onnx(node))):
            continue
        found = _chain(graph, node)
        if not isinstance(found, Refused):
            done.update(found[0])
            sites += _fold_chain(graph, *found)
        elif _is_batch_norm(node):
            sites.append(FoldSite(name_of(node), reason=found.reason))
    if merge_branches:
        sites = _with_branches(sites, branches.merge_branches(graph))
    _write(graph)
    changed = {value.name for value in graph.changed}
    kept = (tuple(name for name in site.values if name not in changed) for site in sites)
    sites = [replace(site, values=values) for site, values in zip(sites, kept, strict=True)]
    return FoldReport(tuple(sites), before, _size(model))


def _chain(graph: Graph, first: ir.Node) -> tuple[list[ir.Node], Held] | Refused:
    """Affine nodes one behind the other from ``first`` on, each the only reader of the one before; and all in one."""
    whole = affine_node.read(graph, first)
    if isinstance(whole, Refused):
        return whole
    chain = [first]
    while True:
        output = chain[-1].outputs[0]
        readers = [use for use in output.uses() if not reads_shape(use.node)]
        if output.is_graph_output() or len(readers) != 1 or readers[0].node.graph is not first.graph:
            return chain, whole
        node = readers[0].node
        held = affine_node.read(graph, node)
        joined = None if isinstance(held, Refused) else held.affine.after(whole.affine)
        if isinstance(held, Refused) or joined is None or held.index != readers[0].idx:
            return chain, whole
        chain.append(node)
        whole = replace(whole, affine=joined)


def _fold_chain(graph: Graph, chain: list[ir.Node], whole: Held) -> list[FoldSite]:
    """Fold one chain backward, or forward, or into one node; what to say of it."""
    norms = [node for node in chain if _is_batch_norm(node)]
    if not norms and not any(node.op_type in ("Mul", "Div") for node in chain):
        return []
    names = tuple(name_of(node) for node in norms or chain[:1])
    x, affine = whole.input_of(chain[0]), whole.affine
    end = chain[-1].outputs[0]
    behind = [end] if end.producer() is not None and chain[-1].graph is graph.model.graph else []
    plan = backward(graph, x, affine, chain[0])
    if not isinstance(plan, Refused):
        graph.changed |= {value for value in plan.passed if value is not x}
        values = _names(behind)
        _commit(graph, chain, plan, renamed=True)
        return _sites(names, _operators(chain, norms), plan, "backward", values)
    reasons = [plan.reason]
    plan = forward(graph, end, affine)
    if not isinstance(plan, Refused):
        graph.changed |= set(plan.passed)
        values = _names([output for node in plan.into if node.graph is graph.model.graph for output in node.outputs])
        _commit(graph, chain, plan, renamed=False)
        return _sites(names, _operators(chain, norms), plan, "forward", values)
    reason = "; ".join(dict.fromkeys([*reasons, plan.reason]))
    if not norms and (affine.uniform or affine.linear or (affine.scale == 1).all()):
        return []
    if affine_node.needed(graph, x, affine) < len(chain):
        *gone, name = names
        _merge(graph, chain, whole, name)
        return [
            *(FoldSite(norm, f"BatchNormalization {name}", None, "merged") for norm in gone),
            FoldSite(name, None, reason, "merged", _operators(chain, norms), _names(behind)),
        ]
    return [FoldSite(name, None, reason, None, _operators(chain, norms), _names(behind)) for name in names]


def _with_branches(sites: list[FoldSite], gone: dict[str, str]) -> list[FoldSite]:
    """The sites, those of affine nodes that went into another branch with their new fate."""
    return [
        replace(site, into=gone[site.batch_norm], reason=None, how="merged", values=())
        if site.into is None and site.batch_norm in gone
        else site
        for site in sites
    ]


def _commit(graph: Graph, chain: list[ir.Node], plan: Plan, *, renamed: bool) -> None:
    for edit in plan.edits:
        edit()
    _bypass(graph, chain, renamed=renamed)


def _bypass(graph: Graph, chain: list[ir.Node], *, renamed: bool) -> None:
    for node in chain:
        held = affine_node.read(graph, node)
        assert isinstance(held, Held)
        graph.bypass(node, held.index, renamed=renamed)


def _merge(graph: Graph, chain: list[ir.Node], whole: Held, name: str) -> None:
    """Leave the last node of a chain alone, with the affine of all."""
    last = affine_node.read(graph, chain[-1])
    assert isinstance(last, Held)
    graph.hold(chain[-1], replace(whole, index=last.index))
    _bypass(graph, chain[:-1], renamed=False)
    chain[-1].name = name


def _sites(names: tuple[str, ...], operators: str, plan: Plan, how: str, values: tuple[str, ...]) -> list[FoldSite]:
    """One entry for every batch norm of a chain that is gone, one for the chain where it has none."""
    into = ", ".join(dict.fromkeys(describe(node) for node in plan.into)) or "nothing: it changes nothing"
    if plan.into and all(_is_affine(node) for node in plan.into):
        how = "merged"
    return [FoldSite(name, into, None, how, operators, values) for name in names]


def _operators(chain: list[ir.Node], norms: list[ir.Node]) -> str:
    return "BatchNormalization" if norms else ", ".join(node.op_type for node in chain)


def _names(values: list[ir.Value]) -> tuple[str, ...]:
    return tuple(value.name for value in values if value.name)


def _is_batch_norm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and is_onnx(node)


def _is_affine(node: ir.Node) -> bool:
    return _is_batch_norm(node) or (node.op_type in OPERATORS and is_onnx(node))


def _write(graph: Graph) -> None:
    """Write what layers and affine nodes have become."""
    for node, linear in graph.linears.items():
        RULES[node.op_type].write(graph, node, linear)
    for node, held in list(graph.affines.items()):
        affine_node.write(graph, node, held)


def _inline(model: ir.Model) -> None:
    """Put the model's own functions that have a batch norm in the place of their calls."""

    def holds(function: ir.Function) -> bool:
        nodes = ir.traversal.RecursiveGraphIterator(function.graph)
        inner = (model.functions.get(node.op_identifier()) for node in nodes if not is_onnx(node))
        return any(_is_batch_norm(node) for node in ir.traversal.RecursiveGraphIterator(function.graph)) or any(
            holds(called) for called in inner if called is not None
        )

    if model.functions:
        InlinePass(holds)(model)


def _size(model: ir.Model) -> Size:
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    graphs = [model.graph, *model.graph.subgraphs()]
    tensors: list[Any] = [value.const_value for graph in graphs for value in graph.initializers.values()]
    tensors += [node.outputs[0].const_value for node in nodes if node.op_type == "Constant"]
    stored = [tensor for tensor in tensors if tensor is not None]
    sizes = [(tensor.size, tensor.dtype.itemsize) for tensor in stored]
    return Size(len(nodes), sum(size for size, _ in sizes), sum(math.ceil(size * width) for size, width in sizes))
