"""Normalising layers as ONNX nodes.

LayerNormalization is there from opset 17 on, GroupNormalization with a scale a channel from 21, RMSNormalization from
23; before, their parts are written. In eval mode an instance norm with running statistics is a batch norm.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from export.emitter import Emitter, join, parameters
from fastbn import nn
from fastbn.errors import ModelError
from fastbn.nn.batchnorm import BatchNorm
from fastbn.nn.batchnorm_ghost import GhostBatchNorm
from fastbn.nn.batchnorm_masked import MaskedBatchNorm
from fastbn.nn.batchrenorm import BatchRenorm
from fastbn.nn.instancenorm import InstanceNorm
from fastbn.nn.module import Module


def onnx_momentum(momentum: float | None) -> float:
    """ONNX's momentum is the weight of the old value; the cumulative average has no counterpart there."""
    return 0.9 if momentum is None else 1.0 - momentum


def _batch_norm(
    emitter: Emitter, module: BatchNorm | InstanceNorm, path: str, x: ir.Value, rank: int
) -> tuple[ir.Value, int]:
    dtype = module.running_mean.dtype
    weight, bias = module.affine_arrays()
    inputs = [
        x,
        emitter.constant(join(path, "weight"), np.ones(module.num_features, dtype) if weight is None else weight),
        emitter.constant(join(path, "bias"), np.zeros(module.num_features, dtype) if bias is None else bias),
        *parameters(emitter, module, path, "running_mean", "running_var"),
    ]
    momentum = onnx_momentum(module.momentum)
    return emitter.node(path, "BatchNormalization", inputs, epsilon=float(module.eps), momentum=momentum), rank


def _instance_norm(emitter: Emitter, module: InstanceNorm, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    if rank != module.ranks[1]:
        raise ModelError(f"export: the input of {path or 'the model'} must have {module.ranks[1]} axes, got {rank}")
    if module.track_running_stats:
        return _batch_norm(emitter, module, path, x, rank)
    if _dtype(x) == np.float64:  # onnxruntime's CPU has no such InstanceNormalization
        xhat = _standardised(emitter, path, x, range(2 - rank, 0), module.eps)
        return _affine(emitter, path, xhat, *_columns(emitter, module, path, rank)), rank
    weight, bias = _scale_and_shift(emitter, module, path, x, module.num_features)
    return emitter.node(path, "InstanceNormalization", [x, weight, bias], epsilon=float(module.eps)), rank


def _layer_norm(emitter: Emitter, module: nn.LayerNorm, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    if emitter.opset >= 17:
        weight, bias = _scale_and_shift(emitter, module, path, x, module.normalized_shape)
        options = {"axis": -len(module.normalized_shape), "epsilon": float(module.eps), "stash_type": _stash_type(x)}
        return emitter.node(path, "LayerNormalization", [x, weight, bias], **options), rank
    xhat = _standardised(emitter, path, x, range(-len(module.normalized_shape), 0), module.eps)
    scale, shift = parameters(emitter, module, path, "weight", "bias")
    return _affine(emitter, path, xhat, scale, shift), rank


def _rms_norm(emitter: Emitter, module: nn.RMSNorm, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    eps = float(np.finfo(_dtype(x)).eps if module.eps is None else module.eps)
    axes = range(-len(module.normalized_shape), 0)
    if emitter.opset >= 23:
        weight = _scale_and_shift(emitter, module, path, x, module.normalized_shape)[0]
        options = {"axis": axes[0], "epsilon": eps, "stash_type": _stash_type(x)}
        return emitter.node(path, "RMSNormalization", [x, weight], **options), rank
    xhat = _by_root_mean_square(emitter, path, x, axes, eps)
    return _affine(emitter, path, xhat, parameters(emitter, module, path, "weight")[0], None), rank


def _group_norm(emitter: Emitter, module: nn.GroupNorm, path: str, x: ir.Value, rank: int) -> tuple[ir.Value, int]:
    eps, groups = float(module.eps), module.num_groups
    if emitter.opset >= 21:
        weight, bias = _scale_and_shift(emitter, module, path, x, module.num_channels)
        options = {"epsilon": eps, "num_groups": groups, "stash_type": _stash_type(x)}
        return emitter.node(path, "GroupNormalization", [x, weight, bias], **options), rank
    shape = emitter.constant(join(path, "groups"), np.array([0, groups, -1]))
    rows = emitter.node(join(path, "split"), "Reshape", [x, shape])
    if _dtype(x) == np.float64:
        xhat = _standardised(emitter, path, rows, range(-1, 0), eps)
    else:
        one, zero = (emitter.constant(join(path, n), np.full(groups, v, _dtype(x))) for n, v in (("1", 1), ("0", 0)))
        xhat = emitter.node(path, "InstanceNormalization", [rows, one, zero], epsilon=eps)
    before = emitter.node(join(path, "shape"), "Shape", [x])
    before.type = ir.TensorType(ir.DataType.INT64)
    xhat = emitter.node(join(path, "merge"), "Reshape", [xhat, before])
    return _affine(emitter, path, xhat, *_columns(emitter, module, path, rank)), rank


def _dtype(x: ir.Value) -> np.dtype:
    assert x.dtype is not None
    return x.dtype.numpy()


def _stash_type(x: ir.Value) -> int:
    """What statistics are computed in: without it in float32, of float64 too."""
    return int(ir.DataType.from_numpy(_dtype(x)))


def _scale_and_shift(
    emitter: Emitter, module: Any, path: str, x: ir.Value, shape: int | tuple[int, ...]
) -> tuple[ir.Value, ir.Value]:
    """Weight and bias, 1 and 0 in the place of what the layer lacks."""
    weight, bias = module.affine_arrays()
    weight = np.ones(shape, _dtype(x)) if weight is None else weight
    bias = np.zeros(shape, _dtype(x)) if bias is None else bias
    return emitter.constant(join(path, "weight"), weight), emitter.constant(join(path, "bias"), bias)


def _columns(emitter: Emitter, module: Any, path: str, rank: int) -> Iterator[ir.Value | None]:
    """Weight and bias, a channel each, for arrays of ``rank`` axes."""
    for name, array in zip(("weight", "bias"), module.affine_arrays(), strict=True):
        column = None if array is None else array.reshape(-1, *(1,) * (rank - 2))
        yield None if column is None else emitter.constant(join(path, name), column)


def _affine(emitter: Emitter, path: str, xhat: ir.Value, weight: ir.Value | None, bias: ir.Value | None) -> ir.Value:
    if weight is not None:
        xhat = emitter.node(join(path, "mul"), "Mul", [xhat, weight])
    return xhat if bias is None else emitter.node(join(path, "add"), "Add", [xhat, bias])


def _mean(emitter: Emitter, path: str, x: ir.Value, axes: range) -> ir.Value:
    """The mean over the last axes; they are an input of the operator from opset 18 on."""
    if emitter.opset < 18:
        return emitter.node(join(path, "mean"), "ReduceMean", [x], axes=tuple(axes))
    over = emitter.constant(join(path, "axes"), np.array(axes))
    return emitter.node(join(path, "mean"), "ReduceMean", [x, over])


def _standardised(emitter: Emitter, path: str, x: ir.Value, axes: range, eps: float) -> ir.Value:
    """(x - mean) / sqrt(var + eps) over the last axes."""
    centred = emitter.node(join(path, "sub"), "Sub", [x, _mean(emitter, path, x, axes)])
    return _by_root_mean_square(emitter, path, centred, axes, eps)


def _by_root_mean_square(emitter: Emitter, path: str, x: ir.Value, axes: range, eps: float) -> ir.Value:
    """x / sqrt(mean(x^2) + eps) over the last axes."""
    square = emitter.node(join(path, "square"), "Mul", [x, x])
    least = emitter.constant(join(path, "eps"), np.array(eps, _dtype(x)))
    spread = emitter.node(join(path, "add_eps"), "Add", [_mean(emitter, path, square, axes), least])
    return emitter.node(join(path, "div"), "Div", [x, emitter.node(join(path, "sqrt"), "Sqrt", [spread])])


NORM_WRITERS: dict[type[Module], Callable[..., tuple[ir.Value, int]]] = {
    **dict.fromkeys((BatchNorm, BatchRenorm, GhostBatchNorm, MaskedBatchNorm), _batch_norm),
    InstanceNorm: _instance_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
}
