"""Nodes that are an affine map themselves: batch norms, and Mul, Add, Sub, Div with a constant.

Whatever comes to one is joined with it, s2 (s1 x + t1) + t2, and pushed on, the node being removed; where that way is
barred the two become one node here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Held, Step, along, describe
from export.folding.refused import Refused
from export.folding.rules.arithmetic import OPERATORS, read_arithmetic
from export.folding.rules.batch_norm import read_batch_norm
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to

NOT_CHOSEN = "it was not chosen"


def read(graph: Graph, node: ir.Node) -> Held | Refused:
    """The affine of a node with what it has absorbed so far."""
    if node.domain not in ("", "ai.onnx"):
        return Refused(f"{node.op_type} is not one of ONNX's own operators")
    if node in graph.affines:
        return graph.affines[node]
    if node in graph.left_alone:
        return Refused(NOT_CHOSEN)
    if node.op_type == "BatchNormalization":
        return read_batch_norm(graph, node)
    if node.op_type in OPERATORS:
        return read_arithmetic(graph, node)
    return Refused(f"{node.op_type} is not affine")


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Push both on; or make them one."""
    own = read(graph, node)
    if isinstance(own, Refused):
        return own
    joined = affine.after(own.affine)
    if joined is None:
        return Refused(f"{node.op_type} {node.name} before it acts on another axis")
    merge = _hold(graph, node, own, lambda held: affine.after(held))
    onward = [(own.input_of(node), joined)]
    otherwise = None if isinstance(merge, Refused) else merge
    return Step(onward=onward, edits=[lambda: graph.bypass(node, own.index)], otherwise=otherwise, once=True)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Make both one; whether that goes further is seen when it is the node's turn."""
    own = read(graph, node)
    if isinstance(own, Refused):
        return own
    if own.affine.after(affine) is None:
        return Refused(f"{node.op_type} {node.name} behind it acts on another axis")
    return _hold(graph, node, own, lambda held: held.after(affine))


def _hold(graph: Graph, node: ir.Node, own: Held, change: Callable[[Affine], Affine | None]) -> Step | Refused:
    """The step that ends in ``node``, whose affine is changed."""
    joined = change(own.affine)
    refused = None if joined is None else lost(graph, own.input_of(node), replace(own, affine=joined))
    if refused is not None:
        return Refused(f"{describe(node)}: {refused.reason}")

    def commit() -> None:
        # Not ``joined``: one affine may come here by two ways, as through both outputs of a Split.
        held = graph.affines.get(node, own)
        affine = change(held.affine)
        assert affine is not None
        graph.hold(node, replace(held, affine=affine))

    return Step(edits=[commit], into=[node])


def lost(graph: Graph, x: ir.Value, held: Held) -> Refused | None:
    """Why one node cannot stand for ``held`` on ``x``: numbers that overflow, or scales that are rounded to zero."""
    try:
        scale = round_to("fold", held.affine.scale, _stored(graph, x, held))
        round_to("fold", held.affine.shift, _stored(graph, x, held))
    except FastbnError as error:
        return Refused(str(error))
    return Refused("its scale would be rounded to zero") if ((scale == 0) & (held.affine.scale != 0)).any() else None


def _stored(graph: Graph, x: ir.Value, held: Held) -> np.dtype:
    """The dtype of the constants that are written."""
    dtype = graph.dtype(x)
    return held.dtype if dtype is None else dtype.numpy()


def needed(graph: Graph, x: ir.Value, affine: Affine) -> int:
    """How many nodes write ``affine`` of ``x``."""
    return 2 if not affine.linear and not (affine.scale == 1).all() and _channels(graph, x, affine) is None else 1


def cost(graph: Graph, node: ir.Node) -> int:
    """How many nodes there will be in the place of ``node``."""
    held = graph.affines.get(node)
    return 1 if held is None else needed(graph, held.input_of(node), held.affine)


def write(graph: Graph, node: ir.Node, held: Held) -> None:
    """Write what the node has become in the form that runs fastest.

    One batch norm reads and writes its array once, as Mul or Add alone does; Mul and Add together need twice as long
    (onnxruntime 1.31: 0.86 and 0.43 ms for 8 x 64 x 56 x 56).
    """
    x = held.input_of(node)
    affine, rank = held.affine, graph.rank(x)
    shape = (1,) if affine.axis is None or rank is None else along(rank, affine.axis, affine.scale.size)
    store = _stored(graph, x, held)
    if (affine.scale == 1).all():
        _replace(graph, node, x, "Add", {"bias": affine.shift.reshape(shape)}, store)
        return
    channels = _channels(graph, x, affine)
    if affine.linear or channels is None:
        output = _replace(graph, node, x, "Mul", {"scale": affine.scale.reshape(shape)}, store)
        if not affine.linear:
            bias = round_to("fold", affine.shift.reshape(shape), store)
            graph.insert_after(output, "Add", graph.constants.add(ir.Tensor(bias), f"{output.name}.bias"))
        return
    scale, shift = affine.wide(channels)
    vectors = {"scale": scale, "bias": shift, "mean": np.zeros(channels), "var": np.ones(channels)}
    inference = {"is_test": 1} if graph.opset < 7 else {}
    _replace(graph, node, x, "BatchNormalization", vectors, store, epsilon=0.0, **inference)


def _channels(graph: Graph, x: ir.Value, affine: Affine) -> int | None:
    """The channels of a batch norm that could stand for ``affine`` of ``x``; None where none could."""
    rank = graph.rank(x)
    if affine.axis not in (1, None) or graph.opset < 6 or rank is None or rank < 2:
        return None
    if graph.opset < 14 and graph.dtype(x) is ir.DataType.BFLOAT16:
        return None
    return graph.length(x, 1) if affine.uniform else affine.scale.size


def _replace(
    graph: Graph,
    node: ir.Node,
    x: ir.Value,
    op_type: str,
    constants: dict[str, np.ndarray],
    dtype: np.dtype,
    **more: Any,
) -> ir.Value:
    """Put another node in the place of ``node``, under its name; returns its output."""
    old = node.outputs[0]
    values = [
        graph.constants.add(ir.Tensor(round_to("fold", array, dtype)), f"{old.name}.{name}")
        for name, array in constants.items()
    ]
    fresh = ir.node(op_type, [x, *values], more, name=node.name)
    output = fresh.outputs[0]
    assert node.graph is not None
    node.graph.insert_before(node, fresh)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    spare = [value for value in node.inputs if value is not x]
    node.graph.remove(node, safe=True)
    name, old.name = old.name, None
    output.name, output.type, output.shape = name, old.type, old.shape
    graph.shapes.same(old, output)
    graph.constants.drop_unused(spare)
    return output
