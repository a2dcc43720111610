"""DepthToSpace and SpaceToDepth: channels become blocks of b x b pixels and the other way round.

DepthToSpace takes channel k C + c ("DCR") or c b^2 + k ("CRD") to pixel k of the block of channel c; SpaceToDepth
takes pixel k of channel c to channel k C + c.
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
    split = node.op_type == "DepthToSpace"
    moved = _deep(node, affine) if split else _flat(node, affine)
    return moved if isinstance(moved, Refused) else Step(onward=[(value, moved)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on."""
    moved = _flat(node, affine) if node.op_type == "DepthToSpace" else _deep(node, affine)
    return moved if isinstance(moved, Refused) else Step(onward=[(node.outputs[0], moved)])


def _deep(node: ir.Node, affine: Affine) -> Affine | Refused:
    """From C channels to C b^2."""
    if affine.axis != 1:
        return affine if affine.axis in (None, 0) else _pixels(node)
    pixels = attribute(node, "blocksize", 1) ** 2
    if _blocks_last(node):
        return Affine.of(np.repeat(affine.scale, pixels), np.repeat(affine.shift, pixels), 1)
    return Affine.of(np.tile(affine.scale, pixels), np.tile(affine.shift, pixels), 1)


def _flat(node: ir.Node, affine: Affine) -> Affine | Refused:
    """From C b^2 channels to C, if the pixels of a block agree."""
    if affine.axis != 1:
        return affine if affine.axis in (None, 0) else _pixels(node)
    pixels = attribute(node, "blocksize", 1) ** 2
    vectors = np.stack([affine.scale, affine.shift])
    if vectors.shape[1] % pixels:
        return _pixels(node)
    blocks = vectors.reshape(2, -1, pixels) if _blocks_last(node) else vectors.reshape(2, pixels, -1).swapaxes(1, 2)
    if not (blocks == blocks[..., :1]).all():
        return _pixels(node)
    return Affine.of(blocks[0, :, 0], blocks[1, :, 0], 1)


def _blocks_last(node: ir.Node) -> bool:
    return node.op_type == "DepthToSpace" and attribute(node, "mode", "DCR") == "CRD"


def _pixels(node: ir.Node) -> Refused:
    return Refused(f"{describe(node)}: the pixels of one block would need different numbers")
