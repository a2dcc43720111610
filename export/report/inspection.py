"""What is in an ONNX model: its interface, its size, and every batch norm with what is suspicious about it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from export.calibration.measure import Measured
from export.folding.chains import Chain, find_chains, is_batch_norm
from export.folding.fates import size_of
from export.folding.graph import Graph, name_of
from export.folding.inline import inline_functions
from export.folding.refused import Refused
from fastbn.diagnosis import finding
from fastbn.diagnosis.channels import count
from fastbn.diagnosis.checks import complaints
from fastbn.diagnosis.finding import Complaint, Finding, is_healthy, located
from fastbn.diagnosis.gap import OutputGap, norm_gap
from fastbn.diagnosis.vitals import Range, Vitals, finite_range

ROLES = ("gamma", "beta", "mean", "variance")  # inputs 1 to 4 of BatchNormalization
EPSILON = 1e-5  # ONNX's default
BIASED = ("Conv", "ConvTranspose", "Gemm")  # input 2

CALIBRATE = "python -m export SOURCE --calibrate DATA -o OUT.onnx estimates the statistics anew"
WAYS_OUT = finding.WAYS_OUT | {
    "not-finite": f"export it from an earlier checkpoint; where it is only the mean and the variance, {CALIBRATE}",
    **dict.fromkeys(("negative-variance", "default-statistics", "gap", "training-mode"), CALIBRATE),
    "not-constant": "--allow-overridable reads the defaults of what the caller can override",
    "lengths": "export it again",
    "useless-bias": "python -m export SOURCE -o OUT.onnx folds both into one",
}


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
    scale and the shift that it amounts to. gap: see ``fastbn.diagnosis.gap``, None where it was not measured.
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
    findings: tuple[Finding, ...]
    operators: str = "BatchNormalization"
    gap: float | None = None


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
    output: OutputGap | None

    @property
    def ok(self) -> bool:
        """Whether nothing but notes was found."""
        return all(is_healthy(norm.findings) for norm in self.batch_norms)


def inspect_model(model: ir.Model, *, allow_overridable: bool = False, measured: Measured | None = None) -> Inspection:
    """List ``model``, batch norms in subgraphs and functions included, under the names that folding gives them.

    allow_overridable: as for ``fold_onnx``. measured: what ``measure`` found on data. The model is not changed.
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
        batch_norms=_batch_norms(model, allow_overridable, measured),
        output=None if measured is None else measured.output,
    )


def _batch_norms(model: ir.Model, allow_overridable: bool, measured: Measured | None) -> tuple[BatchNormListing, ...]:
    graph = Graph(model, overridable=allow_overridable)
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    spelled = {chain.nodes[0]: chain for chain in find_chains(graph, nodes) if not chain.norms}
    return tuple(
        _decomposed(spelled[node]) if node in spelled else _listing(graph, node, measured)
        for node in nodes
        if is_batch_norm(node) or (node in spelled and spelled[node].looks_like_a_norm)
    )


def _decomposed(chain: Chain) -> BatchNormListing:
    affine, first = chain.whole.affine, chain.nodes[0]
    dead = affine.scale == 0
    what = f"its scale is 0 in {count(dead)}: nothing of the input passes"
    complaints = [Complaint("warning" if dead.all() else "note", "dead", what, 0.0)] if dead.any() else []
    return BatchNormListing(
        batch_norm=name_of(first),
        channels=affine.scale.size,
        eps=None,
        producer=_producer(chain.whole.input_of(first)),
        consumers=_consumers(chain.nodes[-1].outputs[0]),
        gamma=finite_range(affine.scale),
        beta=finite_range(affine.shift),
        mean=None,
        variance=None,
        findings=tuple(located(name_of(first), complaints, WAYS_OUT)),
        operators=chain.operators,
    )


def _port(value: ir.Value) -> Port:
    shape = "?" if value.shape is None else f"[{', '.join(_axis(size) for size in value.shape)}]"
    return Port(value.name or "", "?" if value.dtype is None else value.dtype.name.lower(), shape)


def _axis(size: int | ir.SymbolicDim) -> str:
    return str(size) if isinstance(size, int) else size.value or "?"


def _listing(graph: Graph, node: ir.Node, measured: Measured | None) -> BatchNormListing:
    found = {role: graph.constants.array(value) for role, value in zip(ROLES, node.inputs[1:5], strict=False)}
    arrays = {role: array.astype(np.float64) for role, array in found.items() if not isinstance(array, Refused)}
    epsilon = node.attributes.get("epsilon")
    eps = EPSILON if epsilon is None else None if epsilon.is_ref() else epsilon.as_float()
    judged = arrays if len({array.shape for array in arrays.values()}) == 1 else {}
    moments = None if measured is None else measured.moments.get(str(node.outputs[0].name))
    gap = None
    if moments is not None and len(judged) == len(ROLES) and eps is not None:
        gap = norm_gap(judged["gamma"], judged["mean"], judged["variance"], eps, *moments)
    vitals = Vitals(
        gamma=judged.get("gamma"),
        beta=judged.get("beta"),
        mean=judged.get("mean"),
        variance=judged.get("variance"),
        eps=eps,
        layer_bias=_bias_before(graph, node),
        gap=gap,
        samples=0 if measured is None else measured.samples,
    )
    return BatchNormListing(
        batch_norm=name_of(node),
        channels=next((array.size for array in arrays.values()), None),
        eps=eps,
        producer=_producer(node.inputs[0] if node.inputs else None),
        consumers=_consumers(node.outputs[0]),
        gamma=finite_range(arrays.get("gamma")),
        beta=finite_range(arrays.get("beta")),
        mean=finite_range(arrays.get("mean")),
        variance=finite_range(arrays.get("variance")),
        findings=tuple(located(name_of(node), [*_unknown(node, found), *complaints(vitals)], WAYS_OUT)),
        gap=gap,
    )


def _unknown(node: ir.Node, found: dict[str, np.ndarray | Refused]) -> Iterator[Complaint]:
    """Why figures of the node cannot be judged."""
    training = node.attributes.get("training_mode")
    if training is not None and training.value:
        yield Complaint("warning", "training-mode", "in training mode: its statistics are the batch's", 1.0)
    for role, array in found.items():
        if isinstance(array, Refused):
            yield Complaint("note", "not-constant", f"its {role} {array.reason}", 0.0)
    lengths = {array.size for array in found.values() if not isinstance(array, Refused)}
    if len(lengths) > 1:
        yield Complaint("error", "lengths", f"its constants differ in length, from {min(lengths)}", float(max(lengths)))


def _bias_before(graph: Graph, node: ir.Node) -> int:
    """How many values the bias of the layer right before ``node`` has; 0 where others read that layer."""
    x = node.inputs[0] if node.inputs else None
    layer = None if x is None else x.producer()
    if x is None or layer is None or layer.op_type not in BIASED or len(x.uses()) > 1 or x.is_graph_output():
        return 0
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    array = None if bias is None else graph.constants.array(bias)
    return array.size if isinstance(array, np.ndarray) else 0


def _producer(value: ir.Value | None) -> str:
    if value is None:
        return ""
    node = value.producer()
    return f"input {value.name}" if node is None else _label(node)


def _consumers(value: ir.Value) -> tuple[str, ...]:
    return tuple(_label(use.node) for use in value.uses()) + (("output",) if value.is_graph_output() else ())


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name or ''}".rstrip()
