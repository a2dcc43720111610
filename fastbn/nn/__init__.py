"""Layers with PyTorch's names, arguments, defaults and ``state_dict`` keys, and an explicit ``backward``."""

from fastbn.nn import init
from fastbn.nn.activation import ReLU, Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.nn.containers import Flatten, Identity, Residual, Sequential
from fastbn.nn.conv import Conv1d, Conv2d, Conv3d
from fastbn.nn.linear import Linear
from fastbn.nn.loss import CrossEntropyLoss
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "CrossEntropyLoss",
    "Flatten",
    "Identity",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "init",
]
