"""Modules made of modules, and the reshape between convolutions and linear layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastbn._checks import check_shape
from fastbn.errors import ArgumentError, DtypeError
from fastbn.nn.module import Module


class Sequential(Module):
    """Modules one after the other: ``Sequential(a, b)`` named "0", "1", or ``Sequential({"conv": a, "bn": b})``."""

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        for name, module in _named("Sequential", modules):
            self.add_module(name, module)

    def chain(self) -> list[tuple[str, Module]]:
        """The modules in the order of the forward pass, by name."""
        return list(self._modules.items())

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Each module's output is the next one's input."""
        for _, module in self.chain():
            x = module(x)
        return x

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx, the modules in reverse order."""
        return _backward(self.chain(), dy, need_dx)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> Module:
        return list(self._modules.values())[index]


class Residual(Module):
    """``activation(body(x) + shortcut(x))``, with the names of torchvision's blocks.

    The body's modules are children of this module themselves. downsample: the shortcut, the identity if None.
    activation: applied to the sum, nothing if None.
    """

    OWN = ("downsample", "activation")

    def __init__(
        self,
        *body: Module | Mapping[str, Module],
        downsample: Module | None = None,
        activation: Module | None = None,
    ) -> None:
        super().__init__()
        for name, module in _named("Residual", body):
            if name in self.OWN:
                raise ArgumentError(f"Residual: the body's names must not be {' or '.join(self.OWN)}, got {name}")
            self.add_module(name, module)
        if downsample is not None:
            self.downsample = downsample
        if activation is not None:
            self.activation = activation

    def chain(self) -> list[tuple[str, Module]]:
        """The body's modules in the order of the forward pass, by name."""
        return [(name, module) for name, module in self._modules.items() if name not in self.OWN]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like body(x)."""
        y = x
        for _, module in self.chain():
            y = module(y)
        shortcut = self.downsample(x) if "downsample" in self._modules else x
        check_shape("Residual", "the shortcut", shortcut, y.shape, "as the body's output")
        y = y + shortcut
        return self.activation(y) if "activation" in self._modules else y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx, the sum of both paths."""
        if "activation" in self._modules:
            dy = self.activation.backward(dy)
        dx = _backward(self.chain(), dy, need_dx)
        if "downsample" in self._modules:
            dy = self.downsample.backward(dy, **({} if need_dx else {"need_dx": False}))
        return None if dx is None or dy is None else dx + dy


class Flatten(Module):
    """(N, *) to (N, features), in logical (C-contiguous) order."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, features); a view where memory allows."""
        self._keep(x.shape)
        return x.reshape(x.shape[0], -1) if x.size else x.reshape(x.shape[0], int(np.prod(x.shape[1:])))

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx in the shape of x."""
        return dy.reshape(self._take())


class Identity(Module):
    """X itself."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """X."""
        return x

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """Dy."""
        return dy


def _named(who: str, modules: tuple[Any, ...]) -> list[tuple[str, Module]]:
    pairs = (
        [(str(name), module) for name, module in modules[0].items()]
        if len(modules) == 1 and isinstance(modules[0], Mapping)
        else [(str(position), module) for position, module in enumerate(modules)]
    )
    for name, module in pairs:
        if not isinstance(module, Module):
            raise DtypeError(f"{who}: {name} must be a Module, got {type(module).__name__}")
        if not name or "." in name:
            raise ArgumentError(f"{who}: a name must be a word without dots, got {name!r}")
    return pairs


def _backward(chain: list[tuple[str, Module]], dy: Any, need_dx: bool) -> Any:
    for _, module in reversed(chain[1:]):
        dy = module.backward(dy)
    if not chain:
        return dy
    return chain[0][1].backward(dy) if need_dx else chain[0][1].backward(dy, need_dx=False)
