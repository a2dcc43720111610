"""Initial values of whole models, in place; those of one weight are in ``fastbn.nn.init``."""

from collections.abc import Callable
from typing import Any

from fastbn.errors import ArgumentError, DtypeError
from fastbn.nn import init
from fastbn.nn.containers import Residual, leaves
from fastbn.nn.conv import Conv
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.scalar_affine import ScalarAffine

WEIGHTED = (Conv, Linear)


def init_weights_(model: Module, fill: Callable[..., Any], **options: Any) -> Module:
    """``fill(weight, **options)`` of every convolution and linear layer, in place; their biases 0.

    fill: a function of ``nn.init``. Returns ``model``. Raises DtypeError, and what ``fill`` raises.
    """
    _check("init_weights_", model)
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            fill(module.weight, **options)
            if module.bias is not None:
                init.zeros_(module.bias)
    return model


def zero_gamma_(model: Module) -> Module:
    """Set the weight of the norm that ends each ``Residual`` body to 0, in place: every block begins as its shortcut.

    (Goyal et al. 2017, arXiv 1706.02677, section 5.1.) A body that ends in something else is left as it is. Returns
    ``model``. Raises ArgumentError where no body ends in a norm with a weight, DtypeError.
    """
    _check("zero_gamma_", model)
    found = [weight for block in _residuals(model) if (weight := _last_gamma(block)) is not None]
    if not found:
        kind = type(model).__name__
        raise ArgumentError(f"zero_gamma_: model must have a Residual block that ends in a norm, got none in {kind}")
    for weight in found:
        init.zeros_(weight)
    return model


def fixup_(model: Module, mode: str = "fan_out") -> Module:
    """FixUp's initial values, in place (Zhang, Dauphin and Ma 2019, arXiv 1901.09321, section 3).

    With L ``Residual`` blocks: in each, the last of the m layers of its body is 0 and the others are Kaiming's times
    L^(-1 / (2m - 2)). The classifier, which is the last layer outside of the blocks, is 0; all other layers are
    Kaiming's. Biases are 0, multipliers 1. mode: of Kaiming's fan, by default that of the authors' code. Without blocks
    only the classifier is special. Returns ``model``. Raises DtypeError, ArgumentError.
    """
    _check("fixup_", model)
    init_weights_(model, init.kaiming_normal_, mode=mode, nonlinearity="relu")
    blocks = _residuals(model)
    inside = {id(module) for block in blocks for module in block.modules()}
    last = [module for module in model.modules() if isinstance(module, WEIGHTED) and id(module) not in inside][-1:]
    for block in blocks:
        layers = [leaf for leaf in leaves(block) if isinstance(leaf, WEIGHTED)]
        for layer in layers[:-1]:
            layer.weight.data[...] *= len(blocks) ** (-1.0 / (2 * len(layers) - 2))
        last += layers[-1:]
    for layer in last:
        init.zeros_(layer.weight)
    for module in model.modules():
        if isinstance(module, ScalarAffine):
            module.reset_parameters()
    return model


def _check(who: str, model: Module) -> None:
    if not isinstance(model, Module):
        raise DtypeError(f"{who}: model must be a fastbn.nn.Module, got {type(model).__name__}")


def _residuals(model: Module) -> list[Residual]:
    return [module for module in model.modules() if isinstance(module, Residual)]


def _last_gamma(block: Residual) -> Parameter | None:
    """The weight of the norm that the body ends in; what has none is passed over, a layer ends the search."""
    for leaf in reversed(list(leaves(block))):
        module = leaf.bn if isinstance(leaf, LayerBn) and not leaf.folded else leaf
        if isinstance(module, (*WEIGHTED, Residual, ScalarAffine)):
            return None
        if module._parameters.get("weight") is not None:
            return module._parameters["weight"]
    return None
