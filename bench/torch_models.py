"""ResNet-18, ResNet-50 and MobileNetV2 in PyTorch, with torchvision's names, so that fastbn's weights load."""

import torch
from torch import nn


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class Residual(nn.Module):
    """torchvision's BasicBlock, or its Bottleneck where ``expansion`` is 4."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        out = width * expansion
        self.deep = expansion > 1
        self.conv1 = _conv(channels, width, 1 if self.deep else 3, 1 if self.deep else stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride if self.deep else 1)
        self.bn2 = nn.BatchNorm2d(width)
        if self.deep:
            self.conv3 = _conv(width, out, 1)
            self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.deep:
            y = self.bn3(self.conv3(self.relu(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's resnet18, or resnet50 where ``expansion`` is 4."""

    def __init__(self, depths: tuple[int, ...], expansion: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = _conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for number, depth in enumerate(depths):
            blocks = []
            for position in range(depth):
                width = 64 << number
                blocks.append(Residual(channels, width, 2 if number and not position else 1, expansion))
                channels = width * expansion
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def _unit(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = _conv(channels_in, channels_out, kernel, stride, groups)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU6(inplace=True))


class Inverted(nn.Module):
    """torchvision's InvertedResidual."""

    def __init__(self, channels: int, out: int, stride: int, ratio: int) -> None:
        super().__init__()
        hidden = channels * ratio
        units = [_unit(channels, hidden, 1)] if ratio > 1 else []
        units += [_unit(hidden, hidden, 3, stride, hidden), _conv(hidden, out, 1), nn.BatchNorm2d(out)]
        self.conv = nn.Sequential(*units)
        self.shortcut = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """torchvision's mobilenet_v2, without its dropout, which draws other numbers everywhere."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, 32, 3, 2)]
        channels = 32
        for ratio, out, count, stride in self.STAGES:
            for position in range(count):
                layers.append(Inverted(channels, out, 1 if position else stride, ratio))
                channels = out
        self.features = nn.Sequential(*layers, _unit(channels, 1280, 1))
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(1280, 1000))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


MODELS = {
    "ResNet-18": lambda: ResNet((2, 2, 2, 2), 1),
    "ResNet-50": lambda: ResNet((3, 4, 6, 3), 4),
    "MobileNetV2": MobileNetV2,
}
