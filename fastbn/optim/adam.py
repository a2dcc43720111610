"""Adam (Kingma and Ba 2014, arXiv 1412.6980) and AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101)."""

import math
from typing import Any

import numpy as np

from fastbn._checks import check_number
from fastbn.errors import ArgumentError
from fastbn.kernels import optim as kernels
from fastbn.optim.optimizer import Optimizer, Parameters, shared_numbers


class Adam(Optimizer):
    """Adam as in PyTorch: ``p -= lr mhat / (sqrt(vhat) + eps)``, moments corrected for their start at 0.

    weight_decay: g + weight_decay p in place of g. amsgrad: the largest v so far in place of v (Reddi, Kale and Kumar
    2018). maximize: uphill.
    """

    kernel = kernels.adam
    decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**options, "amsgrad": amsgrad, "maximize": maximize})

    def _check(self, options: dict[str, Any]) -> None:
        who = type(self).__name__
        for name in ("lr", "eps", "weight_decay"):
            check_number(who, name, options[name], 0.0)
        if not isinstance(options["betas"], (tuple, list)) or len(options["betas"]) != 2:
            raise ArgumentError(f"{who}: betas must be a pair of numbers, got {options['betas']!r}")
        for index, beta in enumerate(options["betas"]):
            check_number(who, f"betas[{index}]", beta, 0.0, np.nextafter(1.0, 0.0))

    def _moments(self, group: dict[str, Any]) -> list[str]:
        return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]

    def _numbers(self, group: dict[str, Any], count: int) -> list[float]:
        rate, sign, decay = shared_numbers(group)
        beta1, beta2 = map(float, group["betas"])
        first, scale = rate / (1.0 - beta1**count), 1.0 / math.sqrt(1.0 - beta2**count)
        added, shrink = (0.0, 1.0 + rate * decay) if self.decoupled else (decay, 1.0)
        return [first, sign, added, shrink, beta1, 1.0 - beta1, beta2, 1.0 - beta2, scale, float(group["eps"])]


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
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
