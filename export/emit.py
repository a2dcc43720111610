"""fastbn layers as ONNX nodes: one function a layer, in one table."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from export.emit_norm import NORM_WRITERS
from export.emitter import Emitter, join, parameters
from fastbn import nn
from fastbn.errors import ModelError
from fastbn.nn.conv import Conv
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.module import Module


def emit(emitter: Emitter, module: Module, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    """The output of ``module`` on ``x`` (of ``rank`` axes), and its rank. Raises ModelError for an unknown layer."""
    for kind, write in WRITERS.items():
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return write(emitter, module, path, x, rank)
    raise ModelError(f"export: {path or 'the model'} must be a layer of fastbn.nn, got {type(module).__name__}")


def _chain(emitter: Emitter, module: Any, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    for name, child in module.chain():
        x, rank = emit(emitter, child, join(path, name), x, rank)
    return x, rank


def _residual(emitter: Emitter, module: nn.Residual, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    y, y_rank = _chain(emitter, module, path, x, rank)
    shortcut = x
    if "downsample" in dict(module.named_children()):
        shortcut, _ = emit(emitter, module.downsample, join(path, "downsample"), x, rank)
    y = emitter.node(join(path, "add"), "Add", [y, shortcut])
    if "activation" in dict(module.named_children()):
        return emit(emitter, module.activation, join(path, "activation"), y, y_rank)
    return y, y_rank


def _conv(emitter: Emitter, module: Conv, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    weight, bias = parameters(emitter, module, path, "weight", "bias")
    y = emitter.node(
        path,
        "Conv",
        [x, weight] if bias is None else [x, weight, bias],
        kernel_shape=module.kernel_size,
        strides=module.stride,
        pads=module.padding * 2,
        dilations=module.dilation,
        group=module.groups,
    )
    return y, rank


def _linear(emitter: Emitter, module: nn.Linear, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    bias = None if module.bias is None else emitter.constant(join(path, "bias"), module.bias.data)
    if rank == 2 and bias is None and emitter.opset < 11:  # Gemm could not do without C before
        bias = emitter.constant(join(path, "bias"), np.zeros(module.out_features, module.weight.dtype))
    if rank == 2:
        weight = emitter.constant(join(path, "weight"), module.weight.data)
        return emitter.node(path, "Gemm", [x, weight] if bias is None else [x, weight, bias], transB=1), rank
    weight = emitter.constant(join(path, "weight.T"), module.weight.data.T)
    y = emitter.node(path, "MatMul", [x, weight])
    return (y if bias is None else emitter.node(join(path, "add"), "Add", [y, bias])), rank


def _layer_bn(emitter: Emitter, module: LayerBn, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    """The pair, to be folded with all others; folded from the start where only that is the same network."""
    if module.folded or module.weight_quantizer is not None:
        return emit(emitter, module.plain(), path, x, rank)
    for name, child in module.named_children():
        x, rank = emit(emitter, child, join(path, name), x, rank)
    return (emitter.node(join(path, "relu"), "Relu", [x]) if module.relu else x), rank


def _scalar_affine(
    emitter: Emitter, module: nn.ScalarAffine, path: str, x: ir.Value, rank: int
) -> tuple[ir.Value, int]:
    weight, bias = parameters(emitter, module, path, "weight", "bias")
    if weight is not None:
        x = emitter.node(join(path, "mul"), "Mul", [x, weight])
    return (x if bias is None else emitter.node(join(path, "add"), "Add", [x, bias])), rank


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _max_pool(emitter: Emitter, module: nn.MaxPool2d, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    return emitter.node(
        path,
        "MaxPool",
        [x],
        kernel_shape=_pair(module.kernel_size),
        strides=_pair(module.stride),
        pads=_pair(module.padding) * 2,
        dilations=_pair(module.dilation),
        ceil_mode=int(module.ceil_mode),
    ), rank


def _avg_pool(emitter: Emitter, module: nn.AvgPool2d, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    return emitter.node(
        path,
        "AveragePool",
        [x],
        kernel_shape=_pair(module.kernel_size),
        strides=_pair(module.stride),
        pads=_pair(module.padding) * 2,
        ceil_mode=int(module.ceil_mode),
        count_include_pad=int(module.count_include_pad),
    ), rank


def _relu6(emitter: Emitter, module: nn.ReLU6, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    if emitter.opset < 11:
        return emitter.node(path, "Clip", [x], min=0.0, max=6.0), rank
    assert x.dtype is not None
    bounds = {"min": 0.0, "max": 6.0}
    limits = [emitter.constant(join(path, name), np.array(v, x.dtype.numpy())) for name, v in bounds.items()]
    return emitter.node(path, "Clip", [x, *limits]), rank


def _flatten(emitter: Emitter, module: Module, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    return emitter.node(path, "Flatten", [x], axis=1), 2


def _same_rank(op_type: str) -> Callable[..., tuple[ir.Value, int]]:
    def write(emitter: Emitter, module: Module, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
        return emitter.node(path, op_type, [x]), rank

    return write


def _identity(emitter: Emitter, module: Module, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    return x, rank


WRITERS: dict[type[Module], Callable[..., tuple[ir.Value, int]]] = {
    nn.Residual: _residual,
    nn.Sequential: _chain,
    LayerBn: _layer_bn,
    Conv: _conv,
    nn.Linear: _linear,
    **NORM_WRITERS,
    nn.ScalarAffine: _scalar_affine,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.AdaptiveAvgPool2d: _same_rank("GlobalAveragePool"),
    nn.ReLU: _same_rank("Relu"),
    nn.ReLU6: _relu6,
    nn.Sigmoid: _same_rank("Sigmoid"),
    nn.Flatten: _flatten,
    nn.Identity: _identity,
    nn.Dropout: _identity,
}
