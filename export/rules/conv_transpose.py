"""ConvTranspose, then BatchNormalization: as for Conv, with W (C_in, C_out / groups, *k) scaled along C_out."""

import onnx_ir as ir

from export.refused import Refused
from export.rules.batch_norm import BatchNormNode
from export.rules.weights import read_layer, write_layer
from fastbn.functional.fold import fold_conv_bn_weights


def refuse(model: ir.Model, norm: BatchNormNode, conv: ir.Node) -> Refused | None:
    """Why ``norm`` cannot go into ``conv``, or None."""
    layer = read_layer(model, norm, conv)
    if isinstance(layer, Refused):
        return layer
    weight, bias = layer
    groups = _groups(conv)
    if groups < 1 or weight.ndim < 3 or weight.shape[0] % groups or weight.shape[1] * groups != norm.mean.size:
        return Refused(f"{conv.name}: its weight of shape {weight.shape} does not give {norm.mean.size} channels")
    if bias is not None and bias.shape != norm.mean.shape:
        return Refused(f"{conv.name}: its bias has shape {bias.shape}, not {norm.mean.shape}")
    return None


def rewrite(model: ir.Model, norm: BatchNormNode, conv: ir.Node) -> None:
    """Put ``norm`` into the weights of ``conv``."""
    layer = read_layer(model, norm, conv)
    assert not isinstance(layer, Refused)
    weight, bias = layer
    statistics = (norm.mean, norm.var, norm.eps, norm.gamma, norm.beta)
    write_layer(model, conv, *fold_conv_bn_weights(weight, bias, *statistics, transpose=True, groups=_groups(conv)))


def _groups(conv: ir.Node) -> int:
    group = conv.attributes.get("group")
    return 1 if group is None else group.as_int()
