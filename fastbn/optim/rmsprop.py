"""RMSprop (Hinton 2012, Neural Networks for Machine Learning, lecture 6e)."""

from typing import Any

import numpy as np

from fastbn._checks import check_number
from fastbn.kernels import optim as kernels
from fastbn.optim.optimizer import Optimizer, Parameters, shared_numbers


class RMSprop(Optimizer):
    """RMSprop as in PyTorch: ``s = alpha s + (1 - alpha) g^2``, ``p -= lr g / (sqrt(s) + eps)``.

    momentum: ``d = momentum d + g / (sqrt(s) + eps)``, ``p -= lr d``. centered: the mean gradient's square is taken
    from s (Graves 2013, arXiv 1308.0850, section 4.2); a difference that rounding makes negative is 0, where PyTorch
    has NaN. weight_decay: g + weight_decay p in place of g. maximize: uphill.
    """

    kernel = kernels.rmsprop

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "maximize": maximize,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay", "momentum"):
            check_number("RMSprop", name, options[name], 0.0)
        check_number("RMSprop", "alpha", options["alpha"], 0.0, np.nextafter(1.0, 0.0))

    def _moments(self, group: dict[str, Any]) -> list[str]:
        velocity = ["momentum_buffer"] if group["momentum"] else []
        return ["square_avg", *velocity, *(["grad_avg"] if group["centered"] else [])]

    def _numbers(self, group: dict[str, Any], count: int) -> list[float]:
        alpha, momentum = float(group["alpha"]), float(group["momentum"])
        return [*shared_numbers(group), alpha, 1.0 - alpha, float(group["eps"]), momentum, float(momentum != 0)]
