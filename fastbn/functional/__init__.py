"""The doors: check the arguments, view the arrays as kernels read them, allocate the output, call one kernel."""

from fastbn.functional.activation import relu, relu6, relu6_backward, relu_backward, sigmoid, sigmoid_backward
from fastbn.functional.conv import conv2d, conv2d_backward
from fastbn.functional.conv1d import conv1d, conv1d_backward
from fastbn.functional.conv3d import conv3d, conv3d_backward
from fastbn.functional.fold import fold_conv_bn_weights, fold_linear_bn_weights
from fastbn.functional.group_norm import GroupNormSaved, group_norm, group_norm_backward, group_norm_forward
from fastbn.functional.instance_norm import instance_norm, instance_norm_backward, instance_norm_forward
from fastbn.functional.layer_norm import (
    LayerNormSaved,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)
from fastbn.functional.linear import linear, linear_backward
from fastbn.functional.loss import cross_entropy, cross_entropy_backward, cross_entropy_forward
from fastbn.functional.norm import BatchNormSaved, batch_norm, batch_norm_backward, batch_norm_forward
from fastbn.functional.norm_ghost import ghost_batch_norm, ghost_batch_norm_backward, ghost_batch_norm_forward
from fastbn.functional.norm_masked import masked_batch_norm, masked_batch_norm_backward, masked_batch_norm_forward
from fastbn.functional.norm_renorm import batch_renorm, batch_renorm_forward
from fastbn.functional.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_forward,
)
from fastbn.functional.scalar_affine import scalar_affine, scalar_affine_backward, scalar_affine_forward
from fastbn.functional.spectral_norm import SpectralNormSaved, spectral_norm, spectral_norm_backward
from fastbn.functional.weight_norm import norm_except_dim, weight_norm, weight_norm_backward

__all__ = [
    "BatchNormSaved",
    "GroupNormSaved",
    "LayerNormSaved",
    "SpectralNormSaved",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_renorm",
    "batch_renorm_forward",
    "conv1d",
    "conv1d_backward",
    "conv2d",
    "conv2d_backward",
    "conv3d",
    "conv3d_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "fold_conv_bn_weights",
    "fold_linear_bn_weights",
    "ghost_batch_norm",
    "ghost_batch_norm_backward",
    "ghost_batch_norm_forward",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear",
    "linear_backward",
    "masked_batch_norm",
    "masked_batch_norm_backward",
    "masked_batch_norm_forward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "norm_except_dim",
    "relu",
    "relu6",
    "relu6_backward",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "scalar_affine",
    "scalar_affine_backward",
    "scalar_affine_forward",
    "sigmoid",
    "sigmoid_backward",
    "spectral_norm",
    "spectral_norm_backward",
    "weight_norm",
    "weight_norm_backward",
]
