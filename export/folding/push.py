"""The one algorithm: an affine map is pushed from node to node until one absorbs it; only then anything changes.

Backward, ``affine(value)`` is wanted in the place of ``value``: its producer absorbs the affine or asks the same of
its own inputs. Forward, whoever reads ``affine(value)`` must do with ``value``: every reader absorbs the affine or
hands it on to its own readers. The rules of the operators say how, or why not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Edit, Graph, Step, describe, is_onnx, reads_shape
from export.folding.refused import Refused
from export.folding.rules import RULES, SEVERAL_AXES

Push = Callable[[Graph, ir.Value, Affine, ir.Node, int], "Plan | Refused"]

FARTHEST = 100  # nodes on one way


@dataclass
class Plan:
    """A way that is open to its end: changes to make, where the affine ends, and values whose content changes.

    once: nodes to which no second way may come.
    """

    edits: list[Edit] = field(default_factory=list)
    into: list[ir.Node] = field(default_factory=list)
    passed: list[ir.Value] = field(default_factory=list)
    once: list[ir.Node] = field(default_factory=list)

    def joined(self, other: "Plan") -> "Plan | Refused":
        """This way and another one; refused where both come to a node to which only one may come."""
        crossed = set(self.once).intersection(other.once)
        if crossed:
            return Refused(f"{describe(crossed.pop())} is reached by two ways at once")
        return Plan(*(getattr(self, name) + getattr(other, name) for name in ("edits", "into", "passed", "once")))


def backward(graph: Graph, value: ir.Value, affine: Affine, reader: ir.Node, depth: int = 0) -> Plan | Refused:
    """A plan that makes ``value`` hold ``affine(value)`` for ``reader``, the only node that may read it."""
    if affine.identity:
        return Plan()
    node = value.producer()
    if node is None or node.graph is not reader.graph:
        return Refused(f"nothing comes before it: it reads {_source(value)}")
    barred = graph.read_by_others(value, reader)
    if barred is not None:
        return barred
    rule = RULES.get(node.op_type) if is_onnx(node) else None
    if rule is None:
        return Refused(f"it follows {describe(node)}, which cannot take a batch norm")
    if depth >= FARTHEST:
        return Refused(f"it is more than {FARTHEST} nodes away from a layer that could take it")
    if len(affine.axes) > 1 and rule not in SEVERAL_AXES:
        return Refused(f"{describe(node)} cannot take {affine}")
    output = list(node.outputs).index(value)
    step = rule.backward(graph, node, output, affine)
    return _walk(graph, step, value, node, depth, backward)


def forward(graph: Graph, value: ir.Value, affine: Affine, depth: int = 0) -> Plan | Refused:
    """A plan by which all readers of ``affine(value)`` read ``value`` and give what they gave before."""
    if affine.identity:
        return Plan()
    source = value.producer()
    if value.is_graph_output():
        return Refused("its output, or what is made of it, is an output of the graph")
    plan = Plan()
    readers: set[ir.Node] = set()
    for node, index in value.uses():
        if reads_shape(node):
            continue
        rule = RULES.get(node.op_type) if is_onnx(node) else None
        if source is not None and node.graph is not source.graph:
            return Refused("its output is read inside a subgraph")
        if rule is None:
            return Refused(f"{describe(node)} behind it cannot take a batch norm")
        if node in readers:
            return Refused(f"{describe(node)} behind it reads it twice")
        if depth >= FARTHEST:
            return Refused(f"it is more than {FARTHEST} nodes away from a layer that could take it")
        if len(affine.axes) > 1 and rule not in SEVERAL_AXES:
            return Refused(f"{describe(node)} cannot take {affine}")
        readers.add(node)
        step = rule.forward(graph, node, index, affine)
        way = _walk(graph, step, None, node, depth, lambda g, v, a, _, d: forward(g, v, a, d))
        both = way if isinstance(way, Refused) else plan.joined(way)
        if isinstance(both, Refused):
            return both
        plan = both
    return plan if readers else Refused("nothing reads it")


def _walk(
    graph: Graph, step: Step | Refused, value: ir.Value | None, node: ir.Node, depth: int, on: Push
) -> Plan | Refused:
    """The plan of one step and of all that follows it."""
    if isinstance(step, Refused):
        return step
    plan = Plan(list(step.edits), list(step.into), [] if value is None else [value], [node] if step.once else [])
    for next_value, affine in step.onward:
        way = on(graph, next_value, affine, node, depth + 1)
        both = way if isinstance(way, Refused) else plan.joined(way)
        if isinstance(both, Refused):
            return both if step.otherwise is None else _walk(graph, step.otherwise, value, node, depth, on)
        plan = both
        if value is None:
            plan.passed.append(next_value)
    return plan


def _source(value: ir.Value) -> str:
    if value.is_graph_input():
        return "an input of the graph"
    return "a constant" if value.is_initializer() else "a value from outside its graph"
