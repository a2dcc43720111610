"""Stochastic gradient descent."""

from typing import Any

import numpy as np

from fastbn._checks import check_number
from fastbn.errors import ArgumentError
from fastbn.kernels import optim as kernels
from fastbn.optim.optimizer import Optimizer, Parameters, shared_numbers
from fastbn.optim.tensors import State


class SGD(Optimizer):
    """SGD with momentum as in PyTorch: ``v = momentum v + (1 - dampening) g``, ``p -= lr v``; v = g at first.

    weight_decay: g + weight_decay p in place of g. nesterov: ``p -= lr (g + momentum v)`` (Sutskever et al. 2013).
    maximize: uphill.
    """

    kernel = kernels.sgd

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
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

    def _moments(self, group: dict[str, Any]) -> list[str]:
        return ["momentum_buffer"] if group["momentum"] else []

    def _counts(self, states: list[State]) -> list[int]:
        """0 at first, then 1: PyTorch's state of SGD has no steps."""
        return [int("momentum_buffer" in state) for state in states]

    def _numbers(self, group: dict[str, Any], count: int) -> list[float]:
        momentum = float(group["momentum"])
        keep, share = (momentum, 1.0 - float(group["dampening"])) if count else (0.0, 1.0)
        return [*shared_numbers(group), keep, share, momentum if group["nesterov"] else 0.0]
