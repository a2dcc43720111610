"""What every optimiser shares: parameter groups, state by parameter, and both as plain arrays and numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastbn._checks import check_shape, check_writable
from fastbn._views import as_flat, dense_c
from fastbn.errors import ArgumentError, DtypeError, ModelError
from fastbn.nn.parameter import Parameter

Parameters = Iterable[Parameter] | Iterable[dict[str, Any]]


class Optimizer:
    """Changes parameters by their gradients.

    params: parameters, or groups ``{"params": [...], "lr": ...}`` whose options override ``defaults``.
    param_groups: the groups, with every option; a schedule changes their "lr". state: arrays by parameter.
    """

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        who = type(self).__name__
        entries: list[Any] = list(params)
        if not entries:
            raise ArgumentError(f"{who}: params must hold at least one parameter, got none")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        self.param_groups: list[dict[str, Any]] = [{**defaults, **group} for group in groups]
        self.state: dict[int, dict[str, Any]] = {}
        for group in self.param_groups:
            group["params"] = list(group["params"])
            for parameter in group["params"]:
                if not isinstance(parameter, Parameter):
                    raise DtypeError(f"{who}: params must be Parameters, got {type(parameter).__name__}")
            self._check(group)
        if len({id(p) for p in self._parameters()}) < len(self._parameters()):
            raise ArgumentError(f"{who}: params must name each parameter once, got one twice")

    def step(self) -> None:
        """Change every parameter that has a gradient, in place."""
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.requires_grad:
                    self._update(parameter, self.state.setdefault(index, {}), group)
                index += 1

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ArgumentError or DtypeError for options that make no sense."""

    def _update(self, parameter: Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__}: _update must be written by the subclass, got none")

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
        return {"state": self.state, "param_groups": groups}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; arrays are copied. Raises ModelError if the parameters differ."""
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
            for name, value in entries.items():
                if isinstance(value, np.ndarray) and value.shape != parameters[int(index)].shape:
                    raise ModelError(
                        f"load_state_dict: {name} of parameter {index} must have shape "
                        f"{parameters[int(index)].shape}, got {value.shape}"
                    )
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            if group.keys() != saved.keys():
                raise ModelError(
                    f"load_state_dict: state must be of {type(self).__name__} with {', '.join(sorted(group))}, "
                    f"got {', '.join(sorted(saved))}"
                )
            self._check(saved)
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        self.state = {
            int(index): {name: np.array(v) if isinstance(v, np.ndarray) else v for name, v in entries.items()}
            for index, entries in state["state"].items()
        }

    def _parameters(self) -> list[Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def flat_operands(parameter: Parameter) -> tuple[np.ndarray, np.ndarray]:
    """A parameter's values and gradient as kernels take them. Raises ShapeError, ArgumentError."""
    grad = parameter.grad
    assert grad is not None
    check_shape("step", "grad", grad, parameter.shape, "as its parameter")
    check_writable("step", "data of a parameter", parameter.data)
    parameter.data = dense_c(parameter.data)
    return as_flat(parameter.data), as_flat(dense_c(np.asarray(grad, parameter.dtype)))
