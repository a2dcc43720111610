"""FixUp's residual block, which trains without any norm (Zhang, Dauphin and Ma 2019, arXiv 1901.09321).

The other half of it are the initial values, which keep the first step of the whole network small whatever its depth:
``fastbn.nn.model_init.fixup_``.
"""

from collections.abc import Mapping
from typing import Any, Self

from fastbn.errors import ArgumentError
from fastbn.nn.activation import ReLU, ReLU6, Sigmoid
from fastbn.nn.containers import Residual, Sequential, named
from fastbn.nn.conv import Conv
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.scalar_affine import ScalarAffine

WEIGHTED = (Conv, Linear)
ACTIVATIONS = (ReLU, ReLU6, Sigmoid)


class FixupResidual(Residual):
    """``Residual`` with FixUp's scalars (figure 1 of the paper, on the right).

    body: convolutions or linear layers, which need no bias, and activations. Into it go a scalar bias before every
    layer (``bias1a``, ``bias2a``, ...) and every activation behind one (``bias1b``, ...), and a scalar multiplier and
    bias (``scale``) behind the last layer; the downsample has a scalar bias before it. Call ``fixup_`` on the whole
    model for its initial values. Raises ArgumentError, DtypeError.
    """

    def __init__(
        self,
        *body: Module | Mapping[str, Module],
        downsample: Module | None = None,
        activation: Module | None = None,
    ) -> None:
        if downsample is not None:
            downsample = Sequential({"bias": ScalarAffine(multiplier=False), "layer": downsample})
        super().__init__(_with_scalars(named("FixupResidual", body)), downsample=downsample, activation=activation)

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, Module]) -> Self:
        """The block of ``children``, which hold the scalars already."""
        block = cls.__new__(cls)
        own = {name: children[name] for name in cls.OWN if name in children}
        body = {name: child for name, child in children.items() if name not in own}
        Residual.__init__(block, body, **own)
        block.fused = bool(options.get("fused", False))
        return block


def with_scalars(*layers: Module) -> list[Module]:
    """``layers`` with a scalar bias before every layer with weights and every activation: FixUp outside of a branch."""
    chain: list[Module] = []
    for layer in layers:
        if isinstance(layer, (*WEIGHTED, *ACTIVATIONS)):
            chain.append(ScalarAffine(multiplier=False))
        chain.append(layer)
    return chain


def _with_scalars(body: list[tuple[str, Module]]) -> dict[str, Module]:
    last = sum(isinstance(layer, WEIGHTED) for _, layer in body)
    if not last:
        raise ArgumentError(f"FixupResidual: the body must have a layer with weights, got {[name for name, _ in body]}")
    chain: list[tuple[str, Module]] = []
    number, letter = 0, "a"
    for name, layer in body:
        if isinstance(layer, WEIGHTED):
            number, letter = number + 1, "a"
        if isinstance(layer, WEIGHTED) or (isinstance(layer, ACTIVATIONS) and 0 < number < last):
            chain.append((f"bias{number}{letter}", ScalarAffine(multiplier=False)))
            letter = chr(ord(letter) + 1)
        chain.append((name, layer))
        if isinstance(layer, WEIGHTED) and number == last:
            chain.append(("scale", ScalarAffine()))
    names = [name for name, _ in chain]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"FixupResidual: the body's names must not be those of its scalars, got {twice}")
    return dict(chain)
