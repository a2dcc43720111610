"""ResNet-18 and ResNet-50 (He et al. 2015, arXiv 1512.03385) with torchvision's names, so that its weights load."""

from collections.abc import Callable

from fastbn._checks import check_int
from fastbn.nn import init
from fastbn.nn.activation import ReLU
from fastbn.nn.batchnorm import BatchNorm2d
from fastbn.nn.containers import Flatten, Residual, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.pooling import AdaptiveAvgPool2d, MaxPool2d

WIDTHS = (64, 128, 256, 512)
Block = Callable[[int, int, int], Residual]


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> Sequential:
    """ResNet-18 for (N, in_channels, H, W), H and W of 32 or more: 11,689,512 parameters with the defaults."""
    return _resnet(_basic_block, 1, (2, 2, 2, 2), num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> Sequential:
    """ResNet-50 for (N, in_channels, H, W), H and W of 32 or more: 25,557,032 parameters with the defaults.

    The stride of a block is in its 3x3 convolution, as in torchvision.
    """
    return _resnet(_bottleneck, 4, (3, 4, 6, 3), num_classes, in_channels)


def _resnet(block: Block, expansion: int, depths: tuple[int, ...], num_classes: int, in_channels: int) -> Sequential:
    check_int("resnet", "num_classes", num_classes, 1)
    check_int("resnet", "in_channels", in_channels, 1)
    layers = {}
    channels = WIDTHS[0]
    for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=1):
        first = block(channels, width, 1 if number == 1 else 2)
        channels = width * expansion
        layers[f"layer{number}"] = Sequential(first, *(block(channels, width, 1) for _ in range(depth - 1)))
    return Sequential(
        {
            "conv1": _conv(in_channels, WIDTHS[0], 7, 2),
            "bn1": BatchNorm2d(WIDTHS[0]),
            "relu": ReLU(),
            "maxpool": MaxPool2d(3, 2, 1),
            **layers,
            "avgpool": AdaptiveAvgPool2d(1),
            "flatten": Flatten(),
            "fc": Linear(channels, num_classes),
        }
    )


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> Conv2d:
    conv = Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    init.kaiming_normal_(conv.weight.data, mode="fan_out")
    return conv


def _shortcut(channels_in: int, channels_out: int, stride: int) -> Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return Sequential(_conv(channels_in, channels_out, 1, stride), BatchNorm2d(channels_out))


def _basic_block(channels: int, width: int, stride: int) -> Residual:
    return Residual(
        {
            "conv1": _conv(channels, width, 3, stride),
            "bn1": BatchNorm2d(width),
            "relu": ReLU(),
            "conv2": _conv(width, width, 3),
            "bn2": BatchNorm2d(width),
        },
        downsample=_shortcut(channels, width, stride),
        activation=ReLU(),
    )


def _bottleneck(channels: int, width: int, stride: int) -> Residual:
    return Residual(
        {
            "conv1": _conv(channels, width, 1),
            "bn1": BatchNorm2d(width),
            "relu1": ReLU(),
            "conv2": _conv(width, width, 3, stride),
            "bn2": BatchNorm2d(width),
            "relu2": ReLU(),
            "conv3": _conv(width, 4 * width, 1),
            "bn3": BatchNorm2d(4 * width),
        },
        downsample=_shortcut(channels, 4 * width, stride),
        activation=ReLU(),
    )
