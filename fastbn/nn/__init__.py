"""Layers with PyTorch's names, arguments, defaults and ``state_dict`` keys, and an explicit ``backward``."""

from fastbn.nn import init
from fastbn.nn.activation import ReLU, ReLU6, Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.nn.containers import Flatten, Identity, Residual, Sequential
from fastbn.nn.conv import Conv1d, Conv2d, Conv3d
from fastbn.nn.conv_bn import ConvBn1d, ConvBn2d, ConvBn3d, LinearBn1d
from fastbn.nn.dropout import Dropout
from fastbn.nn.fold_training import fold_, freeze_bn_stats, unfold, unfreeze_bn_stats
from fastbn.nn.fuse import ConvBnReLU2d
from fastbn.nn.groupnorm import GroupNorm
from fastbn.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastbn.nn.layernorm import LayerNorm, RMSNorm
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
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "GroupNorm",
    "Identity",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Linear",
    "LinearBn1d",
    "MaxPool2d",
    "Module",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Residual",
    "Sequential",
    "Sigmoid",
    "fold_",
    "freeze_bn_stats",
    "init",
    "unfold",
    "unfreeze_bn_stats",
]
