"""Chains of affine nodes, the batch norms among them: each is pushed backward, else forward, else made one node."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from export.folding.fates import FoldSite
from export.folding.graph import Graph, Held, describe, is_onnx, name_of, reads_shape
from export.folding.push import Plan, backward, forward
from export.folding.refused import Refused
from export.folding.rules import affine_node
from export.folding.rules.arithmetic import OPERATORS

ROUNDS = 10  # a chain that has gone may clear the way for another


@dataclass(frozen=True)
class Chain:
    """Affine nodes one behind the other, each the only reader of the one before, and the affine of all."""

    nodes: list[ir.Node]
    indices: list[int]  # which input of each node is the one before it
    whole: Held

    @property
    def norms(self) -> list[ir.Node]:
        """The batch norms among the nodes."""
        return [node for node in self.nodes if is_batch_norm(node)]

    @property
    def scales(self) -> bool:
        """Whether it may be a batch norm: nodes that only add are biases."""
        return any(node.op_type != "Add" and node.op_type != "Sub" for node in self.nodes) or not (
            (self.whole.affine.scale == 1).all()
        )

    @property
    def looks_like_a_norm(self) -> bool:
        """Whether a reader of the report would miss it: a batch norm, or a scale and a shift for every channel."""
        affine = self.whole.affine
        return bool(self.norms) or not (affine.uniform or affine.linear or (affine.scale == 1).all())

    @property
    def named(self) -> list[ir.Node]:
        """The nodes that have an entry in the report."""
        return self.norms or self.nodes[:1]

    @property
    def operators(self) -> str:
        """What it is spelled with."""
        return "BatchNormalization" if self.norms else ", ".join(node.op_type for node in self.nodes)


def fold_chains(graph: Graph, nodes: Iterable[ir.Node]) -> dict[ir.Node, FoldSite]:
    """Fold what can be folded among ``nodes``; the fate of every batch norm and of what looks like one."""
    fates: dict[ir.Node, FoldSite] = {}
    waiting = [node for node in nodes if is_affine(node)]
    for _ in range(ROUNDS):
        kept: list[ir.Node] = []
        seen: set[ir.Node] = set()
        for node in waiting:
            if node in seen or node.graph is None:
                continue
            chain = _chain(graph, node)
            if isinstance(chain, Refused):
                if is_batch_norm(node):
                    fates[node] = FoldSite(name_of(node), reason=chain.reason)
                continue
            seen.update(chain.nodes)
            if chain.scales:
                for done, site in _fold(graph, chain).items():
                    before = fates.get(done, site)  # of an earlier round, when the chain was longer
                    fates[done] = replace(site, operators=before.operators, how=site.how or before.how)
            kept += [one for one in chain.nodes if one.graph is not None]
        if len(kept) == len(waiting):
            break
        waiting = kept
    return fates


def find_chains(graph: Graph, nodes: Iterable[ir.Node]) -> list[Chain]:
    """The chains among ``nodes`` as they are, each node in one of them at most; nothing is changed."""
    seen: set[ir.Node] = set()
    chains = []
    for node in nodes:
        chain = _chain(graph, node) if is_affine(node) and node not in seen else None
        if isinstance(chain, Chain):
            seen.update(chain.nodes)
            chains.append(chain)
    return chains


def leave_alone(graph: Graph, nodes: Iterable[ir.Node], chosen: Callable[[str], bool]) -> dict[ir.Node, FoldSite]:
    """Set apart the batch norms that are not ``chosen`` by their names; the fate of the decomposed ones among them."""
    nodes = list(nodes)
    others = {
        chain.nodes[0]: chain
        for chain in find_chains(graph, nodes)
        if not chain.norms and chain.looks_like_a_norm and not chosen(name_of(chain.nodes[0]))
    }
    graph.left_alone = {node for node in nodes if is_batch_norm(node) and not chosen(name_of(node))}
    graph.left_alone |= {node for chain in others.values() for node in chain.nodes}
    return {
        node: FoldSite(name_of(node), reason=affine_node.NOT_CHOSEN, operators=chain.operators)
        for node, chain in others.items()
    }


def is_batch_norm(node: ir.Node) -> bool:
    """Whether a node is ONNX's BatchNormalization."""
    return node.op_type == "BatchNormalization" and is_onnx(node)


def is_affine(node: ir.Node) -> bool:
    """Whether a node may be an affine map."""
    return is_batch_norm(node) or (node.op_type in OPERATORS and is_onnx(node))


def _chain(graph: Graph, first: ir.Node) -> Chain | Refused:
    whole = affine_node.read(graph, first)
    if isinstance(whole, Refused):
        return whole
    nodes, indices = [first], [whole.index]
    while True:
        output = nodes[-1].outputs[0]
        readers = [use for use in output.uses() if not reads_shape(use.node)]
        if output.is_graph_output() or len(readers) != 1 or readers[0].node.graph is not first.graph:
            return Chain(nodes, indices, whole)
        node = readers[0].node
        held = affine_node.read(graph, node)
        joined = None if isinstance(held, Refused) else held.affine.after(whole.affine)
        if isinstance(held, Refused) or joined is None or held.index != readers[0].idx:
            return Chain(nodes, indices, whole)
        nodes.append(node)
        indices.append(held.index)
        whole = replace(whole, affine=joined)


def _fold(graph: Graph, chain: Chain) -> dict[ir.Node, FoldSite]:
    """Fold one chain, into layers if there is a way, else into other affine nodes, else into one node."""
    x, end, affine = chain.whole.input_of(chain.nodes[0]), chain.nodes[-1].outputs[0], chain.whole.affine
    ways: dict[str, Plan | Refused] = {"backward": backward(graph, x, affine, chain.nodes[0])}
    if not _ends_in_layers(ways["backward"]):
        ways["forward"] = forward(graph, end, affine)
    open_ways = {how: plan for how, plan in ways.items() if isinstance(plan, Plan)}
    if not open_ways:
        reasons = dict.fromkeys(plan.reason for plan in ways.values() if isinstance(plan, Refused))
        return _keep(graph, chain, "; ".join(reasons))
    how = next((how for how, plan in open_ways.items() if _ends_in_layers(plan)), next(iter(open_ways)))
    return _commit(graph, chain, how, open_ways[how])


def _ends_in_layers(plan: Plan | Refused) -> bool:
    return isinstance(plan, Plan) and not any(is_affine(node) for node in plan.into)


def _commit(graph: Graph, chain: Chain, how: str, plan: Plan) -> dict[ir.Node, FoldSite]:
    """Make the changes of ``plan``."""
    x, end = chain.whole.input_of(chain.nodes[0]), chain.nodes[-1].outputs[0]
    names = {node: name_of(node) for node in chain.named}
    operators = chain.operators
    graph.changed |= {value for value in plan.passed if value is not x}
    behind = [end] if how == "backward" else [output for node in plan.into for output in node.outputs]
    values = _names(graph, behind)
    for edit in plan.edits:
        edit()
    for node, index in zip(chain.nodes, chain.indices, strict=True):
        graph.bypass(node, index, renamed=how == "backward")
    into = ", ".join(dict.fromkeys(describe(node) for node in plan.into)) or "nothing: it changes nothing"
    if plan.into and all(is_affine(node) for node in plan.into):
        how = "merged"
    return {node: FoldSite(name, into, None, how, operators, values) for node, name in names.items()}


def _keep(graph: Graph, chain: Chain, reason: str) -> dict[ir.Node, FoldSite]:
    """Leave a chain where it is, as one node where that is fewer."""
    if not chain.looks_like_a_norm and not any(node in graph.affines for node in chain.nodes):
        return {}
    values = _names(graph, [chain.nodes[-1].outputs[0]])
    names = {node: name_of(node) for node in chain.named}
    operators = chain.operators
    x = chain.whole.input_of(chain.nodes[0])
    cost = sum(affine_node.cost(graph, node) for node in chain.nodes)
    if affine_node.needed(graph, x, chain.whole.affine) >= cost or affine_node.lost(graph, x, chain.whole) is not None:
        return {node: FoldSite(name, None, reason, None, operators, values) for node, name in names.items()}
    *gone, (last, name) = names.items()
    place = chain.nodes.index(last)
    graph.hold(last, replace(chain.whole, index=chain.indices[place]))
    for other, (node, index) in enumerate(zip(chain.nodes, chain.indices, strict=True)):
        if other != place:
            graph.bypass(node, index, renamed=other > place)
    return {
        **{node: FoldSite(other, f"BatchNormalization {name}", None, "merged") for node, other in gone},
        last: FoldSite(name, None, reason, "merged", operators, values),
    }


def _names(graph: Graph, values: list[ir.Value]) -> tuple[str, ...]:
    """The names of those values that can be made outputs of the model."""
    main = graph.model.graph
    nodes = [value.producer() for value in values]
    return tuple(
        value.name
        for value, node in zip(values, nodes, strict=True)
        if node is not None and node.graph is main and value.name
    )
