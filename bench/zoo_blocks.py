"""The networks of ``bench.zoo``: the structure of the published ones around their batch norms, in few channels."""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, kernel=3, stride=1, groups=1, act=nn.ReLU):
    """Convolution without bias, batch norm, activation."""
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([act()] if act else []))


def head(channels, classes=5):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    """body(x) + shortcut(x), then ``after``."""

    def __init__(self, body, shortcut=None, after=None):
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x):
        return self.after(self.body(x) + self.shortcut(x))


class Basic(Residual):
    def __init__(self, inputs, outputs, stride):
        same = inputs == outputs and stride == 1
        body = nn.Sequential(conv(inputs, outputs, 3, stride), conv(outputs, outputs, act=None))
        super().__init__(body, None if same else self.short(inputs, outputs, stride), nn.ReLU())

    @staticmethod
    def short(inputs, outputs, stride):
        return conv(inputs, outputs, 1, stride, act=None)


class PooledShortcut(Basic):
    """The shortcut of ResNet-D: pooling, then a 1 x 1 convolution."""

    @staticmethod
    def short(inputs, outputs, stride):
        return nn.Sequential(nn.AvgPool2d(stride, stride), conv(inputs, outputs, 1, act=None))


class Bottleneck(Residual):
    def __init__(self, inputs, outputs, stride):
        same = inputs == outputs and stride == 1
        body = nn.Sequential(conv(inputs, 4, 1), conv(4, 4, 3, stride), conv(4, outputs, 1, act=None))
        super().__init__(body, None if same else conv(inputs, outputs, 1, stride, act=None), nn.ReLU())


class PreActivated(Residual):
    """Batch norm and ReLU before the convolutions: those of the sum stay, those between convolutions fold."""

    def __init__(self, inputs, outputs, stride):
        same = inputs == outputs and stride == 1
        first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        last = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        body = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), first, nn.BatchNorm2d(outputs), nn.ReLU(), last)
        super().__init__(body, None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False))


def resnet(block):
    stages = [block(8, 8, 1), block(8, 8, 1), block(8, 16, 2), block(16, 16, 1)]
    stem = conv(3, 8, 3, 2)
    if block is PreActivated:
        return nn.Sequential(stem, nn.MaxPool2d(3, 2, 1), *stages, nn.BatchNorm2d(16), nn.ReLU(), head(16))
    return nn.Sequential(stem, nn.MaxPool2d(3, 2, 1), *stages, head(16))


def vgg():
    classifier = [nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)]
    layers = [conv(3, 8), conv(8, 8), nn.MaxPool2d(2), conv(8, 16), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), *classifier)


def mobilenet_v1():
    def separable(inputs, outputs, stride):
        return nn.Sequential(conv(inputs, inputs, 3, stride, groups=inputs), conv(inputs, outputs, 1))

    return nn.Sequential(conv(3, 8, 3, 2), separable(8, 12, 1), separable(12, 16, 2), separable(16, 16, 1), head(16))


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.SiLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.gate(x)


def inverted(inputs, outputs, stride=1, act=nn.ReLU6, kernel=3, excite=False):
    middle = 3 * inputs
    steps = [conv(inputs, middle, 1, act=act), conv(middle, middle, kernel, stride, groups=middle, act=act)]
    body = nn.Sequential(*steps, *([SqueezeExcite(middle)] if excite else []), conv(middle, outputs, 1, act=None))
    return Residual(body) if inputs == outputs and stride == 1 else body


def mobilenet_v2():
    blocks = [inverted(8, 8), inverted(8, 12, 2), inverted(12, 12)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.ReLU6), *blocks, conv(12, 24, 1, act=nn.ReLU6), head(24))


def efficientnet():
    blocks = [inverted(8, 8, 1, nn.SiLU, 3, True), inverted(8, 12, 2, nn.SiLU, 5, True), inverted(12, 12, 1, nn.SiLU)]
    return nn.Sequential(conv(3, 8, 3, 2, act=nn.SiLU), *blocks, conv(12, 24, 1, act=nn.SiLU), head(24))


def regnet():
    def block(inputs, outputs, stride):
        grouped = conv(outputs, outputs, 3, stride, groups=outputs // 4)
        body = nn.Sequential(
            conv(inputs, outputs, 1), grouped, SqueezeExcite(outputs), conv(outputs, outputs, 1, act=None)
        )
        return Residual(body, conv(inputs, outputs, 1, stride, act=None) if stride > 1 else None, nn.ReLU())

    return nn.Sequential(conv(3, 8, 3, 2), block(8, 8, 1), block(8, 16, 2), block(16, 16, 1), head(16))


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth=4):
        super().__init__()
        squeeze = nn.Conv2d(inputs, 8, 1, bias=False)
        grow = nn.Conv2d(8, growth, 3, padding=1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), squeeze, nn.BatchNorm2d(8), nn.ReLU(), grow)

    def forward(self, x):
        return torch.cat([x, self.body(x)], 1)


class DenseNet(nn.Sequential):
    """Two blocks of three layers and a transition: 15 batch norms, of which the stem's and the layers' second fold."""

    def __init__(self):
        transition = [nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)]
        first = [DenseLayer(8), DenseLayer(12), DenseLayer(16)]
        second = [DenseLayer(10), DenseLayer(14), DenseLayer(18)]
        super().__init__(conv(3, 8, 3, 2), *first, *transition, *second, nn.BatchNorm2d(22), nn.ReLU(), head(22))


class ShuffleUnit(nn.Module):
    """Half of the channels go through, the others through convolutions; then they are shuffled."""

    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.body = nn.Sequential(conv(half, half, 1), conv(half, half, 3, groups=half, act=None), conv(half, half, 1))

    def forward(self, x):
        kept, changed = x.chunk(2, 1)
        _, c, h, w = x.shape
        y = torch.cat([kept, self.body(changed)], 1)
        return y.view(-1, 2, c // 2, h, w).transpose(1, 2).reshape(-1, c, h, w)


def shufflenet():
    return nn.Sequential(
        conv(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1), ShuffleUnit(8), ShuffleUnit(8), conv(8, 16, 1), head(16)
    )


class Parallel(nn.Module):
    """Branches side by side: concatenated, or added."""

    def __init__(self, *branches, add=False):
        super().__init__()
        self.branches, self.add = nn.ModuleList(branches), add

    def forward(self, x):
        outputs = [branch(x) for branch in self.branches]
        return sum(outputs[1:], outputs[0]) if self.add else torch.cat(outputs, 1)


def inception():
    def asymmetric(channels):
        across = [nn.Conv2d(4, 4, (1, 7), padding=(0, 3), bias=False), nn.BatchNorm2d(4), nn.ReLU()]
        down = [nn.Conv2d(4, 6, (7, 1), padding=(3, 0), bias=False), nn.BatchNorm2d(6), nn.ReLU()]
        return nn.Sequential(conv(channels, 4, 1), *across, *down)

    def module(channels):
        pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(channels, 4, 1))
        long = nn.Sequential(conv(channels, 4, 1), conv(4, 6), conv(6, 6))
        return Parallel(conv(channels, 6, 1), long, asymmetric(channels), pooled)

    return nn.Sequential(conv(3, 8, 3, 2), module(8), nn.MaxPool2d(3, 2), module(22), head(22))


def repvgg():
    def block(inputs, outputs, stride):
        branches = [conv(inputs, outputs, 3, stride, act=None), conv(inputs, outputs, 1, stride, act=None)]
        identity = [nn.BatchNorm2d(inputs)] if inputs == outputs and stride == 1 else []
        return nn.Sequential(Parallel(*branches, *identity, add=True), nn.ReLU())

    return nn.Sequential(block(3, 8, 2), block(8, 8, 1), block(8, 16, 2), block(16, 16, 1), head(16))


def mobileone():
    def block(inputs, outputs, kernel, stride, groups):
        branches = [conv(inputs, outputs, kernel, stride, groups, None) for _ in range(2)]
        point = [conv(inputs, outputs, 1, stride, groups, None)] if kernel > 1 else []
        identity = [nn.BatchNorm2d(inputs)] if inputs == outputs and stride == 1 else []
        return nn.Sequential(Parallel(*branches, *point, *identity, add=True), nn.ReLU())

    layers = [
        block(3, 8, 3, 2, 1),
        block(8, 8, 3, 1, 8),
        block(8, 8, 1, 1, 1),
        block(8, 8, 3, 1, 8),
        block(8, 8, 1, 1, 1),
    ]
    return nn.Sequential(*layers, head(8))


class LinearNorm(nn.Module):
    """A product over the last axis, batch norm of all tokens of the batch together."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x):
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    def __init__(self, channels, heads=2, key=4):
        super().__init__()
        self.heads, self.key = heads, key
        self.qkv = LinearNorm(channels, heads * key * 4)
        self.project = nn.Sequential(nn.Hardswish(), LinearNorm(heads * key * 2, channels))

    def forward(self, x):
        tokens = x.shape[1]
        split = self.qkv(x).view(-1, tokens, self.heads, 4 * self.key)
        q, k, v = split.split([self.key, self.key, 2 * self.key], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 3, 1), v.permute(0, 2, 1, 3)
        seen = F.softmax(q @ k / self.key**0.5, -1) @ v
        return self.project(seen.transpose(1, 2).reshape(-1, tokens, 2 * self.heads * self.key))


class LeViT(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        stem = [
            conv(3, 4, 3, 2, act=nn.Hardswish),
            conv(4, 8, 3, 2, act=nn.Hardswish),
            conv(8, channels, 3, 2, act=None),
        ]
        self.stem = nn.Sequential(*stem)

        def mlp():
            return nn.Sequential(LinearNorm(channels, 2 * channels), nn.Hardswish(), LinearNorm(2 * channels, channels))

        self.blocks = nn.Sequential(*(Residual(part) for _ in range(2) for part in (Attention(channels), mlp())))
        self.head = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, 5))

    def forward(self, x):
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


class UNet(nn.Module):
    """Down twice, up once by a transposed convolution and once by Resize, with skips."""

    def __init__(self):
        super().__init__()
        self.top, self.middle, self.bottom = conv(3, 6), conv(6, 8), conv(8, 12)
        up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.up = nn.Sequential(up, nn.BatchNorm2d(8), nn.ReLU())
        self.joined, self.last = conv(16, 8), conv(14, 6)
        self.classes = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        top = self.top(x)
        middle = self.middle(F.max_pool2d(top, 2))
        up = self.up(self.bottom(F.max_pool2d(middle, 2)))
        joined = F.interpolate(self.joined(torch.cat([up, middle], 1)), scale_factor=2, mode="bilinear")
        return self.classes(self.last(torch.cat([joined, top], 1)))


def dcgan():
    def up(inputs, outputs):
        layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())

    start = [nn.Linear(16, 12 * 16), nn.Unflatten(1, (12, 4, 4)), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*start, up(12, 8), up(8, 6), nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh())


def pointnet():
    def shared(inputs, outputs):
        return nn.Sequential(nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU())

    pooled = [nn.AdaptiveMaxPool1d(1), nn.Flatten()]
    classifier = [nn.Linear(24, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 5)]
    return nn.Sequential(shared(3, 8), shared(8, 12), shared(12, 24), *pooled, *classifier)


def video():
    def block(inputs, outputs):
        layer = nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm3d(outputs), nn.ReLU(), nn.MaxPool3d(2))

    return nn.Sequential(block(3, 6), block(6, 8), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5))


def mlp():
    """Batch norm before and after the activation, and of the input: each meets a product on one side."""
    first = [nn.BatchNorm1d(12), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU()]
    return nn.Sequential(*first, nn.Linear(16, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 5))
