"""Chains of modules in eval mode: every convolution with the sum and the ReLU after it in one pass."""

import math
from typing import Any

import numpy as np

from fastbn.functional.conv_plans import convolve_planned, multiplies, multiply_planned, waiting
from fastbn.nn.activation import ReLU, ReLU6
from fastbn.nn.conv import Conv2d
from fastbn.nn.lanes_unit import is_plain
from fastbn.nn.linear import Linear
from fastbn.nn.module import Module

Cut = tuple[bool, float]  # whether a ReLU comes, and its ceiling
NOTHING: Cut = (False, math.inf)
CUTS: dict[Any, Cut] = {ReLU.forward: (True, math.inf), ReLU6.forward: (True, 6.0)}

# The forward passes that are ``infer`` in eval mode and look into no array; see ``containers``.
CHAINS: list[Any] = []


def infer(
    modules: list[Module], x: np.ndarray, residual: np.ndarray | None = None, cut: Cut = NOTHING
) -> tuple[np.ndarray, bool]:
    """The output of ``modules``; nothing is kept.

    residual: added by the last convolution, and the sum cut, if nothing comes after it; also returned is whether it
    was. Inside another ``infer`` the launches may still wait.
    """
    with waiting():
        return _infer(modules, x, residual, cut)


def _infer(modules: list[Module], x: np.ndarray, residual: np.ndarray | None, cut: Cut) -> tuple[np.ndarray, bool]:
    joined = False
    position, end = 0, len(modules)
    while position < end:
        module = modules[position]
        position += 1
        if not is_plain(module, Conv2d):
            x = run(module, x)
            continue
        own = cut_of(modules[position]) if position < end else None
        position += own is not None
        joined = residual is not None and own is None and position == end
        x = convolve_planned(
            x,
            module.weight.data,
            None if module.bias is None else module.bias.data,
            module.stride,
            module.padding,
            module.dilation,
            module.groups,
            residual if joined else None,
            *(cut if joined else own or NOTHING),
        )
    return x, joined


def run(module: Module, x: np.ndarray) -> np.ndarray:
    """The output of a module that is no convolution; it may wait as that of ``infer``."""
    if type(module).forward in CHAINS and module.fused and not (module.training or module._forward_hooks):
        return module.forward(x)
    if is_plain(module, Linear) and multiplies(x, module.weight.data):
        return multiply_planned(x, module.weight.data, None if module.bias is None else module.bias.data)
    with waiting(False):
        return module(x)


def cut_of(module: Module) -> Cut | None:
    """Of a ReLU that a convolution may do instead; None for another module."""
    return None if module._forward_hooks else CUTS.get(type(module).forward)
