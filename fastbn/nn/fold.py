"""Batch norms of a model folded into the layers before them: algebra on weights, ahead of time."""

import copy
from collections import Counter

import numpy as np

from fastbn._checks import check_running_stats
from fastbn.errors import ArgumentError, DtypeError
from fastbn.functional.fold import fold_conv_bn_weights, fold_linear_bn_weights, fold_scalar_weights
from fastbn.nn.batchnorm import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.nn.containers import Residual, Sequential
from fastbn.nn.conv import Conv, Conv2d
from fastbn.nn.instancenorm import InstanceNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import unparametrize_all
from fastbn.nn.scalar_affine import ScalarAffine

# A subclass with a forward of its own may do anything between its children.
CHAINS = (Sequential.forward, Residual.forward)

# By the axes of the convolution that they follow. In eval mode instance norms by running statistics are batch norms.
NORMS = {1: (BatchNorm1d, InstanceNorm1d), 2: (BatchNorm2d, InstanceNorm2d), 3: (BatchNorm3d, InstanceNorm3d)}


def fold(model: Module) -> Module:
    """A copy of ``model`` in eval mode, with every batch norm that follows a convolution or linear layer folded away.

    So is an instance norm with running statistics after a convolution: in eval mode it is a batch norm.

    It is fused, see ``fuse``: a convolution, its bias, the shortcut of a Residual and the ReLU run in one pass.

    The weights of convolutions and linear layers are read-only, so that they are packed once and kept, which takes
    their size again in memory; ``train`` and ``load_state_dict`` make writeable copies of them.

    Looks inside Sequential and Residual, and puts convolutions and linear layers (with their quantised weights) in the
    place of ``LayerBn``, plain weights in that of weight and spectral norms. A batch norm stays where it has no running
    statistics, where it or its neighbour occurs twice in the model, or where nothing before it can take it. A
    ScalarAffine goes into the layer before it, or into the one behind it unless a bias would meet its padding.
    ``model`` is left as it is.
    Raises ArgumentError where the statistics cannot be folded (a negative variance), naming the layer.
    """
    if not isinstance(model, Module):
        raise DtypeError(f"fold: model must be a fastbn.nn.Module, got {type(model).__name__}")
    folded = copy.deepcopy(model).eval()
    folded.zero_grad()
    unparametrize_all(folded)
    folded = _without_pairs(folded)
    _fold_chains(folded, (BatchNorm, InstanceNorm, ScalarAffine))
    for module in folded.modules():
        if isinstance(module, (Sequential, Residual)):
            module.fused = True
        if isinstance(module, (Conv2d, Linear)):
            module.weight.data = np.array(module.weight.data)
            module.weight.data.flags.writeable = False
    return folded


def fold_scalars(model: Module) -> Module:
    """A copy of ``model`` without the scalars and the norms of weights that ``fold`` takes away; batch norms stay."""
    folded = copy.deepcopy(model)
    unparametrize_all(folded)
    _fold_chains(folded, (ScalarAffine,))
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


def _fold_chains(model: Module, kinds: tuple[type[Module], ...]) -> None:
    """Fold what is of one of ``kinds`` into its neighbours, in place."""
    uses = uses_of(model)
    for prefix, module in list(model.named_modules()):
        if isinstance(module, (Sequential, Residual)) and type(module).forward in CHAINS:
            _fold_chain(module, prefix, uses, kinds)


def _fold_chain(
    container: Sequential | Residual, prefix: str, uses: Counter[int], kinds: tuple[type[Module], ...]
) -> None:
    previous_name, previous = "", None
    for name, module in container.chain():
        if previous is not None and isinstance(module, kinds) and fits(previous, module, uses):
            _absorb(previous, module, f"{prefix}.{name}" if prefix else name)
            del container._modules[name]
            continue
        if isinstance(previous, ScalarAffine) and _takes(module, previous, uses):
            _absorb_before(module, previous)
            del container._modules[previous_name]
        previous_name, previous = name, module


def uses_of(model: Module) -> Counter[int]:
    """How many parents every module of ``model`` has, by its id."""
    return Counter(id(child) for module in model.modules() for child in module.children())


def fits(layer: Module, affine: Module, uses: Counter[int]) -> bool:
    """Whether ``layer`` can take in ``affine``, right behind it in a chain; uses: as ``uses_of`` counts them."""
    if uses[id(layer)] != 1 or uses[id(affine)] != 1:
        return False
    if isinstance(affine, ScalarAffine):
        return isinstance(layer, (Conv, Linear))
    if not isinstance(affine, (BatchNorm, InstanceNorm)) or not affine.track_running_stats:
        return False
    if isinstance(layer, Conv):
        return isinstance(affine, NORMS[layer.axes]) and layer.out_channels == affine.num_features
    return isinstance(layer, Linear) and isinstance(affine, BatchNorm1d) and layer.out_features == affine.num_features


def _takes(layer: Module, scalar: ScalarAffine, uses: Counter[int]) -> bool:
    """Whether ``layer`` can take in ``scalar`` before it: zeros at a border would become the scalar's bias."""
    if uses[id(layer)] != 1 or uses[id(scalar)] != 1:
        return False
    return isinstance(layer, Linear) or (isinstance(layer, Conv) and (scalar.bias is None or not any(layer.padding)))


def _absorb(layer: Module, affine: Module, name: str) -> None:
    """Put ``affine`` into the weights of ``layer``."""
    who = f"fold: {'batch norm' if isinstance(affine, (BatchNorm, InstanceNorm)) else 'scalar'} {name}"
    channels = len(layer.weight.data)
    if isinstance(affine, (BatchNorm, InstanceNorm)):
        check_running_stats(who, affine.running_mean, affine.running_var, affine.num_features)
        statistics = affine.running_mean, affine.running_var, affine.eps, *affine.affine_arrays()
    else:
        gamma, beta = (None if p is None else np.repeat(p.data, channels) for p in (affine.weight, affine.bias))
        statistics = np.zeros(channels), np.ones(channels), 0.0, gamma, beta
    bias = None if layer.bias is None else layer.bias.data
    try:
        if isinstance(layer, Conv):
            weight, shift = fold_conv_bn_weights(layer.weight.data, bias, *statistics, groups=layer.groups)
        else:
            weight, shift = fold_linear_bn_weights(layer.weight.data, bias, *statistics)
    except ArgumentError as error:
        raise ArgumentError(f"{who}: {error}") from error
    if isinstance(layer, Linear) and not isinstance(affine, ScalarAffine):
        layer.matrix_only = True
    _set(layer, weight, shift)


def _absorb_before(layer: Module, scalar: ScalarAffine) -> None:
    """Put ``scalar`` into the weights of ``layer`` behind it."""
    bias = None if layer.bias is None else layer.bias.data
    numbers = (None if parameter is None else parameter.data for parameter in (scalar.weight, scalar.bias))
    _set(layer, *fold_scalar_weights(layer.weight.data, bias, *numbers))


def _set(layer: Module, weight: np.ndarray, bias: np.ndarray) -> None:
    layer.weight = Parameter(weight, layer.weight.requires_grad)
    layer.bias = Parameter(bias, layer.weight.requires_grad)
