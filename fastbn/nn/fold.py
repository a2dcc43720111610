"""Batch norms of a model folded into the layers before them: algebra on weights, ahead of time."""

import copy
from collections import Counter

import numpy as np

from fastbn._checks import check_running_stats
from fastbn.errors import ArgumentError, DtypeError
from fastbn.functional.conv_blocks import suits as packs
from fastbn.functional.fold import fold_conv_bn_weights, fold_linear_bn_weights
from fastbn.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.nn.containers import Residual, Sequential
from fastbn.nn.conv import Conv, Conv2d
from fastbn.nn.instancenorm import InstanceNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter

# A subclass with a forward of its own may do anything between its children.
CHAINS = (Sequential.forward, Residual.forward)

# By the axes of the convolution that they follow. In eval mode instance norms by running statistics are batch norms.
NORMS = {1: (BatchNorm1d, InstanceNorm1d), 2: (BatchNorm2d, InstanceNorm2d), 3: (BatchNorm3d, InstanceNorm3d)}


def fold(model: Module) -> Module:
    """A copy of ``model`` in eval mode, with every batch norm that follows a convolution or linear layer folded away.

    So is an instance norm with running statistics after a convolution: in eval mode it is a batch norm.

    It is fused, see ``fuse``: a convolution, its bias, the shortcut of a Residual and the ReLU run in one pass.

    The weights that convolutions pack into panels are read-only, so that they are packed once and kept, which takes
    their size again in memory; ``train`` and ``load_state_dict`` make writeable copies of them.

    Looks inside Sequential and Residual, and puts convolutions and linear layers (with their quantised weights) in the
    place of ``LayerBn``. A batch norm stays where it has no running statistics, where it or its
    neighbour occurs twice in the model, or where nothing before it can take it. ``model`` is left as it is.
    Raises ArgumentError where the statistics cannot be folded (a negative variance), naming the layer.
    """
    if not isinstance(model, Module):
        raise DtypeError(f"fold: model must be a fastbn.nn.Module, got {type(model).__name__}")
    folded = copy.deepcopy(model).eval()
    folded.zero_grad()
    folded = _without_pairs(folded)
    uses = Counter(id(child) for module in folded.modules() for child in module.children())
    for prefix, module in list(folded.named_modules()):
        if isinstance(module, (Sequential, Residual)) and type(module).forward in CHAINS:
            _fold_chain(module, prefix, uses)
    for module in folded.modules():
        if isinstance(module, (Sequential, Residual)):
            module.fused = True
        if isinstance(module, Conv2d) and packs(module.weight.shape, module.groups, module.weight.dtype.itemsize):
            module.weight.data = np.array(module.weight.data)
            module.weight.data.flags.writeable = False
    return folded


def _without_pairs(model: Module) -> Module:
    """``model`` with plain layers for every ``LayerBn``, the same one where that occurs twice."""
    plain: dict[int, Module] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, LayerBn) and type(module).forward is LayerBn.forward:
            if not module.folded:
                norm = module.bn
                who = f"fold: batch norm {name}.bn" if name else "fold: batch norm bn"
                check_running_stats(who, norm.running_mean, norm.running_var, norm.num_features)
            try:
                plain[id(module)] = module.plain()
            except ArgumentError as error:
                raise ArgumentError(f"fold: {name}: {error}") from error
    for module in list(model.modules()):
        for name, child in module.named_children():
            module._modules[name] = plain.get(id(child), child)
    return plain.get(id(model), model)


def _fold_chain(container: Sequential | Residual, prefix: str, uses: Counter[int]) -> None:
    chain = container.chain()
    previous: Module | None = None
    for name, module in chain:
        if isinstance(module, (BatchNorm, InstanceNorm)) and previous is not None and _fits(previous, module, uses):
            who = f"fold: batch norm {prefix}.{name}" if prefix else f"fold: batch norm {name}"
            check_running_stats(who, module.running_mean, module.running_var, module.num_features)
            try:
                _absorb(previous, module)
            except ArgumentError as error:
                raise ArgumentError(f"{who}: {error}") from error
            del container._modules[name]
        else:
            previous = module


def _fits(layer: Module, norm: BatchNorm | InstanceNorm, uses: Counter[int]) -> bool:
    if not norm.track_running_stats or uses[id(layer)] != 1 or uses[id(norm)] != 1:
        return False
    if isinstance(layer, Conv):
        return isinstance(norm, NORMS[layer.axes]) and layer.out_channels == norm.num_features
    return isinstance(layer, Linear) and isinstance(norm, BatchNorm1d) and layer.out_features == norm.num_features


def _absorb(layer: Module, norm: BatchNorm | InstanceNorm) -> None:
    """Put ``norm`` into the weights of ``layer``."""
    statistics = (
        norm.running_mean,
        norm.running_var,
        norm.eps,
        None if norm.weight is None else norm.weight.data,
        None if norm.bias is None else norm.bias.data,
    )
    bias = None if layer.bias is None else layer.bias.data
    if isinstance(layer, Conv):
        weight, shift = fold_conv_bn_weights(layer.weight.data, bias, *statistics, groups=layer.groups)
    else:
        weight, shift = fold_linear_bn_weights(layer.weight.data, bias, *statistics)
        layer.matrix_only = True
    layer.weight = Parameter(weight, layer.weight.requires_grad)
    layer.bias = Parameter(shift, layer.weight.requires_grad)
