"""Layers with PyTorch's names, arguments, defaults and ``state_dict`` keys, and an explicit ``backward``."""

from fastbn.nn import init, utils
from fastbn.nn.activation import ReLU, ReLU6, Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.nn.batchnorm_frozen import FrozenBatchNorm2d
from fastbn.nn.batchnorm_ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from fastbn.nn.batchnorm_masked import MaskedBatchNorm1d, MaskedBatchNorm2d
from fastbn.nn.batchrenorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from fastbn.nn.containers import Flatten, Identity, Residual, Sequential
from fastbn.nn.conv import Conv1d, Conv2d, Conv3d
from fastbn.nn.conv_bn import ConvBn1d, ConvBn2d, ConvBn3d, LinearBn1d
from fastbn.nn.dropout import Dropout
from fastbn.nn.fixup import FixupResidual
from fastbn.nn.fold_training import fold_, freeze_bn_stats, unfold, unfreeze_bn_stats
from fastbn.nn.fuse import ConvBnReLU2d
from fastbn.nn.groupnorm import GroupNorm
from fastbn.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from fastbn.nn.layernorm import LayerNorm, RMSNorm
from fastbn.nn.linear import Linear
from fastbn.nn.loss import CrossEntropyLoss
from fastbn.nn.model_init import fixup_, init_weights_, zero_gamma_
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrizations
from fastbn.nn.pooling import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d
from fastbn.nn.scalar_affine import ScalarAffine
from fastbn.nn.spectral_norm import SpectralNorm
from fastbn.nn.weight_norm import WeightNorm

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU2d",
    "CrossEntropyLoss",
    "Dropout",
    "FixupResidual",
    "Flatten",
    "FrozenBatchNorm2d",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GroupNorm",
    "Identity",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Linear",
    "LinearBn1d",
    "MaskedBatchNorm1d",
    "MaskedBatchNorm2d",
    "MaxPool2d",
    "Module",
    "Parameter",
    "Parametrizations",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "Residual",
    "ScalarAffine",
    "Sequential",
    "Sigmoid",
    "SpectralNorm",
    "WeightNorm",
    "fixup_",
    "fold_",
    "freeze_bn_stats",
    "init",
    "init_weights_",
    "unfold",
    "unfreeze_bn_stats",
    "utils",
    "zero_gamma_",
]
