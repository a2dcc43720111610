"""ResNet-18 and ResNet-50 (He et al. 2015, arXiv 1512.03385) with torchvision's names, so that its weights load."""

from collections.abc import Callable

from fastbn._checks import check_int
from fastbn.models.norms import Norm, norm_named
from fastbn.nn import init
from fastbn.nn.activation import ReLU
from fastbn.nn.containers import Flatten, Residual, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.linear import Linear
from fastbn.nn.model_init import fixup_, zero_gamma_
from fastbn.nn.module import Module
from fastbn.nn.pooling import AdaptiveAvgPool2d, MaxPool2d
from fastbn.nn.scalar_affine import ScalarAffine

WIDTHS = (64, 128, 256, 512)
Block = Callable[[Norm, int, int, int], Residual]
NormLayer = str | Callable[[int], Module]


def resnet18(
    num_classes: int = 1000, in_channels: int = 3, *, zero_init_residual: bool = False, norm_layer: NormLayer = "batch"
) -> Sequential:
    """ResNet-18 for (N, in_channels, H, W), H and W of 32 or more: 11,689,512 parameters with the defaults.

    zero_init_residual: every block begins as its shortcut, see ``nn.zero_gamma_``. norm_layer: makes the norm of so
    many channels, as in torchvision, or a name as for ``lenet``; convolutions that no norm follows have a bias, but for
    FixUp's. Raises ArgumentError, DtypeError.
    """
    return _resnet(_basic_block, 1, (2, 2, 2, 2), num_classes, in_channels, zero_init_residual, norm_layer)


def resnet50(
    num_classes: int = 1000, in_channels: int = 3, *, zero_init_residual: bool = False, norm_layer: NormLayer = "batch"
) -> Sequential:
    """ResNet-50 for (N, in_channels, H, W), H and W of 32 or more: 25,557,032 parameters with the defaults.

    The stride of a block is in its 3x3 convolution, as in torchvision. Everything else as in ``resnet18``.
    """
    return _resnet(_bottleneck, 4, (3, 4, 6, 3), num_classes, in_channels, zero_init_residual, norm_layer)


def _resnet(
    block: Block,
    expansion: int,
    depths: tuple[int, ...],
    num_classes: int,
    in_channels: int,
    zero_init_residual: bool,
    norm_layer: NormLayer,
) -> Sequential:
    check_int("resnet", "num_classes", num_classes, 1)
    check_int("resnet", "in_channels", in_channels, 1)
    norm = Norm(norm2d=norm_layer) if callable(norm_layer) else norm_named("resnet", norm_layer)
    layers = {}
    channels = WIDTHS[0]
    for number, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True), start=1):
        first = block(norm, channels, width, 1 if number == 1 else 2)
        channels = width * expansion
        layers[f"layer{number}"] = Sequential(first, *(block(norm, channels, width, 1) for _ in range(depth - 1)))
    model = Sequential(
        {
            **_conv(norm, 1, in_channels, WIDTHS[0], 7, 2),
            **({"bias1": ScalarAffine(multiplier=False)} if norm.scalars else {}),
            "relu": ReLU(),
            "maxpool": MaxPool2d(3, 2, 1),
            **layers,
            "avgpool": AdaptiveAvgPool2d(1),
            "flatten": Flatten(),
            **({"bias2": ScalarAffine(multiplier=False)} if norm.scalars else {}),
            "fc": Linear(channels, num_classes),
        }
    )
    if norm.scalars:
        fixup_(model)
    if zero_init_residual:
        zero_gamma_(model)
    return model


def _conv(
    norm: Norm, number: int, channels_in: int, channels_out: int, kernel: int, stride: int = 1
) -> dict[str, Module]:
    """The convolution and its norm, under torchvision's names."""
    bias = norm.norm2d is None and not norm.scalars
    conv = Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=bias)
    init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    chain = [norm.wrapped(conv), *norm.behind(conv)]
    return dict(zip((f"conv{number}", f"bn{number}"), chain, strict=False))


def _shortcut(norm: Norm, channels_in: int, channels_out: int, stride: int) -> Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return Sequential(*_conv(norm, 1, channels_in, channels_out, 1, stride).values())


def _basic_block(norm: Norm, channels: int, width: int, stride: int) -> Residual:
    return norm.residual(
        {
            **_conv(norm, 1, channels, width, 3, stride),
            "relu": ReLU(),
            **_conv(norm, 2, width, width, 3),
        },
        downsample=_shortcut(norm, channels, width, stride),
        activation=ReLU(),
    )


def _bottleneck(norm: Norm, channels: int, width: int, stride: int) -> Residual:
    return norm.residual(
        {
            **_conv(norm, 1, channels, width, 1),
            "relu1": ReLU(),
            **_conv(norm, 2, width, width, 3, stride),
            "relu2": ReLU(),
            **_conv(norm, 3, width, 4 * width, 1),
        },
        downsample=_shortcut(norm, channels, 4 * width, stride),
        activation=ReLU(),
    )
