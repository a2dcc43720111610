"""The activation at the end of a unit, chosen by a number, and its gradient, taken from the output."""

import math

from fastbn.kernels._exp import logistic
from fastbn.kernels._jit import inlined
from fastbn.kernels._vector import at_least, at_most, splat
from fastbn.kernels._vector_choice import where_passed

NOTHING, RELU, RELU6, SIGMOID = range(4)
ACTIVATIONS = {None: NOTHING, "relu": RELU, "relu6": RELU6, "sigmoid": SIGMOID}  # by the names that units give them


@inlined
def ceiling_of(activation):
    """What a ReLU cuts above."""
    return 6.0 if activation == RELU6 else math.inf


@inlined
def floor_of(array, activation):
    """What a ReLU cuts below, as a vector of ``array``."""
    return splat(array, -math.inf if activation == NOTHING else 0.0)


@inlined
def activated(value, activation, low, high):
    """The output; low, high: ``floor_of`` and ``ceiling_of``."""
    if activation == SIGMOID:
        return logistic(value)
    return at_most(at_least(value, low), high)


@inlined
def passed(share, value, activation, one, high):
    """The gradient ``share`` through an activation whose output was ``value``; one: 1 in every lane."""
    if activation == SIGMOID:
        return share * value * (one - value)
    if activation == NOTHING:
        return share
    return where_passed(value, share, high)
