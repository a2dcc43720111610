"""Gemm, y = alpha A B + beta C, then BatchNormalization:

B' = B s along outputs, C' = (beta C - mean) s + b, beta' = 1.
"""

import numpy as np
import onnx_ir as ir

from export.refused import Refused
from export.rules.batch_norm import BatchNormNode
from export.rules.weights import read_layer, write_layer
from fastbn.functional.fold import fold_linear_bn_weights


def refuse(model: ir.Model, norm: BatchNormNode, gemm: ir.Node) -> Refused | None:
    """Why ``norm`` cannot go into ``gemm``, or None."""
    layer = read_layer(model, norm, gemm)
    if isinstance(layer, Refused):
        return layer
    weight, bias = layer
    if weight.ndim != 2 or weight.shape[0 if _trans_b(gemm) else 1] != norm.mean.size:
        return Refused(f"{gemm.name}: its weight of shape {weight.shape} does not give {norm.mean.size} features")
    if bias is not None and bias.shape not in ((), (1,), (1, 1), norm.mean.shape, (1, norm.mean.size)):
        return Refused(f"{gemm.name}: its C has shape {bias.shape}, not one value per feature")
    return None


def rewrite(model: ir.Model, norm: BatchNormNode, gemm: ir.Node) -> None:
    """Put ``norm`` into the weights of ``gemm``; alpha stays, beta becomes 1."""
    layer = read_layer(model, norm, gemm)
    assert not isinstance(layer, Refused)
    weight, bias = layer
    transposed = _trans_b(gemm)
    beta = gemm.attributes.get("beta")
    if bias is not None:
        bias = np.broadcast_to((1.0 if beta is None else beta.as_float()) * bias.reshape(-1), norm.mean.shape)
    rows = weight if transposed else weight.T
    folded, shift = fold_linear_bn_weights(rows, bias, norm.mean, norm.var, norm.eps, norm.gamma, norm.beta)
    write_layer(model, gemm, folded if transposed else folded.T, shift)
    if beta is not None:
        gemm.attributes.add(ir.AttrFloat32("beta", 1.0))


def _trans_b(gemm: ir.Node) -> bool:
    trans = gemm.attributes.get("transB")
    return trans is not None and bool(trans.as_int())
