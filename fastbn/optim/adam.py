"""Adam (Kingma and Ba 2014, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101)."""

from typing import Any

import numpy as np

from fastbn._checks import check_number
from fastbn._threads import launch
from fastbn._views import as_flat
from fastbn.errors import ArgumentError
from fastbn.kernels import optim as kernels
from fastbn.nn.parameter import Parameter
from fastbn.optim.optimizer import Optimizer, Parameters, flat_operands


class Adam(Optimizer):
    """Adam as in PyTorch: ``p -= lr mhat / (sqrt(vhat) + eps)``, moments corrected for their start at 0.

    weight_decay: g + weight_decay p in place of g.
    """

    decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, options: dict[str, Any]) -> None:
        who = type(self).__name__
        for name in ("lr", "eps", "weight_decay"):
            check_number(who, name, options[name], 0.0)
        if not isinstance(options["betas"], (tuple, list)) or len(options["betas"]) != 2:
            raise ArgumentError(f"{who}: betas must be a pair of numbers, got {options['betas']!r}")
        for index, beta in enumerate(options["betas"]):
            check_number(who, f"betas[{index}]", beta, 0.0, np.nextafter(1.0, 0.0))

    def _update(self, parameter: Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
        data, grad = flat_operands(parameter)
        if not state:
            state["step"] = 0
            state["exp_avg"] = np.zeros(parameter.shape, data.dtype)
            state["exp_avg_sq"] = np.zeros(parameter.shape, data.dtype)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        decay = float(group["weight_decay"])
        launch(
            kernels.adam,
            data,
            grad,
            as_flat(state["exp_avg"]),
            as_flat(state["exp_avg_sq"]),
            float(group["lr"]),
            float(beta1),
            float(beta2),
            1.0 - beta1 ** state["step"],
            1.0 - beta2 ** state["step"],
            float(group["eps"]),
            0.0 if self.decoupled else decay,
            decay if self.decoupled else 0.0,
            work=data.size,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - lr weight_decay`` before the step."""

    decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
