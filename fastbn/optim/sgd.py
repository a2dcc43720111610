"""Stochastic gradient descent."""

from typing import Any

import numpy as np

from fastbn._checks import check_number
from fastbn._threads import launch
from fastbn._views import as_flat
from fastbn.errors import ArgumentError
from fastbn.kernels import optim as kernels
from fastbn.nn.parameter import Parameter
from fastbn.optim.optimizer import Optimizer, Parameters, flat_operands


class SGD(Optimizer):
    """SGD with momentum as in PyTorch: ``v = momentum v + (1 - dampening) g``, ``p -= lr v``; v = g at first.

    weight_decay: g + weight_decay p in place of g. nesterov: ``p -= lr (g + momentum v)`` (Sutskever et al. 2013).
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            check_number("SGD", name, options[name], 0.0)
        check_number("SGD", "dampening", options["dampening"], -np.inf)
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ArgumentError(
                f"SGD: nesterov must come with momentum and no dampening, got momentum {options['momentum']}, "
                f"dampening {options['dampening']}"
            )

    def _update(self, parameter: Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        data, grad = flat_operands(parameter)
        first = "momentum_buffer" not in state
        velocity = np.empty(0, data.dtype)
        if group["momentum"]:
            if first:
                state["momentum_buffer"] = np.empty(parameter.shape, data.dtype)
            velocity = as_flat(state["momentum_buffer"])
        launch(
            kernels.sgd,
            data,
            grad,
            velocity,
            first,
            float(group["lr"]),
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            bool(group["nesterov"]),
            work=data.size,
        )
