"""The base of every layer and model: named parameters, buffers and children as in PyTorch, with explicit backward."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from fastbn.errors import DtypeError, ModelError, ShapeError, StateError
from fastbn.nn.parameter import Parameter

_changes = 0  # to any module's options, parameters or children, see ``changes``

Hook = Callable[["Module", np.ndarray, np.ndarray], None]


def changes() -> int:
    """How often any module has been changed: its mode, options, children, hooks, or which its parameters are."""
    return _changes


def _changed() -> None:
    global _changes
    _changes += 1


class Module:
    """A layer or model.

    Subclasses write ``forward(x)`` and ``backward(dy)``. In training mode ``forward`` keeps what ``backward`` needs
    (``self._keep``), and ``backward`` takes it (``self._take``), adds to the parameters' gradients and returns dx. In
    eval mode ``forward`` keeps nothing, so one model may be called from many threads.
    """

    training: bool
    ignored_state: tuple[str, ...] = ()  # names that ``load_state_dict`` passes over

    def __init__(self) -> None:
        self.__dict__.update(training=True, _parameters={}, _buffers={}, _modules={}, _forward_hooks={}, _saved=None)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """The layer's output for ``x``."""
        raise TypeError(f"{type(self).__name__}: forward must be written by the subclass, got none")

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> Any:
        """The gradient to the last training-mode input, given the one to its output; adds to parameters' grad.

        need_dx=False allows None in its place, for the first layer of a model. Raises StateError without a forward.
        """
        raise TypeError(f"{type(self).__name__}: backward must be written by the subclass, got none")

    def config(self) -> dict[str, Any]:
        """Constructor options that rebuild this module, as JSON can hold them; children are kept apart."""
        return {}

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, "Module"]) -> Self:
        """A module with fresh values, from its ``config`` and its children.

        A layer by itself has none but ``parametrizations``; see ``fastbn.nn.parametrization``.
        """
        module = cls(**options)
        if "parametrizations" in children:
            for name, parametrization in children["parametrizations"].named_children():
                parametrization.put_on(module, name)
        return module

    def __call__(self, x: np.ndarray, *further: Any, **options: Any) -> np.ndarray:
        y = self.forward(x, *further, **options)
        for hook in tuple(self._forward_hooks.values()):
            hook(self, x, y)
        return y

    # What backward needs

    def _keep(self, saved: Any) -> None:
        if self.training:
            self.__dict__["_saved"] = saved

    def _take(self) -> Any:
        saved, self.__dict__["_saved"] = self._saved, None
        if saved is None:
            raise StateError(
                f"{type(self).__name__}.backward: a forward pass in training mode must come first, got none; "
                "call train() and forward(x)"
            )
        return saved

    # Attributes

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _changed()
        tables: tuple[dict[str, Any], ...] = (self._parameters, self._buffers, self._modules)
        table = next((t for t in tables if name in t), None)
        if isinstance(value, (Parameter, Module)):
            if name in self._parametrized():
                got = f"one with {self._parametrized()[name].who}; remove that first"
                raise StateError(f"{type(self).__name__}: {name} must be a plain parameter to be replaced, got {got}")
            own = self._parameters if isinstance(value, Parameter) else self._modules
            for other in tables:
                if other is not own:
                    other.pop(name, None)
            self.__dict__.pop(name, None)
            own[name] = value
        elif table is not None and value is not None and table is not self._buffers:
            kind = "Parameter" if table is self._parameters else "Module"
            raise DtypeError(f"{type(self).__name__}: {name} must be a {kind} or None, got {type(value).__name__}")
        elif name in self._modules:
            del self._modules[name]
        elif table is not None:
            table[name] = value
        else:
            self.__dict__[name] = value

    def parameter(self, name: str) -> Any:
        """The attribute ``name``, sooner found than elsewhere if it is a Parameter."""
        parameters = self._parameters
        return parameters[name] if name in parameters else getattr(self, name)

    def __getattr__(self, name: str) -> Any:
        for kind in ("_parameters", "_buffers", "_modules"):
            table = self.__dict__.get(kind, {})
            if name in table:
                return table[name]
        parametrized = self._parametrized()
        if name in parametrized:
            return parametrized[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _parametrized(self) -> dict[str, Any]:
        """What stands in the place of parameters, by name; see ``fastbn.nn.parametrization``."""
        holder = self.__dict__.get("_modules", {}).get("parametrizations")
        return {} if holder is None else holder._modules

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a parameter, or its absence."""
        _changed()
        self._parameters[name] = parameter

    def register_buffer(self, name: str, array: np.ndarray | None) -> None:
        """Add an array that is saved with the model but not trained, or its absence."""
        _changed()
        self._buffers[name] = array

    def add_module(self, name: str, module: "Module") -> None:
        """Add a child."""
        _changed()
        self._modules[name] = module

    def register_forward_hook(self, hook: Hook) -> Callable[[], None]:
        """Call ``hook(module, x, y)`` after each forward; returns the function that removes it."""
        key = object()
        self._forward_hooks[key] = hook
        _changed()

        def remove() -> None:
            self._forward_hooks.pop(key, None)
            _changed()

        return remove

    # Walks; a module or parameter that is shared appears once, under its first name

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """This module and all below it, with dotted names; this one's is ``prefix``."""
        yield from _walk(self, prefix, set())

    def modules(self) -> Iterator["Module"]:
        """This module and all below it."""
        found: dict[int, Module] = {}
        waiting = [self]
        while waiting:
            module = waiting.pop()
            if id(module) not in found:
                found[id(module)] = module
                if module._modules:
                    waiting.extend(reversed(module._modules.values()))
        return iter(found.values())

    def named_children(self) -> Iterator[tuple[str, "Module"]]:
        """The modules right below this one."""
        yield from self._modules.items()

    def children(self) -> Iterator["Module"]:
        """The modules right below this one."""
        yield from self._modules.values()

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters below, with dotted names."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield _join(prefix, name), parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters below."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """All buffers below, with dotted names."""
        for prefix, module in self.named_modules():
            for name, array in module._buffers.items():
                if array is not None:
                    yield _join(prefix, name), array

    def buffers(self) -> Iterator[np.ndarray]:
        """All buffers below."""
        return (array for _, array in self.named_buffers())

    # State

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer under PyTorch's name for it; the arrays themselves, not copies."""
        return dict(self._state())

    def _state(self) -> Iterator[tuple[str, np.ndarray]]:
        for prefix, module in _walk(self, "", None):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield _join(prefix, name), parameter.data
            for name, array in module._buffers.items():
                if array is not None:
                    yield _join(prefix, name), array

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy ``state`` into the arrays of this model, cast to their dtypes.

        strict: names must agree exactly. Raises ModelError for names, ShapeError for shapes; then nothing is changed.
        """
        for parameter in self.parameters():
            parameter.unlock()
        own = self.state_dict()
        spare = {_join(name, key) for name, module in _walk(self, "", None) for key in module.ignored_state}
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - spare)
        if strict and (missing or unexpected):
            raise ModelError(
                f"load_state_dict: state must have the names of the model, got {_names(missing)} missing and "
                f"{_names(unexpected)} unexpected"
            )
        given = {name: np.asarray(state[name]) for name in own.keys() & state.keys()}
        for name, array in given.items():
            if array.dtype.kind not in "biuf":
                raise DtypeError(f"load_state_dict: {name} must be an array of numbers, got {array.dtype}")
            if array.shape != own[name].shape:
                raise ShapeError(f"load_state_dict: {name} must have shape {own[name].shape}, got {array.shape}")
        for name, array in given.items():
            own[name][...] = array

    @property
    def dtype(self) -> np.dtype:
        """Of the first floating array below; float32 where there is none."""
        arrays = (array for array in self.state_dict().values() if array.dtype.kind == "f")
        return next((array.dtype for array in arrays), np.dtype(np.float32))

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below; what was frozen stays frozen, what was read-only can be written."""
        if mode:
            for parameter in self.parameters():
                parameter.unlock()
        for module in self.modules():
            if module.training is not mode:
                module.training = mode
                module.__dict__.pop("_replay", None)  # with the memory of a pass
            module._saved = None
        return self

    def eval(self) -> Self:
        """Set eval mode here and below."""
        return self.train(False)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for module in self.modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let optimisers change the parameters below, or not."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def float(self) -> Self:
        """Cast parameters and buffers to float32, in place of the old arrays."""
        return self._cast(np.dtype(np.float32))

    def double(self) -> Self:
        """Cast parameters and buffers to float64, in place of the old arrays."""
        return self._cast(np.dtype(np.float64))

    def _cast(self, dtype: np.dtype) -> Self:
        for parameter in self.parameters():
            parameter.data, parameter.grad = parameter.data.astype(dtype), None
        for module in self.modules():
            for name, array in module._buffers.items():
                if array is not None and array.dtype.kind == "f":
                    module._buffers[name] = array.astype(dtype)
        return self

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.config().items())
        if not self._modules:
            return f"{type(self).__name__}({options})"
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self._modules.items()]
        return f"{type(self).__name__}({options}\n  " + "\n  ".join(lines) + "\n)"


def _walk(module: Module, name: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
    """Depth first; with ``seen``, each module once."""
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    yield name, module
    for child_name, child in module._modules.items():
        yield from _walk(child, _join(name, child_name), seen)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _names(names: list[str]) -> str:
    if not names:
        return "none"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
