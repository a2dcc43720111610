"""A convolution of few channels, its batch norm, activation and average pooling, trained as one unit."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._tape import call
from fastbn.functional.conv_bn import Deferred
from fastbn.functional.conv_bn_lanes import LanesSaved, unit_backward, unit_forward
from fastbn.nn.activation import ReLU, ReLU6, Sigmoid
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization
from fastbn.nn.pooling import AvgPool2d

if TYPE_CHECKING:
    from fastbn.nn.block import Block

# What ``unit_forward`` calls an activation, and above what a block's ReLU cuts, if it is one.
ACTIVATIONS: dict[type[Module], tuple[str, float | None]] = {
    ReLU: ("relu", math.inf),
    ReLU6: ("relu6", 6.0),
    Sigmoid: ("sigmoid", None),
}


def activation_of(module: Module) -> tuple[str, float | None] | None:
    """The entry of ACTIVATIONS for ``module``, if a unit may do what it does."""
    for kind, found in ACTIVATIONS.items():
        if is_plain(module, kind):
            return found
    return None


def is_plain(module: Module, kind: type[Module]) -> bool:
    """Whether ``module`` does what ``kind`` does and nobody looks on: a unit may do it instead."""
    return isinstance(module, kind) and type(module).forward is kind.forward and not module._forward_hooks


class LanesUnit:
    """One pass through a block and what it absorbs; it leaves the modules as they are.

    Images that ``conv_bn_lanes`` does not suit pass through the block and the others one after the other.
    """

    def __init__(self, block: "Block") -> None:
        self.block = block
        self.further: list[Module] = []  # what the block does not do
        self.activation: str | None = None
        self.window: tuple[int, int] | None = None
        self.saved: LanesSaved | None = None

    def absorb(self, module: Module) -> bool:
        """Take on ``module`` as the next one, if that is possible."""
        if self.window is not None:
            return False
        found = activation_of(module) if self.activation is None else None
        if found is not None:
            self.activation, ceiling = found
            if ceiling is None:
                self.further.append(module)
            else:
                self.block.relu, self.block.ceiling = True, ceiling
            return True
        if isinstance(module, AvgPool2d) and is_plain(module, AvgPool2d):
            self.window = _meeting_windows(module)
            self.further += [module] if self.window else []
        return self.window is not None

    def forward(self, x: np.ndarray, defer: bool = False) -> np.ndarray | Deferred:
        """The output in training mode; defer: as of a block that does not find its images few and small."""
        conv, norm = self.block.conv, self.block.norm
        mean, var, momentum, training = norm.statistics()
        found = unit_forward(
            x,
            conv.weight.data,
            None if conv.bias is None else conv.bias.data,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            *norm.affine_arrays(),
            (mean, var, momentum, norm.eps),
            training,
            self.activation,
            self.window or (1, 1),
        )
        if found is None:
            return self._forward_apart(x, defer)
        y, self.saved = found
        if training and mean is not None:
            call(norm.count_batch)
        return y

    def _forward_apart(self, x: np.ndarray, defer: bool) -> np.ndarray | Deferred:
        y: Any = self.block.forward(x, defer=defer and not self.further)
        for module in self.further:
            y = module(y)
        return y

    def backward(self, dy: Any, *, need_dx: bool = True) -> Any:
        """The gradient to x; adds to parameters' grad."""
        saved, self.saved = self.saved, None
        if saved is None:
            for module in reversed(self.further):
                dy = module.backward(dy)
            return self.block.backward(dy, need_dx)[0]
        dx, *gradients = unit_backward(dy, saved, need_dx)
        conv, norm = self.block.conv, self.block.norm
        for parameter, gradient in zip((conv.weight, conv.bias, norm.weight, norm.bias), gradients, strict=True):
            if isinstance(parameter, (Parameter, Parametrization)) and gradient is not None:
                parameter.accumulate(gradient)
        return dx


def _meeting_windows(pool: AvgPool2d) -> tuple[int, int] | None:
    """Height and width of the windows, if they meet and none reaches beyond the image."""
    kernel, stride, padding = (
        tuple(value) if isinstance(value, (tuple, list)) else (value, value)
        for value in (pool.kernel_size, pool.stride, pool.padding)
    )
    meets = kernel == stride and padding == (0, 0) and not pool.ceil_mode
    return (int(kernel[0]), int(kernel[1])) if meets and len(kernel) == 2 and min(kernel) > 0 else None
