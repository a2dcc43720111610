"""What is in an ONNX model: its interface, its size, and every batch norm with what is suspicious about it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.folding.chains import Chain, find_chains, is_batch_norm
from export.folding.fates import size_of
from export.folding.graph import Graph, name_of
from export.folding.inline import inline_functions
from export.folding.refused import Refused

ROLES = ("gamma", "beta", "mean", "variance")  # inputs 1 to 4 of BatchNormalization
EPSILON = 1e-5  # ONNX's default
Range = tuple[float, float]


@dataclass(frozen=True)
class Port:
    """An input or output of a model: the element type, and the shape as ONNX writes it, "?" for what is not said."""

    name: str
    dtype: str
    shape: str


@dataclass(frozen=True)
class BatchNormListing:
    """One batch norm.

    operators: what it is spelled with. channels: None where no constant tells; eps: None where it is not written.
    producer: what makes its input; consumers: what reads its output, "output" for the graph's own. gamma, beta, mean,
    variance: smallest and largest finite value, None where not constant; of a decomposed one gamma and beta are the
    scale and the shift that it amounts to. warnings: what is suspicious, in words.
    """

    batch_norm: str
    channels: int | None
    eps: float | None
    producer: str
    consumers: tuple[str, ...]
    gamma: Range | None
    beta: Range | None
    mean: Range | None
    variance: Range | None
    warnings: tuple[str, ...]
    operators: str = "BatchNormalization"


@dataclass(frozen=True)
class Inspection:
    """A model at a glance; nodes, parameters and bytes as in ``Size``."""

    ir_version: int
    opsets: dict[str, int]
    producer: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: int
    parameters: int
    bytes: int
    batch_norms: tuple[BatchNormListing, ...]


def inspect_model(model: ir.Model, *, allow_overridable: bool = False) -> Inspection:
    """List ``model``, batch norms in subgraphs and functions included, under the names that folding gives them.

    allow_overridable: as for ``fold_onnx``. The model is not changed.
    """
    if model.functions:
        model = model.clone()
        inline_functions(model)
    size = size_of(model)
    return Inspection(
        ir_version=model.ir_version,
        opsets=dict(model.graph.opset_imports),
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        inputs=tuple(_port(value) for value in model.graph.inputs if not value.is_initializer()),
        outputs=tuple(_port(value) for value in model.graph.outputs),
        nodes=size.nodes,
        parameters=size.parameters,
        bytes=size.bytes,
        batch_norms=_batch_norms(model, allow_overridable),
    )


def _batch_norms(model: ir.Model, allow_overridable: bool) -> tuple[BatchNormListing, ...]:
    graph = Graph(model, overridable=allow_overridable)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    spelled = {chain.nodes[0]: chain for chain in find_chains(graph, nodes) if not chain.norms}
    return tuple(
        _decomposed(spelled[node]) if node in spelled else _listing(graph, node)
        for node in nodes
        if is_batch_norm(node) or (node in spelled and spelled[node].looks_like_a_norm)
    )


def _decomposed(chain: Chain) -> BatchNormListing:
    affine, first = chain.whole.affine, chain.nodes[0]
    dead = affine.scale == 0
    return BatchNormListing(
        batch_norm=name_of(first),
        channels=affine.scale.size,
        eps=None,
        producer=_producer(chain.whole.input_of(first)),
        consumers=_consumers(chain.nodes[-1].outputs[0]),
        gamma=_range(affine.scale),
        beta=_range(affine.shift),
        mean=None,
        variance=None,
        warnings=(f"its scale is 0 in {_count(dead)}: nothing of the input passes",) if dead.any() else (),
        operators=chain.operators,
    )


def _port(value: ir.Value) -> Port:
    shape = "?" if value.shape is None else f"[{', '.join(_axis(size) for size in value.shape)}]"
    return Port(value.name or "", "?" if value.dtype is None else value.dtype.name.lower(), shape)


def _axis(size: int | ir.SymbolicDim) -> str:
    return str(size) if isinstance(size, int) else size.value or "?"


def _listing(graph: Graph, node: ir.Node) -> BatchNormListing:
    found = {role: graph.constants.array(value) for role, value in zip(ROLES, node.inputs[1:5], strict=False)}
    arrays = {role: array.astype(np.float64) for role, array in found.items() if not isinstance(array, Refused)}
    unknown = [f"its {role} {array.reason}" for role, array in found.items() if isinstance(array, Refused)]
    epsilon = node.attributes.get("epsilon")
    eps = EPSILON if epsilon is None else None if epsilon.is_ref() else epsilon.as_float()
    x, y = node.inputs[0] if node.inputs else None, node.outputs[0]
    training = node.attributes.get("training_mode")
    warnings = ["in training mode: its statistics are the batch's"] if training is not None and training.value else []
    return BatchNormListing(
        batch_norm=name_of(node),
        channels=next((array.size for array in arrays.values()), None),
        eps=eps,
        producer=_producer(x),
        consumers=_consumers(y),
        gamma=_range(arrays.get("gamma")),
        beta=_range(arrays.get("beta")),
        mean=_range(arrays.get("mean")),
        variance=_range(arrays.get("variance")),
        warnings=(*warnings, *unknown, *_suspicions(arrays, eps)),
    )


def _range(array: np.ndarray | None) -> Range | None:
    finite = np.empty(0) if array is None else array[np.isfinite(array)]
    return (float(finite.min()), float(finite.max())) if finite.size else None


def _producer(value: ir.Value | None) -> str:
    if value is None:
        return ""
    node = value.producer()
    return f"input {value.name}" if node is None else _label(node)


def _consumers(value: ir.Value) -> tuple[str, ...]:
    return tuple(_label(use.node) for use in value.uses()) + (("output",) if value.is_graph_output() else ())


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name or ''}".rstrip()


def _suspicions(arrays: dict[str, np.ndarray], eps: float | None) -> Iterator[str]:
    for role, array in arrays.items():
        if not np.isfinite(array).all():
            yield f"{role} is not finite in {_count(~np.isfinite(array))}"
    if len({array.shape for array in arrays.values()}) > 1:
        yield "its constants differ in length"
    gamma, mean, variance = (arrays.get(role) for role in ("gamma", "mean", "variance"))
    if gamma is not None and (gamma == 0).any():
        yield f"gamma is 0 in {_count(gamma == 0)}: nothing of the input passes"
    if variance is not None:
        if eps is not None:
            yield from _spread(variance, eps)
        if mean is not None and (mean == 0).all() and (variance == 1).all():
            yield "mean 0 and variance 1 in every channel, the defaults: never trained?"


def _spread(variance: np.ndarray, eps: float) -> Iterator[str]:
    if (variance + eps <= 0).any():
        yield f"variance + eps is not positive in {_count(variance + eps <= 0)}"
    tiny = (variance + eps > 0) & (variance < eps)
    if tiny.any():
        scale = 1 / np.sqrt(variance[tiny].min() + eps)
        yield f"variance is below eps in {_count(tiny)}: the input hardly varies and is scaled up to {scale:.3g} times"


def _count(channels: np.ndarray) -> str:
    return f"{int(channels.sum())} of {channels.size} channels"
