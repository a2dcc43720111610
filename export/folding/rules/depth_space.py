"""DepthToSpace and SpaceToDepth: channels become blocks of b x b pixels and the other way round.

DepthToSpace takes channel k C + c ("DCR") or c b^2 + k ("CRD") to pixel k of the block of channel c; SpaceToDepth
takes it back.
"""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine."""
    value = node.inputs[0]
    assert value is not None
    return _moved(graph, node, value, affine, deep=node.op_type == "DepthToSpace")


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on."""
    return _moved(graph, node, node.outputs[0], affine, deep=node.op_type == "SpaceToDepth")


def _moved(graph: Graph, node: ir.Node, target: ir.Value, affine: Affine, *, deep: bool) -> Step | Refused:
    """The affine on ``target``, which has b^2 times as many channels if ``deep``, else as few."""
    if affine.axis != 1:
        return Step(onward=[(target, affine)]) if affine.axis in (None, 0) else _pixels(node)
    pixels, channels = attribute(node, "blocksize", 1) ** 2, graph.length(target, 1)
    if channels is None or affine.scale.size * (pixels if deep else 1) != channels * (1 if deep else pixels):
        return Refused(f"{describe(node)}: the channels on its other side are not known")
    vectors = np.stack([affine.scale, affine.shift])
    if deep:
        vectors = np.repeat(vectors, pixels, axis=1) if _blocks_last(node) else np.tile(vectors, pixels)
    else:
        shape = (2, channels, pixels) if _blocks_last(node) else (2, pixels, channels)
        blocks = vectors.reshape(shape).swapaxes(1, 1 if _blocks_last(node) else 2)
        if not (blocks == blocks[..., :1]).all():
            return _pixels(node)
        vectors = blocks[..., 0]
    return Step(onward=[(target, Affine.of(vectors[0], vectors[1], 1))])


def _blocks_last(node: ir.Node) -> bool:
    return bool(attribute(node, "mode", "DCR") == "CRD")


def _pixels(node: ir.Node) -> Refused:
    return Refused(f"{describe(node)}: the pixels of one block would need different numbers")
