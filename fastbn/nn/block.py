"""Convolution, batch norm, residual and ReLU of a chain of modules, trained as one unit."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastbn._tape import call
from fastbn._views import empty_like
from fastbn.functional.conv_bn import ConvBnSaved, Deferred, Gradient, conv_bn_backward, conv_bn_forward
from fastbn.functional.conv_bn_lanes import has_few_channels
from fastbn.functional.conv_gram import GramSaved
from fastbn.nn.activation import ReLU, ReLU6
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d
from fastbn.nn.conv import Conv2d
from fastbn.nn.lanes_unit import LanesUnit, is_plain
from fastbn.nn.linear import Linear
from fastbn.nn.linear_unit import LinearUnit
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization


class Block:
    """One pass through a convolution, the batch norm after it and, if ``relu``, a ReLU; it leaves them as they are.

    ceiling: what the ReLU cuts above.
    """

    def __init__(self, conv: Conv2d, norm: BatchNorm2d) -> None:
        self.conv = conv
        self.norm = norm
        self.weight, self.bias = conv.parameter("weight"), conv.parameter("bias")
        self.relu = False
        self.ceiling = math.inf
        self.saved: ConvBnSaved | GramSaved | None = None

    def absorb(self, module: Module) -> bool:
        """Take on ``module`` as the next one, if it is a ReLU and the first."""
        if self.relu or not (absorbs_relu(module) or is_plain(module, ReLU6)):
            return False
        self.relu, self.ceiling = True, 6.0 if isinstance(module, ReLU6) else math.inf
        return True

    def forward(
        self, x: np.ndarray | Deferred, residual: np.ndarray | None = None, defer: bool = False
    ) -> np.ndarray | Deferred:
        """The output in training mode, channels-last; running statistics move."""
        conv, norm = self.conv, self.norm
        mean, var, momentum, training = norm.statistics()
        weight, bias = norm.affine_arrays()
        y, self.saved = conv_bn_forward(
            x,
            self.weight.data,
            None if self.bias is None else self.bias.data,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bn_weight=weight,
            bn_bias=bias,
            running_mean=mean,
            running_var=var,
            momentum=momentum,
            eps=norm.eps,
            training=training,
            residual=residual,
            relu=self.relu,
            ceiling=self.ceiling,
            defer=defer,
        )
        if training and mean is not None and y.shape[0]:
            call(norm.count_batch)
        return y

    def backward(
        self, dy: np.ndarray | Gradient, need_dx: bool = True, residual: np.ndarray | None = None
    ) -> tuple[np.ndarray | Gradient | None, np.ndarray | None]:
        """The gradients to x, ``residual`` added, and to the residual of ``forward``; adds to parameters' grad."""
        assert self.saved is not None
        saved, self.saved = self.saved, None
        dx, dweight, dbias, dgamma, dbeta, dresidual = conv_bn_backward(dy, saved, need_dx=need_dx, residual=residual)
        parameters = self.weight, self.bias, self.norm.parameter("weight"), self.norm.parameter("bias")
        for parameter, gradient in zip(parameters, (dweight, dbias, dgamma, dbeta), strict=True):
            if gradient is not None and isinstance(parameter, (Parameter, Parametrization)):
                parameter.accumulate(gradient)
        return dx, dresidual


Step = Block | LanesUnit | LinearUnit | Module


def as_blocks(modules: Iterable[Module]) -> list[Step]:
    """``modules``, those that make up a block replaced by it. A module with a forward hook stays by itself."""
    steps: list[Step] = []
    for module in modules:
        joined = _joined(steps[-1], module) if steps else None
        if joined is None:
            steps.append(module)
        else:
            steps[-1] = joined
    return steps


def _joined(last: Step, module: Module) -> Step | None:
    """Both as one step, None if they stay two."""
    if isinstance(last, Conv2d):
        return _unit(last, module) if isinstance(module, BatchNorm2d) and _match(last, module) else None
    if isinstance(last, Linear):
        return LinearUnit(last, module) if isinstance(module, BatchNorm1d) and _match_features(last, module) else None
    if isinstance(last, Block):
        return last if last.absorb(module) else None
    return last if isinstance(last, (LanesUnit, LinearUnit)) and last.absorb(module) else None


def _match(conv: Conv2d, norm: BatchNorm2d) -> bool:
    return is_plain(conv, Conv2d) and is_plain(norm, BatchNorm2d) and conv.out_channels == norm.num_features


def _match_features(linear: Linear, norm: BatchNorm1d) -> bool:
    return is_plain(linear, Linear) and is_plain(norm, BatchNorm1d) and linear.out_features == norm.num_features


def _unit(conv: Conv2d, norm: BatchNorm2d) -> Block | LanesUnit:
    block = Block(conv, norm)
    return LanesUnit(block) if has_few_channels(conv.weight.data, conv.groups) else block


def absorbs_relu(module: Module) -> bool:
    """Whether a block may do what ``module`` does at its end."""
    return is_plain(module, ReLU)


def forward(steps: list[Step], x: Any, then: Step | None = None) -> Any:
    """Each step's output is the next one's input, the last one's that of ``then``. Blocks defer to blocks."""
    for step, after in zip(steps, [*steps, then][1:], strict=True):
        if isinstance(step, (Block, LanesUnit)):
            x = step.forward(x, defer=isinstance(after, Block))
        else:
            x = step(x)
    return x


def backward(
    steps: list[Step], dy: np.ndarray | Gradient, need_dx: bool, residual: np.ndarray | None = None
) -> np.ndarray | None:
    """dx of ``forward``, and ``residual`` added."""
    gradient: Any = dy
    for step in reversed(steps[1:]):
        gradient = step.backward(gradient)[0] if isinstance(step, Block) else step.backward(gradient)
    first = steps[0]
    if isinstance(first, Block):
        return first.backward(gradient, need_dx, residual)[0]  # type: ignore[return-value]
    dx = first.backward(gradient) if need_dx else first.backward(gradient, need_dx=False)
    return dx if residual is None or dx is None else added(dx, residual)


def added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a + b``, like ``a``."""
    total = empty_like(a)
    call(np.add, a, b, total)
    return total
