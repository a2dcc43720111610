"""Parallel branches added together become one convolution: RepVGG's 3x3 + 1x1 + batch norm, MobileOne, TextNet.

Convolutions are linear, so conv(x, V) + conv(x, W) = conv(x, V + W) once both kernels cover the same pixels: a kernel
of k taps that begins p pixels before its output pixel becomes one of K taps that begins P before it, with zeros
around (Ding et al. 2021, arXiv 2101.03697, section 3.3). An affine map of x, or x itself, is a 1 x 1 kernel with its
scales on the diagonal.
"""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, attribute, describe, is_onnx
from export.folding.linear import Linear
from export.folding.refused import Refused
from export.folding.rules import affine_node, conv
from export.folding.rules.layer import linear_of
from export.folding.rules.quantised import dequantizer


def merge_branches(graph: Graph) -> dict[ir.Node, str]:
    """Merge wherever two branches of one value are added. Returns the nodes that are gone, and whereto."""
    gone: dict[ir.Node, str] = {}
    for node in list(ir.traversal.RecursiveGraphIterator(graph.model.graph)):
        operands = [value for value in node.inputs if value is not None]
        if node.op_type not in ("Add", "Sum") or not is_onnx(node) or len(operands) != 2:
            continue
        for trunk, branch in (operands, operands[::-1]):
            if trunk is not branch and _merge(graph, node, trunk, branch, gone):
                break
    return gone


def _merge(graph: Graph, add: ir.Node, trunk: ir.Value, branch: ir.Value, gone: dict[ir.Node, str]) -> bool:
    """Put ``branch`` into the convolution that makes ``trunk``, if it is one and both read the same value."""
    node, other = trunk.producer(), branch.producer()
    if node is None or not _is_convolution(graph, node, trunk, add):
        return False
    linear, x = linear_of(graph, node, conv.read), node.inputs[0]
    if isinstance(linear, Refused):
        return False
    if branch is x:
        second: tuple[Linear, tuple[int, ...]] | None = _diagonal(node, linear, None)
    elif other is None or graph.read_by_others(branch, add) is not None:
        return False
    elif _is_convolution(graph, other, branch, add):
        if other.inputs[0] is not x or any(_how(node, name) != _how(other, name) for name in ("strides", "group")):
            return False
        found = linear_of(graph, other, conv.read)
        second = None if isinstance(found, Refused) else (found, _pads(other, found))
    else:
        held = affine_node.read(graph, other)
        if isinstance(held, Refused) or held.input_of(other) is not x or not held.affine.fits(1, linear.inputs):
            return False
        second = _diagonal(node, linear, held.affine)
    merged = None if second is None else _sum((linear, _pads(node, linear)), second)
    if merged is None or merged[0].overflows() is not None:
        return False
    graph.linears[node], pads = merged
    node.attributes.add(ir.AttrInt64s("pads", pads))
    node.attributes.add(ir.AttrInt64s("kernel_shape", merged[0].shape[2:]))
    graph.bypass(add, list(add.inputs).index(trunk))
    if other is not None and branch is not x:
        gone[other] = describe(node)
        graph.remove(other)
    return True


def _is_convolution(graph: Graph, node: ir.Node, value: ir.Value, add: ir.Node) -> bool:
    plain = node.op_type == "Conv" and is_onnx(node) and attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    plain = plain and dequantizer(node, 1) is None
    undilated = all(step == 1 for step in attribute(node, "dilations", ()))
    return plain and undilated and node.graph is add.graph and graph.read_by_others(value, add) is None


def _how(node: ir.Node, name: str) -> tuple[int, ...]:
    """Strides and groups in one form, whether they are written or not."""
    found = attribute(node, name, None)
    given = (found,) if isinstance(found, int) else tuple(found or ())
    return () if all(number == 1 for number in given) else given


def _pads(node: ir.Node, linear: Linear) -> tuple[int, ...]:
    return tuple(attribute(node, "pads", (0,) * 2 * (len(linear.shape) - 2)))


def _diagonal(node: ir.Node, linear: Linear, affine: Affine | None) -> tuple[Linear, tuple[int, ...]] | None:
    """``affine``, or the identity, as a 1 x 1 convolution like ``linear``, and its pads; None where it is none."""
    spatial = len(linear.shape) - 2
    if linear.inputs != linear.outputs or _how(node, "strides"):
        return None
    channels, inputs = linear.shape[:2]
    scale, shift = (np.ones(channels), None) if affine is None else affine.wide(channels)
    weight = np.zeros((channels, inputs, *(1,) * spatial))
    weight[np.arange(channels), np.arange(channels) % inputs] = scale.reshape(-1, *(1,) * spatial)
    return _like(linear, weight, shift), (0,) * 2 * spatial


def _sum(
    one: tuple[Linear, tuple[int, ...]], other: tuple[Linear, tuple[int, ...]]
) -> tuple[Linear, tuple[int, ...]] | None:
    """The convolution that is the sum of two, and its pads; None where they give different sizes."""
    spatial = len(one[0].shape) - 2
    if one[0].shape[:2] != other[0].shape[:2] or one[0].dtype != other[0].dtype:
        return None
    shrinks = [np.subtract(linear.shape[2:], np.add(pads[:spatial], pads[spatial:])) for linear, pads in (one, other)]
    if (shrinks[0] != shrinks[1]).any():
        return None
    begin = np.maximum(one[1][:spatial], other[1][:spatial])
    offsets = [begin - pads[:spatial] for _, pads in (one, other)]
    kernel = np.maximum(*(offset + linear.shape[2:] for offset, (linear, _) in zip(offsets, (one, other), strict=True)))
    end = kernel - begin - shrinks[0]
    weight = np.zeros((*one[0].shape[:2], *kernel))
    for offset, (linear, _) in zip(offsets, (one, other), strict=True):
        taps = tuple(slice(a, a + size) for a, size in zip(offset, linear.shape[2:], strict=True))
        weight[:, :, *taps] += linear.full_weight()
    biases = [linear.bias for linear, _ in (one, other) if linear.bias is not None]
    return _like(one[0], weight, np.sum(biases, axis=0) if biases else None), (*begin.tolist(), *end.tolist())


def _like(linear: Linear, weight: np.ndarray, bias: np.ndarray | None) -> Linear:
    """A convolution with the channels and groups of ``linear`` and another kernel."""
    view = (*linear.view[:3], int(np.prod(weight.shape[2:])))
    scale = np.ones(linear.outputs)  # not None: the weight is new and has to be written
    return replace(
        linear,
        stored=lambda: weight,
        shape=tuple(weight.shape),
        view=view,
        bias=None if bias is None else np.asarray(bias, np.float64),
        out_scale=scale,
        in_scale=None,
    )
