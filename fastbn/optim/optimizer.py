"""What every optimiser shares: parameter groups, state by parameter, and both as plain arrays and numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastbn._threads import Kernel
from fastbn.errors import ArgumentError, DtypeError, ModelError
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.optim.groups import param_groups
from fastbn.optim.tensors import Batch, State

Parameters = Module | Iterable[Parameter] | Iterable[dict[str, Any]]

# Options that a saved state may lack, and PyTorch's that say how it computes or belong to its schedules.
LATER = {"maximize": False, "amsgrad": False}
IGNORED = {"foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay", *LATER}
IGNORED |= {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}


class Optimizer:
    """Changes parameters by their gradients.

    params: parameters, or groups ``{"params": [...], "lr": ...}`` whose options override ``defaults``; or a model, of
    which then only the weights decay, not norms and biases, see ``param_groups``.
    param_groups: the groups, with every option; a schedule changes their "lr". state: arrays by parameter.
    """

    kernel: Kernel

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        entries: list[Any] = list(param_groups(params)) if isinstance(params, Module) else list(params)
        if not entries:
            raise ArgumentError(f"{type(self).__name__}: params must hold at least one parameter, got none")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: dict[int, State] = {}
        self._batches: dict[tuple[int, np.dtype], Batch] = {}
        for group in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_param_group(group)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Take on further parameters: ``{"params": [...], "lr": ...}``, with the defaults for what is not given.

        Raises ArgumentError, DtypeError.
        """
        who = type(self).__name__
        group = {**self.defaults, **group, "params": list(group["params"])}
        for parameter in group["params"]:
            if not isinstance(parameter, Parameter):
                raise DtypeError(f"{who}: params must be Parameters, got {type(parameter).__name__}")
        self._check(group)
        known = [id(parameter) for parameter in self._parameters() + group["params"]]
        if len(set(known)) < len(known):
            raise ArgumentError(f"{who}: params must name each parameter once, got one twice")
        self.param_groups.append(group)

    def step(self) -> None:
        """Change every parameter that has a gradient, in place; those of a group and dtype in one pass.

        Raises ShapeError for a gradient of another shape, DtypeError and ArgumentError for data that is neither float32
        nor float64, that is read-only, or that two parameters share.
        """
        batches: dict[tuple[int, np.dtype], Batch] = {}
        first = 0
        for number, group in enumerate(self.param_groups):
            ready = [p for p in group["params"] if p.grad is not None and p.requires_grad]
            dtypes = {parameter.data.dtype for parameter in ready}
            for dtype in dtypes:
                parameters = ready if len(dtypes) == 1 else [p for p in ready if p.data.dtype == dtype]
                batches[number, dtype] = self._batch((number, dtype), parameters, first)
                self._update(group, batches[number, dtype])
            first += len(group["params"])
        self._batches = batches

    def _batch(self, key: tuple[int, np.dtype], parameters: list[Parameter], first: int) -> Batch:
        """That of the last step if it is still right; first: the index of the group's first parameter."""
        group = self.param_groups[key[0]]
        known, names = self._batches.get(key), self._moments(group)
        if known is not None and known.is_of(parameters, self.state, names):
            return known
        index = {id(parameter): number for number, parameter in enumerate(group["params"], first)}
        return Batch(parameters, [index[id(parameter)] for parameter in parameters], self.state, names)

    def _update(self, group: dict[str, Any], batch: Batch) -> None:
        gradients = batch.gradients()
        counts = self._counts(batch.states)
        rows = {count: row for row, count in enumerate(dict.fromkeys(counts))}
        numbers = np.array([self._numbers(group, count) for count in rows], batch.dtype)
        places = np.array([rows[count] for count in counts], np.int64)
        batch.launch(self.kernel, gradients, numbers, places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": {}}  # addresses are of no use to a copy

    def _moments(self, group: dict[str, Any]) -> list[str]:
        """Names of the state's arrays, in the order in which the kernel takes them."""
        return []

    def _counts(self, states: list[State]) -> list[int]:
        """Count this step in the states, before their arrays are there; equal counts share their numbers."""
        counts = [state.get("step", 0) + 1 for state in states]
        for state, count in zip(states, counts, strict=True):
            state["step"] = count
        return counts

    def _numbers(self, group: dict[str, Any], count: int) -> list[float]:
        """The kernel's numbers at step ``count``."""
        raise TypeError(f"{type(self).__name__}: _numbers must be written by the subclass, got none")

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ArgumentError or DtypeError for options that make no sense."""

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {position: {name: array or number}}, "param_groups": [options]}``, as PyTorch's."""
        groups, first = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(first, first + count))})
            first += count
        return {"state": {index: state for index, state in self.state.items() if state}, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave, or PyTorch's with arrays for tensors; arrays are copied.

        Raises ModelError if the parameters or the options differ; then nothing is changed.
        """
        self._check_arrays(state)
        groups = self._checked_groups(state["param_groups"])
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        parameters = self._parameters()
        self.state = {
            int(index): {
                name: _copied(name, value, parameters[int(index)])
                for name, value in entries.items()
                if value is not None
            }
            for index, entries in state["state"].items()
        }

    def _check_arrays(self, state: Mapping[str, Any]) -> None:
        parameters = self._parameters()
        sizes = [len(group["params"]) for group in self.param_groups]
        given = [len(group["params"]) for group in state["param_groups"]]
        if sizes != given:
            raise ModelError(f"load_state_dict: groups must have {sizes} parameters, got {given}")
        for index, entries in state["state"].items():
            if not 0 <= int(index) < len(parameters):
                raise ModelError(
                    f"load_state_dict: state must be of parameters 0 to {len(parameters) - 1}, got one of {index}"
                )
            shape = parameters[int(index)].shape
            for name, value in entries.items():
                if isinstance(value, np.ndarray) and name != "step" and value.shape != shape:
                    raise ModelError(
                        f"load_state_dict: {name} of parameter {index} must have shape {shape}, got {value.shape}"
                    )

    def _checked_groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Saved groups with this optimiser's options."""
        found = []
        for group, given in zip(self.param_groups, groups, strict=True):
            saved = {name: v for name, v in {**LATER, **given}.items() if name in group or name not in IGNORED}
            if group.keys() != saved.keys():
                raise ModelError(
                    f"load_state_dict: state must be of {type(self).__name__} with {', '.join(sorted(group))}, "
                    f"got {', '.join(sorted(saved))}"
                )
            self._check(saved)
            found.append(saved)
        return found

    def _parameters(self) -> list[Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _copied(name: str, value: Any, parameter: Parameter) -> Any:
    if name == "step":
        return int(value)
    return np.array(value, parameter.dtype, order="C") if isinstance(value, np.ndarray) else value


def shared_numbers(group: dict[str, Any]) -> list[float]:
    """Rate, sign of the gradient and weight decay, the first numbers of every kernel."""
    return [-float(group["lr"]), -1.0 if group["maximize"] else 1.0, float(group["weight_decay"])]
