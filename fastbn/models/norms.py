"""Norms by name, for networks whose norm can be chosen."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fastbn.errors import ArgumentError
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastbn.nn.batchrenorm import BatchRenorm1d, BatchRenorm2d
from fastbn.nn.containers import Residual
from fastbn.nn.conv import Conv2d
from fastbn.nn.fixup import FixupResidual, with_scalars
from fastbn.nn.groupnorm import GroupNorm
from fastbn.nn.instancenorm import InstanceNorm2d
from fastbn.nn.layernorm import LayerNorm
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.spectral_norm import spectral_norm
from fastbn.nn.weight_norm import weight_norm

PLACEMENTS = ("pre", "post")


@dataclass(frozen=True)
class Norm:
    """What is done to the hidden layers of a network.

    norm1d, norm2d: the layer that goes behind each, made for its features or channels. wrap: what its weight becomes.
    scalars: FixUp's scalars go before it and its activation; the network must then be given ``fixup_``'s values.
    """

    norm1d: Callable[[int], Module] | None = None
    norm2d: Callable[[int], Module] | None = None
    wrap: Callable[[Module], Module] | None = None
    scalars: bool = False

    @property
    def residual(self) -> type[Residual]:
        """The residual block that goes with it."""
        return FixupResidual if self.scalars else Residual

    def wrapped(self, layer: Module) -> Module:
        """``layer`` with its weight as ``wrap`` has it."""
        return layer if self.wrap is None else self.wrap(layer)

    def behind(self, layer: Module) -> list[Module]:
        """The norm of what ``layer`` gives, or nothing."""
        if isinstance(layer, Linear):
            return [] if self.norm1d is None else [self.norm1d(layer.out_features)]
        return [] if self.norm2d is None else [self.norm2d(layer.out_channels)]

    def hidden(self, layer: Conv2d | Linear, activation: Module, placement: str = "pre") -> list[Module]:
        """A hidden layer, its norm and its activation, the norm before ("pre") or behind ("post") the activation."""
        if self.scalars:
            return with_scalars(layer, activation)
        chain, norm = [self.wrapped(layer)], self.behind(layer)
        return [*chain, *norm, activation] if placement == "pre" else [*chain, activation, *norm]

    def output(self, layer: Linear) -> list[Module]:
        """The classifier, which has no norm."""
        return with_scalars(layer) if self.scalars else [layer]


def _groups(channels: int) -> GroupNorm:
    """Four groups, or two or one where the channels do not divide."""
    return GroupNorm(math.gcd(channels, 4), channels)


NORMS = {
    "batch": Norm(BatchNorm1d, BatchNorm2d),
    "renorm": Norm(BatchRenorm1d, BatchRenorm2d),
    "group": Norm(_groups, _groups),
    "layer": Norm(LayerNorm, lambda channels: GroupNorm(1, channels)),  # over all of an image
    "instance": Norm(norm2d=lambda channels: InstanceNorm2d(channels, affine=True)),  # features have no instances
    "weight": Norm(wrap=weight_norm),
    "spectral": Norm(wrap=spectral_norm),
    "fixup": Norm(scalars=True),
    "none": Norm(),
}


def norm_named(who: str, name: str) -> Norm:
    """The entry of ``NORMS``. Raises ArgumentError."""
    if name not in NORMS:
        raise ArgumentError(f"{who}: norm must be one of {', '.join(NORMS)}, got {name!r}")
    return NORMS[name]
