"""A graph cut at its batch norms, so that each part runs once those before it have their new statistics.

The depth of a value is the number of batch norms on the longest path to it from the inputs. Batch norms whose inputs
have the same depth do not depend on one another: stage d holds the nodes of depth d, and ends at their inputs.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from export.calibration.running_stats import RunningStats
from fastbn.errors import ModelError


@dataclass(frozen=True)
class Stage:
    """A part of a graph as a model, None where there is nothing to compute.

    inputs: the graph's own that it reads. reads: values of earlier stages. keeps: values that later stages read.
    """

    model: ir.Model | None
    inputs: tuple[str, ...]
    reads: tuple[str, ...]
    keeps: tuple[str, ...]


class Stages:
    """The stages of ``model`` between ``norms``; one stage for all of them with ``once``.

    fed: names of the graph's inputs that are given. Raises ModelError where nodes come before what they read.
    """

    def __init__(self, model: ir.Model, norms: Sequence[RunningStats], fed: Collection[str], *, once: bool) -> None:
        self._model = model
        self._inputs = {value for value in model.graph.inputs if value.name in fed}
        self._depths = dict.fromkeys(self._inputs, 0)
        self._nodes: dict[int, list[ir.Node]] = defaultdict(list)
        self._sort(set() if once else {norm.node for norm in norms})
        self.norms: dict[int, list[RunningStats]] = defaultdict(list)
        for norm in norms:
            if norm.x in self._depths:
                self.norms[self._depths[norm.x]].append(norm)
        self._keeps: dict[int, list[ir.Value]] = defaultdict(list)
        self._prune([norm.x for found in self.norms.values() for norm in found])

    def __len__(self) -> int:
        return len(self.norms)

    def all_norms(self) -> Iterator[RunningStats]:
        """The batch norms whose inputs depend on those of the graph, stage by stage."""
        for number in range(len(self)):
            yield from self.norms[number]

    def cut(self, base: int, last: int, types: dict[str, tuple[str, int]]) -> Stage:
        """Stages ``base + 1`` to ``last`` as one, ending at the inputs of the batch norms of ``last``.

        types: dtype and rank of the values of earlier stages. The model shares its tensors with the whole graph.
        """
        nodes = [node for depth in range(base + 1, last + 1) for node in self._nodes[depth]]
        made = {output for node in nodes for output in node.outputs}
        wanted = dict.fromkeys(norm.x for norm in self.norms[last])
        keeps = dict.fromkeys(self._keeps[last])
        read = dict.fromkeys(value for node in nodes for value in self._reads(node) if value not in made)
        sources = [value for value in (*read, *wanted, *keeps) if value in self._depths and value not in made]
        constants = self._constants(value for value in read if value not in self._depths)
        outputs = [value for value in {**wanted, **keeps} if value in made]
        inputs = list(dict.fromkeys(sources))
        return Stage(
            self._build(inputs, outputs, (*constants, *nodes), types) if outputs else None,
            tuple(str(value.name) for value in inputs if value in self._inputs),
            tuple(str(value.name) for value in inputs if value not in self._inputs),
            tuple(str(value.name) for value in keeps),
        )

    def _sort(self, barriers: set[ir.Node]) -> None:
        """Depths of all values that depend on the inputs, and their nodes by depth."""
        seen: set[ir.Node] = set()
        for node in self._model.graph:
            reads = list(self._reads(node))
            for value in reads:
                if value.producer() is not None and value.producer() not in seen:
                    raise ModelError(
                        f"calibrate: nodes must come after what they read, got {node.op_type} before {value.name}"
                    )
            seen.add(node)
            depths = [self._depths[value] for value in reads if value in self._depths]
            if depths:
                depth = max(depths) + (node in barriers)
                self._nodes[depth].append(node)
                self._depths.update(dict.fromkeys(node.outputs, depth))

    def _prune(self, ends: Iterable[ir.Value]) -> None:
        """Forget nodes that lead to no batch norm; note how long the values of the others are needed."""
        needed = dict.fromkeys(ends, -1)
        for depth in sorted(self._nodes, reverse=True):
            useful = []
            for node in reversed(self._nodes[depth]):
                if any(output in needed for output in node.outputs):
                    useful.append(node)
                    for value in self._reads(node):
                        needed[value] = max(needed.get(value, -1), depth)
            self._nodes[depth] = useful[::-1]
        for value, last in needed.items():
            if value in self._depths and value not in self._inputs:
                for depth in range(self._depths[value], last):
                    self._keeps[depth].append(value)

    def _reads(self, node: ir.Node) -> Iterator[ir.Value]:
        """Values of the main graph that ``node`` reads, those that its subgraphs capture included."""
        for reader in (node, *_inside(node)):
            for value in reader.inputs:
                if value is not None and value.graph is self._model.graph:
                    yield value
        for graph in _subgraphs(node):
            yield from (value for value in graph.outputs if value.graph is self._model.graph)

    def _constants(self, values: Iterable[ir.Value]) -> list[ir.Node]:
        """The nodes that compute ``values`` from nothing but constants, in order."""
        found: dict[ir.Node, None] = {}

        def visit(value: ir.Value) -> None:
            producer = value.producer()
            if producer is not None and producer not in found:
                for read in self._reads(producer):
                    visit(read)
                found[producer] = None

        for value in values:
            visit(value)
        return list(found)

    def _build(
        self,
        inputs: list[ir.Value],
        outputs: list[ir.Value],
        nodes: tuple[ir.Node, ...],
        types: dict[str, tuple[str, int]],
    ) -> ir.Model:
        graph, known = self._model.graph, set(inputs)
        read = dict.fromkeys(value for node in nodes for value in self._reads(node))
        stored = [value for value in read if value.is_initializer() and value not in known]
        view = ir.GraphView(inputs, outputs, nodes=nodes, initializers=stored, opset_imports=graph.opset_imports)
        view.name = "stage"
        part = view.clone()
        for value in part.inputs:
            if value.name in types:
                dtype, rank = types[value.name]
                value.type = ir.TensorType(ir.DataType[dtype])
                value.shape = ir.Shape([None] * rank)
            value.const_value = None
        functions = self._model.functions.values()
        return ir.Model(part, ir_version=max(self._model.ir_version, 4), functions=tuple(functions))


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node, at any depth."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            yield graph
            for inner in graph:
                yield from _subgraphs(inner)


def _inside(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of a node's subgraphs, at any depth."""
    for graph in _subgraphs(node):
        yield from graph
