"""The referee: a model in float64, by onnx's reference evaluator on a copy with all floating-point tensors as float64.

What onnxruntime and a folded model answer in float32 is judged by its distance from this. Operators that the evaluator
computes wrongly or slowly are in ``referee_operators``.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.proof.referee_operators import OPERATORS

LARGEST = 2**31  # bytes of weights as float64
SECONDS = 60.0  # that one set of inputs may take
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
RANDOM = {
    "Bernoulli",
    "Multinomial",
    *(f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")),
}
DTYPED = {"Cast": "to", "EyeLike": "dtype", "SequenceEmpty": "dtype"}
DTYPED |= {f"{name}Window": "output_datatype" for name in ("Hann", "Hamming", "Blackman")}


class UnjudgedError(Exception):
    """A model that the referee does not judge, and why; no error of the user's."""


class Referee:
    """A model, in float64 or, with ``exact=False``, in its own types: what rounding alone does to it.

    Raises UnjudgedError for a model that is too large or holds an operator that the evaluator does not know.
    """

    def __init__(self, path: str | Path, exact: bool = True) -> None:
        model = _attempt(lambda: onnx.load(path, load_external_data=False))
        elements = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
        if elements * 8 > LARGEST:
            raise UnjudgedError(f"its weights are {elements:,} numbers, too many to hold in float64")
        if any(
            entry.version > onnx.defs.onnx_opset_version()
            for entry in model.opset_import
            if entry.domain in ("", "ai.onnx")
        ):
            raise UnjudgedError("its operator set is newer than those of the installed onnx")
        if any(node.op_type in RANDOM for holder in (model.graph, *model.functions) for node in _nodes(holder)):
            raise UnjudgedError("it draws random numbers, which have no right answer")
        self.exact = exact
        with _quiet():
            self._evaluator = _attempt(lambda: self._evaluator_of(model, str(Path(path).parent)))

    def _evaluator_of(self, model: ModelProto, folder: str) -> "_Evaluator":
        weights = {}  # not through protobuf, which would hold them once more
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor, folder)
            weights[tensor.name] = _as_float64(array) if self.exact else array
        del model.graph.initializer[:]
        onnx.external_data_helper.load_external_data_for_model(model, folder)
        _normalise(model)
        if self.exact:
            _widen(model)
        evaluator = _Evaluator(model)
        evaluator.rt_inits_ = weights
        return evaluator

    def run(self, inputs: dict[str, np.ndarray], values: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Outputs and other ``values`` of the main graph by name. UnjudgedError where that fails or takes too long."""
        feeds = {name: _as_float64(array) if self.exact else array for name, array in inputs.items()}
        names = list(dict.fromkeys([*self._evaluator.output_names, *values]))
        self._evaluator.deadline = time.monotonic() + SECONDS
        with _quiet():
            answers = _attempt(lambda: [_as_numbers(answer) for answer in self._evaluator.run(names, feeds)])
        return dict(zip(names, answers, strict=True))


class _Evaluator(ReferenceEvaluator):
    """Gives its operators to functions and subgraphs as well, forgets a value after its last use, minds the time."""

    deadline = float("inf")

    def __init__(self, proto: Any, *, new_ops: Any = None, **options: Any) -> None:
        super().__init__(proto, new_ops=new_ops or OPERATORS, **options)
        last = {name: index for index, node in enumerate(self.nodes_) for name in _reads(node)}
        self._dead: list[list[str]] = [[] for _ in self.nodes_]
        if isinstance(proto, ModelProto):
            for name, index in last.items():
                self._dead[index].append(name)

    def run(  # type: ignore[override]  # what it leaves out checks shapes
        self,
        output_names: Sequence[str] | None,
        feed_inputs: dict[str, Any],
        attributes: dict[str, Any] | None = None,
        intermediate: bool = False,
        **_: Any,
    ) -> Any:
        names = self.output_names if output_names is None else output_names
        kept = {"", *names}
        results = {"": None, **self.rt_inits_, **feed_inputs}
        for node, dead in zip(self.rt_nodes_, self._dead, strict=True):
            if time.monotonic() > self.deadline:
                raise TimeoutError(f"more than {SECONDS:g} seconds for one set of inputs")
            more: dict[str, Any] = {"context": results} if node.need_context() else {}
            if node.has_linked_attribute and attributes:
                more["linked_attributes"] = attributes
            outputs = node.run(*(results[name] for name in node.input), **more)
            results.update(zip(node.output, outputs, strict=False))
            if not intermediate:
                for name in dead:
                    if name not in kept:
                        results.pop(name, None)  # a name inside a subgraph is none here
        return results if intermediate else [results[name] for name in names]


def _reads(node: NodeProto) -> Iterator[str]:
    """Every name that a node reads or writes, its subgraphs included."""
    yield from (*node.input, *node.output)
    for graph in _graphs(node):
        for inner in graph.node:
            yield from _reads(inner)
        yield from (output.name for output in graph.output)


def _graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g,) if attribute.HasField("g") else ()
        yield from attribute.graphs


def _attempt(action: Any) -> Any:
    """Whatever the evaluator stumbles over is a reason not to judge by it."""
    try:
        return action()
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise UnjudgedError((str(cause).strip() or type(cause).__name__).splitlines()[0][:200]) from error


def _quiet() -> Any:
    return np.errstate(all="ignore")


def _as_float64(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


def _as_numbers(answer: Any) -> np.ndarray:
    """An array of a type that NumPy can compare."""
    if not isinstance(answer, np.ndarray):
        raise TypeError(f"an output that is no array but {type(answer).__name__}")
    return answer.astype(np.float32) if answer.dtype.kind == "V" else answer


def _nodes(graph: Any) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in _graphs(node):
            yield from _nodes(inner)


def _subgraphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for inner in _graphs(node):
            yield from _subgraphs(inner)


def _normalise(model: ModelProto) -> None:
    """One name for the default domain, in place."""
    for holder in (model, *model.functions):
        for entry in holder.opset_import:
            entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    for holder in (model.graph, *model.functions):
        for node in _nodes(holder):
            node.domain = "" if node.domain == "ai.onnx" else node.domain


def _widen(model: ModelProto) -> None:
    """Every floating-point tensor, type and target of a cast becomes float64, in place."""
    for graph in _subgraphs(model.graph):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            _widen_type(value.type)
    for holder in (model.graph, *model.functions):
        for node in _nodes(holder):
            _widen_node(node)


def _widen_node(node: NodeProto) -> None:
    for attribute in node.attribute:
        for tensor in (*attribute.tensors, *((attribute.t,) if attribute.HasField("t") else ())):
            _widen_tensor(tensor)
        named = DTYPED.get(node.op_type) == attribute.name or (
            attribute.name == "dtype" and node.op_type.startswith("Random")
        )
        if named and attribute.i in FLOATS:
            attribute.i = TensorProto.DOUBLE
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            _set_tensor(attribute, np.asarray(numbers, np.float64))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        _set_tensor(node.attribute.add(), np.zeros(1))


def _set_tensor(attribute: AttributeProto, array: np.ndarray) -> None:
    attribute.Clear()
    attribute.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(array)))


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _widen_type(kind: TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which == "tensor_type" and kind.tensor_type.elem_type in FLOATS:
        kind.tensor_type.elem_type = TensorProto.DOUBLE
    elif which in ("sequence_type", "optional_type"):
        _widen_type(getattr(kind, which).elem_type)
