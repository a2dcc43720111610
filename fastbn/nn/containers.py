"""Modules made of modules, and the reshape between convolutions and linear layers."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from fastbn._checks import check_shape
from fastbn._tape import unrepeatable
from fastbn.errors import ArgumentError, DtypeError
from fastbn.functional.conv_plans import waiting
from fastbn.nn import block
from fastbn.nn.block import Block, Step, absorbs_relu, added, as_blocks
from fastbn.nn.infer import CHAINS, NOTHING, cut_of, infer, run
from fastbn.nn.module import Module
from fastbn.nn.replay import REPEATABLE, Recording, Replay


class Sequential(Module):
    """Modules one after the other: ``Sequential(a, b)`` named "0", "1", or ``Sequential({"conv": a, "bn": b})``.

    fused: train convolution, batch norm and ReLU as one unit; see ``fastbn.fuse``. replay: repeat recorded passes.
    """

    fused = False
    replay = False
    _replay: Replay | None = None

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        for name, module in named("Sequential", modules):
            self.add_module(name, module)

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, Module]) -> Self:
        """The container of ``children``."""
        container = cls(children)
        container.fused = bool(options.get("fused", False))
        return container

    def config(self) -> dict[str, Any]:
        """Whether it is fused, if it is."""
        return {"fused": True} if self.fused else {}

    def chain(self) -> list[tuple[str, Module]]:
        """The modules in the order of the forward pass, by name."""
        return list(self._modules.items())

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Each module's output is the next one's input."""
        if self.fused and self.training:
            recording = self._recording_for(x) if self.replay else None
            if recording is not None:
                self._keep(recording)
                return recording.forward(x)
            steps = self.parts()
            self._keep(steps)
            return block.forward(steps, x)
        if self.fused:
            return infer(leaves(self), x)[0]
        for _, module in self.chain():
            x = module(x)
        return x

    def parts(self) -> list[Step]:
        """What trains as one step, if fused."""
        return as_blocks(leaves(self))

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx, the modules in reverse order."""
        if self._saved:
            saved = self._take()
            return saved.backward(dy, need_dx) if isinstance(saved, Recording) else block.backward(saved, dy, need_dx)
        return _backward(self.chain(), dy, need_dx)

    def _recording_for(self, x: np.ndarray) -> Recording | None:
        if self._replay is None:
            self._replay = Replay()
        return self._replay.recording_for(x, self.parts)

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
    fused = False

    def __init__(
        self,
        *body: Module | Mapping[str, Module],
        downsample: Module | None = None,
        activation: Module | None = None,
    ) -> None:
        super().__init__()
        for name, module in named("Residual", body):
            if name in self.OWN:
                raise ArgumentError(f"Residual: the body's names must not be {' or '.join(self.OWN)}, got {name}")
            self.add_module(name, module)
        if downsample is not None:
            self.downsample = downsample
        if activation is not None:
            self.activation = activation

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, Module]) -> Self:
        """The container of ``children``."""
        own = {name: children[name] for name in cls.OWN if name in children}
        container = cls({name: child for name, child in children.items() if name not in own}, **own)
        container.fused = bool(options.get("fused", False))
        return container

    def config(self) -> dict[str, Any]:
        """Whether it is fused, if it is."""
        return {"fused": True} if self.fused else {}

    def chain(self) -> list[tuple[str, Module]]:
        """The body's modules in the order of the forward pass, by name."""
        return [(name, module) for name, module in self._modules.items() if name not in self.OWN]

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like body(x)."""
        if self.fused:
            return self._forward_fused(x) if self.training else self._infer_fused(x)
        y = x
        for _, module in self.chain():
            y = module(y)
        shortcut = self.downsample(x) if "downsample" in self._modules else x
        check_shape("Residual", "the shortcut", shortcut, y.shape, "as the body's output")
        y = y + shortcut
        return self.activation(y) if "activation" in self._modules else y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx, the sum of both paths."""
        if self._saved:
            return self._backward_fused(dy, need_dx)
        if "activation" in self._modules:
            dy = self.activation.backward(dy)
        dx = _backward(self.chain(), dy, need_dx)
        if "downsample" in self._modules:
            dy = self.downsample.backward(dy, **({} if need_dx else {"need_dx": False}))
        return None if dx is None or dy is None else dx + dy

    def parts(self) -> list[Step]:
        """What trains as one step, if fused, the shortcut and the activation among them."""
        return [*as_blocks(leaves(self)), *(self._modules[name] for name in self.OWN if name in self._modules)]

    def _forward_fused(self, x: np.ndarray) -> np.ndarray:
        """The last block adds the shortcut, and is cut by the ReLU if that is the activation."""
        steps = as_blocks(leaves(self))
        activation = self._modules.get("activation")
        joined = bool(steps) and isinstance(steps[-1], Block) and not steps[-1].relu
        body, last = (steps[:-1], steps[-1]) if joined else (steps, None)
        y = block.forward(body, x, last)
        shortcut = self.downsample(x) if "downsample" in self._modules else x
        if last is None:
            check_shape("Residual", "the shortcut", shortcut, y.shape, "as the body's output")
        if isinstance(last, Block):
            if activation is not None and absorbs_relu(activation):
                last.relu, activation = True, None
            y = last.forward(y, shortcut)
        else:
            y = added(y, shortcut)
        self._keep((body, last, activation))
        return y if activation is None else activation(y)

    def _infer_fused(self, x: np.ndarray) -> np.ndarray:
        """The last convolution, if nothing comes after it, adds the shortcut and does the ReLU."""
        shortcut = run(self.downsample, x) if "downsample" in self._modules else x
        activation = self._modules.get("activation")
        cut = None if activation is None else cut_of(activation)
        y, joined = infer(leaves(self), x, shortcut, cut or NOTHING)
        if not joined:
            check_shape("Residual", "the shortcut", shortcut, y.shape, "as the body's output")
            with waiting(False):
                y = y + shortcut
        return y if activation is None or (joined and cut) else run(activation, y)

    def _backward_fused(self, dy: np.ndarray, need_dx: bool) -> np.ndarray | None:
        body, last, activation = self._take()
        inner = shortcut = dy if activation is None else activation.backward(dy)
        if last is not None:
            inner, shortcut = last.backward(inner, need_dx or bool(body))
        if "downsample" in self._modules:
            shortcut = self.downsample.backward(shortcut, **({} if need_dx else {"need_dx": False}))
        if body:
            return block.backward(body, inner, need_dx, shortcut)
        return added(inner, shortcut) if need_dx else None


CHAINS += [Sequential.forward, Residual.forward]


class Flatten(Module):
    """(N, *) to (N, features), in logical (C-contiguous) order."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, features); a view where memory allows."""
        self._keep(x.shape)
        if not x.flags.c_contiguous:
            unrepeatable()
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


REPEATABLE += [Flatten.forward, Identity.forward]


def leaves(container: Sequential | Residual) -> list[Module]:
    """The modules of a chain in their order, those of a Sequential in its place."""
    found = list[Module]()
    for _, module in container.chain():
        if isinstance(module, Sequential) and type(module).forward is Sequential.forward and not module._forward_hooks:
            found += leaves(module)
        else:
            found.append(module)
    return found


def named(who: str, modules: tuple[Any, ...]) -> list[tuple[str, Module]]:
    """The arguments of a container as pairs of names and modules. Raises DtypeError, ArgumentError."""
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
