"""A linear layer, the batch norm after it and the activation that comes next, trained as one unit."""

from typing import Any

import numpy as np

from fastbn._tape import call
from fastbn.functional.linear_bn import LinearSaved, suits, unit_backward, unit_forward
from fastbn.nn.batchnorm import BatchNorm1d
from fastbn.nn.lanes_unit import activation_of
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization


class LinearUnit:
    """One pass through the layer and what it absorbs; it leaves the modules as they are.

    Inputs that ``linear_bn`` does not suit pass through the modules one after the other.
    """

    def __init__(self, linear: Linear, norm: BatchNorm1d) -> None:
        self.linear = linear
        self.norm = norm
        self.modules: list[Module] = [linear, norm]
        self.activation: str | None = None
        self.saved: LinearSaved | None = None

    def absorb(self, module: Module) -> bool:
        """Take on ``module`` as the next one, if that is possible."""
        found = activation_of(module) if self.activation is None else None
        if found is None:
            return False
        self.activation = found[0]
        self.modules.append(module)
        return True

    def __call__(self, x: np.ndarray) -> np.ndarray:
        linear, norm = self.linear, self.norm
        weight = linear.weight.data
        if not suits(x, weight):
            for module in self.modules:
                x = module(x)
            return x
        mean, var, momentum, training = norm.statistics()
        bias, statistics = None if linear.bias is None else linear.bias.data, (mean, var, momentum, norm.eps)
        y, self.saved = unit_forward(x, weight, bias, *norm.affine_arrays(), statistics, training, self.activation)
        if training and mean is not None:
            call(norm.count_batch)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> Any:
        """The gradient to x; adds to parameters' grad."""
        saved, self.saved = self.saved, None
        if saved is None:
            for module in reversed(self.modules[1:]):
                dy = module.backward(dy)
            return self.linear.backward(dy, need_dx=need_dx)
        dx, *gradients = unit_backward(dy, saved, need_dx)
        linear, norm = self.linear, self.norm
        for parameter, gradient in zip((linear.weight, linear.bias, norm.weight, norm.bias), gradients, strict=True):
            if isinstance(parameter, (Parameter, Parametrization)) and gradient is not None:
                parameter.accumulate(gradient)
        return dx
