"""What a ModelProto must be before it becomes a graph: versions that are known, and names that are made once.

onnx's checker looks at a model again before it is written; what is refused here is what onnx-ir would drop or mend
without a word. Every complaint is a ValueError that ends the sentence "must be ..., got ...".
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import onnx
from onnx import AttributeProto


def check_proto(proto: onnx.ModelProto) -> bool:
    """Whether every node of ``proto`` comes after the nodes it reads. Raises ValueError for an invalid model."""
    _check_versions(proto)
    ordered = _check_graph(proto.graph, ())
    identities = [(function.domain, function.name, function.overload) for function in proto.functions]
    _refuse_repeated(identities, "functions")
    for function in proto.functions:
        outputs = [*function.output]
        ordered &= _check_body(f"function {function.name}", function.node, [*function.input], (), outputs, ())
    return ordered


def _check_versions(proto: onnx.ModelProto) -> None:
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        known = f"onnx {onnx.__version__} knows 1 to {onnx.IR_VERSION}"
        raise ValueError(f"IR version {proto.ir_version}, where {known}")
    if not proto.opset_import:
        raise ValueError("a model that names no operator set")
    newest = onnx.defs.onnx_opset_version()
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        versions: dict[str, int] = {}
        for entry in imports:
            if entry.domain in ("", "ai.onnx") and not 1 <= entry.version <= newest:
                raise ValueError(f"opset {entry.version}, where onnx {onnx.__version__} knows 1 to {newest}")
            if versions.setdefault(entry.domain, entry.version) != entry.version:
                raise ValueError(f"two versions of the operator set {entry.domain!r}")


def _check_graph(graph: onnx.GraphProto, outer: Sequence[set[str]]) -> bool:
    if graph.sparse_initializer:
        raise ValueError("a sparse initializer, which is not supported")
    for tensor in graph.initializer:
        _check_place(tensor)
    where = f"graph {graph.name}"
    inputs = [value.name for value in graph.input]
    constants = [tensor.name for tensor in graph.initializer]
    if "" in constants:
        raise ValueError(f"an initializer without a name in {where}")
    _refuse_repeated(constants, f"initializers in {where}")
    outputs = [value.name for value in graph.output]
    return _check_body(where, graph.node, inputs, constants, outputs, outer)


def _check_body(
    where: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str],
    constants: Sequence[str],
    outputs: Sequence[str],
    outer: Sequence[set[str]],
) -> bool:
    """Names of a graph or function; ``outer``: for every graph around it what is made before, then what later."""
    _refuse_repeated(inputs, f"inputs in {where}")
    made = {*inputs, *constants}
    later = [name for node in nodes for name in node.output if name]
    _refuse_repeated([*made, *later], f"values in {where}")
    names = made.union(later)
    unknown = set(outputs) - names
    if unknown:
        raise ValueError(f"output {min(unknown)!r} of {where}, which no node makes")
    ordered = True
    for node in nodes:
        for name in filter(None, node.input):
            if name not in made and not any(name in scope for scope in outer[::2]):
                if name not in names and not any(name in scope for scope in outer):
                    raise ValueError(f"{_named(node)} that reads {name!r}, which nothing makes")
                ordered = False
        for graph in subgraphs(node):
            ordered &= _check_graph(graph, (*outer, made, names))
        made.update(filter(None, node.output))
    return ordered


def subgraphs(node: onnx.NodeProto) -> Iterable[onnx.GraphProto]:
    """The graphs in ``node``'s attributes. Raises ValueError for an attribute that onnx-ir cannot hold."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs
        elif attribute.type == AttributeProto.TENSOR:
            _check_place(attribute.t)
        elif attribute.type in (AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS):
            raise ValueError(f"{_named(node)} with a sparse tensor, which is not supported")
        elif attribute.type == AttributeProto.UNDEFINED and not attribute.ref_attr_name:
            raise ValueError(f"{_named(node)} with an attribute {attribute.name!r} that has no type")


def _check_place(tensor: onnx.TensorProto) -> None:
    for entry in tensor.external_data:
        if entry.key in ("offset", "length") and not (entry.value.isdecimal() and len(entry.value) < 20):
            raise ValueError(f"tensor {tensor.name!r} with the {entry.key} {entry.value!r}")


def _named(node: onnx.NodeProto) -> str:
    return f"a node {node.op_type} {node.name or next(chain(node.output, ['']))}".rstrip()


def _refuse_repeated(names: Sequence[object], what: str) -> None:
    if len(set(names)) < len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"two {what} called {repeated!r}")
