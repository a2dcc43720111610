"""What all layers with constant weights have in common: their constants read, changed and written."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Edit, Graph, Step, describe
from export.folding.linear import Linear
from export.folding.refused import Refused
from export.folding.rules.quantised import dequantizer, refuse, rescale
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to

Reader = Callable[[Graph, ir.Node], Linear | Refused]


def linear_of(graph: Graph, node: ir.Node, read: Reader) -> Linear | Refused:
    """The layer as it will be, with what it has absorbed so far."""
    if node in graph.linears:
        return graph.linears[node]
    linear = read(graph, node)
    return Refused(f"{describe(node)}: {linear.reason}") if isinstance(linear, Refused) else linear


def taking_outputs(graph: Graph, node: ir.Node, affine: Affine, read: Reader) -> Linear | Refused:
    """The layer, if ``affine`` lies on its output channels, which are on axis 1."""
    linear = linear_of(graph, node, read)
    if isinstance(linear, Refused) or affine.fits(1, linear.outputs):
        return linear
    return Refused(f"{describe(node)}: its {linear.outputs} channels are on axis 1, the batch norm has {affine}")


def taking_inputs(
    graph: Graph, node: ir.Node, index: int, affine: Affine, read: Reader, axis: int = 1
) -> Linear | Refused:
    """The layer, if input ``index`` is its data and ``affine`` lies on its input channels, which are on ``axis``."""
    if index != 0:
        return Refused(f"{describe(node)} behind it takes it as a weight")
    linear = linear_of(graph, node, read)
    if isinstance(linear, Refused) or affine.fits(axis, linear.inputs):
        return linear
    return Refused(f"{describe(node)}: its {linear.inputs} inputs are on axis {axis}, the batch norm has {affine}")


def absorb_after(graph: Graph, node: ir.Node, affine: Affine, read: Reader) -> Step | Refused:
    """The step that ends in ``node``, which takes ``affine`` on its output channels."""
    return _absorb(graph, node, read, lambda linear: linear.after(affine))


def absorb_before(graph: Graph, node: ir.Node, affine: Affine, read: Reader) -> Step | Refused:
    """The step that ends in ``node``, which takes ``affine`` on its input channels."""
    return _absorb(graph, node, read, lambda linear: linear.before(affine))


def offset_before(graph: Graph, node: ir.Node, linear: Linear, affine: Affine, read: Reader) -> Step | Refused:
    """The step that puts x + t / s in front of ``node``, which takes s on its input channels."""
    edits = offset_edits(graph, node, affine, linear.dtype)
    step = absorb_before(graph, node, affine.only_scale(), read)
    if isinstance(edits, Refused) or isinstance(step, Refused):
        return edits if isinstance(edits, Refused) else step
    step.edits += edits
    return step


def offset_edits(graph: Graph, node: ir.Node, affine: Affine, dtype: np.dtype) -> list[Edit] | Refused:
    """The change that puts x + t / s in front of input 0 of ``node``."""
    value = node.inputs[0]
    if ((affine.scale == 0) & (affine.shift != 0)).any():
        return Refused(f"{describe(node)} needs x + t / s in front, and a channel's scale is 0")
    if affine.axis is not None and (value is None or graph.rank(value) is None):
        return Refused(f"{describe(node)} needs x + t / s in front, and the rank of x is not known")
    offset = np.zeros_like(affine.shift)
    with np.errstate(all="ignore"):
        np.divide(affine.shift, affine.scale, out=offset, where=affine.shift != 0)
    try:
        rounded = round_to("fold", offset, dtype)
    except FastbnError as error:
        return Refused(f"{describe(node)} needs x + t / s in front, and {error}")
    return [lambda: graph.shift_input(node, rounded, affine.axis)]


def _absorb(graph: Graph, node: ir.Node, read: Reader, change: Callable[[Linear], Linear]) -> Step | Refused:
    linear = linear_of(graph, node, read)
    if isinstance(linear, Refused):
        return linear
    changed = change(linear)
    source = dequantizer(node, linear.weight_index)
    refused = changed.overflows() or (None if source is None else refuse(graph, source, changed))
    if refused is not None:
        return Refused(f"{describe(node)}: {refused.reason}")

    def commit() -> None:
        # Not ``changed``: one affine may come here by two ways, as through both outputs of a Split.
        graph.linears[node] = change(graph.linears.get(node, linear))

    return Step(edits=[commit], into=[node])


def weight_of(graph: Graph, node: ir.Node, index: int = 1) -> tuple[Callable[[], np.ndarray], np.ndarray] | Refused:
    """The weight at input ``index``: a function that reads it again, and the array."""
    value = node.inputs[index] if len(node.inputs) > index else None
    weight = graph.constants.floats(value)
    if isinstance(weight, Refused):
        return Refused(f"its weight {weight.reason}")

    def stored() -> np.ndarray:
        array = graph.constants.array(value)
        assert not isinstance(array, Refused)
        return array

    # What is stored is read again when it is written; what was computed is not kept anywhere else.
    assert value is not None
    return (stored if ir.convenience.get_const_tensor(value) is not None else lambda: weight), weight


def bias_of(graph: Graph, node: ir.Node, index: int = 2) -> np.ndarray | Refused | None:
    """The bias at input ``index`` as float64, None for none."""
    value = node.inputs[index] if len(node.inputs) > index else None
    if value is None or value.name == "":
        return None
    bias = graph.constants.floats(value)
    return Refused(f"its bias {bias.reason}") if isinstance(bias, Refused) else bias.astype(np.float64)


def write_weight(graph: Graph, node: ir.Node, linear: Linear, index: int = 1) -> str:
    """Give ``node`` its new weight; returns the weight's name."""
    old = node.inputs[index]
    name = (old.name if old is not None else None) or "weight"
    quantised = dequantizer(node, index)
    if linear.out_scale is None and linear.in_scale is None:
        return name
    if quantised is not None:
        rescale(graph, quantised, node, index, linear)
    else:
        graph.constants.replace(node, index, linear.tensor(), name)
    return name


def write_bias(graph: Graph, node: ir.Node, linear: Linear, weight_name: str, index: int = 2) -> None:
    """Give ``node`` its new bias, if there is one."""
    bias = linear.rounded_bias()
    if bias is None:
        return
    old = node.inputs[index] if len(node.inputs) > index else None
    name = old.name if old is not None and old.name else weight_name.removesuffix(".weight") + ".bias"
    graph.constants.replace(node, index, ir.Tensor(np.ascontiguousarray(bias)), name)
