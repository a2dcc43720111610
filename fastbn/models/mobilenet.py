"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) with torchvision's names, so that its weights load."""

import math

from fastbn._checks import check_int, check_number
from fastbn.errors import ArgumentError
from fastbn.nn import init
from fastbn.nn.activation import ReLU6
from fastbn.nn.batchnorm import BatchNorm2d
from fastbn.nn.containers import Flatten, Residual, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.dropout import Dropout
from fastbn.nn.linear import Linear
from fastbn.nn.pooling import AdaptiveAvgPool2d

# Table 2 of the paper: expansion, channels, blocks, stride of the first.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280


def mobilenet_v2(
    num_classes: int = 1000, in_channels: int = 3, *, width_mult: float = 1.0, dropout: float = 0.2
) -> Sequential:
    """MobileNetV2 for (N, in_channels, H, W): 3,504,872 parameters with the defaults.

    width_mult: of the channels of every layer, rounded to multiples of 8; the last convolution only grows. dropout:
    probability before the classifier. Raises ArgumentError, DtypeError.
    """
    who = "mobilenet_v2"
    check_int(who, "num_classes", num_classes, 1)
    check_int(who, "in_channels", in_channels, 1)
    check_number(who, "width_mult", width_mult, 0.0)
    if not 0.0 < width_mult < math.inf:
        raise ArgumentError(f"{who}: width_mult must be positive and finite, got {width_mult}")
    channels = _rounded(FIRST * width_mult)
    features: list[Sequential | Residual] = [_conv_norm_relu6(in_channels, channels, 3, stride=2)]
    for expansion, width, depth, first_stride in STAGES:
        width = _rounded(width * width_mult)
        for stride in (first_stride, *(1,) * (depth - 1)):
            features.append(_inverted_residual(channels, width, expansion, stride))
            channels = width
    last = _rounded(LAST * max(1.0, width_mult))
    features.append(_conv_norm_relu6(channels, last, 1))
    fc = Linear(last, num_classes)
    init.normal_(fc.weight.data, std=0.01)
    fc.bias.data[...] = 0
    return Sequential(
        {
            "features": Sequential(*features),
            "avgpool": AdaptiveAvgPool2d(1),
            "flatten": Flatten(),
            "classifier": Sequential(Dropout(dropout), fc),
        }
    )


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8 and more than 0.9 of ``channels``: torchvision's ``_make_divisible``."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> Conv2d:
    conv = Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    init.kaiming_normal_(conv.weight.data, mode="fan_out")
    return conv


def _conv_norm_relu6(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> Sequential:
    return Sequential(_conv(channels_in, channels_out, kernel, stride, groups), BatchNorm2d(channels_out), ReLU6())


def _inverted_residual(channels: int, width: int, expansion: int, stride: int) -> Sequential | Residual:
    """Expand to ``expansion * channels``, filter each channel alone, project to ``width``; the input added if it fits.

    The projection has no activation: in few channels it would lose information (section 3.2).
    """
    hidden = expansion * channels
    expand = [_conv_norm_relu6(channels, hidden, 1)] if expansion != 1 else []
    conv = Sequential(
        *expand,
        _conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden),
        _conv(hidden, width, 1),
        BatchNorm2d(width),
    )
    return (Residual if stride == 1 and channels == width else Sequential)({"conv": conv})
