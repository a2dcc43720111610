"""Weights that are computed from other parameters, under PyTorch's names for those.

A layer whose ``weight`` is parametrised has no parameter of that name but a child ``parametrizations``; its ``weight``
is then the child ``parametrizations.weight``, which a layer uses as it would a Parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from fastbn.errors import ArgumentError, DtypeError
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter


class Parametrization(Module, ABC):
    """What stands in the place of a Parameter; its own parameters are what is trained.

    ``data`` is computed at each reading: what is written into it is lost.
    """

    who: str  # the function that puts it on a layer
    main: str  # the name of the parameter of the weight's shape

    @abstractmethod
    def _adopt(self, weight: Parameter) -> None:
        """Take over the values of a plain weight."""

    @property
    @abstractmethod
    def data(self) -> np.ndarray:
        """The weight, C-contiguous."""

    @abstractmethod
    def accumulate(self, grad: np.ndarray) -> None:
        """Add to the gradients of its parameters what the gradient ``grad`` to ``data`` amounts to."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``data``."""
        return self._parameters[self.main].shape

    @property
    def size(self) -> int:
        """Number of elements of ``data``."""
        return self._parameters[self.main].size

    @property
    def requires_grad(self) -> bool:
        """Whether any parameter of it is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def put_on(self, layer: Module, name: str) -> None:
        """Stand in the place of the parameter ``name`` of ``layer``, with its values.

        Raises DtypeError, ShapeError, ArgumentError; then ``layer`` is unchanged.
        """
        if not isinstance(layer, Module):
            raise DtypeError(f"{self.who}: module must be a fastbn.nn.Module, got {type(layer).__name__}")
        weight = layer._parameters.get(name)
        if weight is None:
            got = "one that is parametrised already" if isinstance(getattr(layer, name, None), Module) else "none"
            raise ArgumentError(f"{self.who}: module must have a parameter {name}, got {got} in {type(layer).__name__}")
        self._adopt(weight)
        self.train(layer.training)
        del layer._parameters[name]
        if "parametrizations" not in layer._modules:
            layer.parametrizations = Parametrizations()
        layer.parametrizations.add_module(name, self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)


class Parametrizations(Module):
    """The child of a layer that holds its parametrised weights by name."""

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, Module]) -> Self:
        """The holder of ``children``, which are put on a layer by its own ``rebuild``."""
        holder = cls()
        holder._modules.update(children)
        return holder


def unparametrize(layer: Module, name: str, kind: type[Parametrization]) -> None:
    """Make the parameter ``name`` of ``layer`` a plain one, of the values that it has. Raises ArgumentError."""
    found = getattr(layer, name, None) if isinstance(layer, Module) else None
    if not isinstance(found, kind):
        got = f"a {type(layer).__name__} without"
        raise ArgumentError(f"remove_{kind.who}: module must have a {kind.who} on its {name}, got {got}")
    weight = Parameter(found.eval().data, found.requires_grad)
    del layer.parametrizations._modules[name]
    if not layer.parametrizations._modules:
        del layer._modules["parametrizations"]
    layer._parameters = {name: weight, **layer._parameters}


def unparametrize_all(model: Module) -> None:
    """Make every parametrised weight of ``model`` a plain one, in place."""
    for module in list(model.modules()):
        holder = module._modules.get("parametrizations")
        if isinstance(holder, Parametrizations):
            for name in list(holder._modules):
                unparametrize(module, name, Parametrization)  # type: ignore[type-abstract]
