"""Networks of PyTorch in small widths, as ONNX with their batch norms: what a folding tool meets in practice.

``left`` is how many batch norms nothing can absorb: those between an addition, a Concat or an activation and a ReLU.
Statistics are random, scales of both signs among them.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import onnx
import torch
from torch import nn

from bench import zoo_blocks as blocks


@dataclass(frozen=True)
class Network:
    """A module's constructor, its input's shape without the batch, and what is left of its batch norms."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    left: int = 0
    left_merged: int | None = None  # where branches are merged too


IMAGE = (3, 32, 32)
NETWORKS = {
    "ResNet, basic": Network(lambda: blocks.resnet(blocks.Basic), IMAGE),
    "ResNet, bottleneck": Network(lambda: blocks.resnet(blocks.Bottleneck), IMAGE),
    "ResNet-D": Network(lambda: blocks.resnet(blocks.PooledShortcut), IMAGE),
    "ResNet, pre-activated": Network(lambda: blocks.resnet(blocks.PreActivated), IMAGE, left=5),
    "VGG": Network(blocks.vgg, IMAGE),
    "MobileNetV1": Network(blocks.mobilenet_v1, IMAGE),
    "MobileNetV2": Network(blocks.mobilenet_v2, IMAGE),
    "EfficientNet": Network(blocks.efficientnet, IMAGE),
    "RegNet": Network(blocks.regnet, IMAGE),
    "DenseNet": Network(blocks.DenseNet, IMAGE, left=8),
    "ShuffleNetV2": Network(blocks.shufflenet, IMAGE),
    "Inception": Network(blocks.inception, IMAGE),
    "RepVGG": Network(blocks.repvgg, IMAGE, left=2, left_merged=0),
    "MobileOne": Network(blocks.mobileone, IMAGE, left=4, left_merged=0),
    "LeViT": Network(blocks.LeViT, IMAGE),
    "U-Net": Network(blocks.UNet, IMAGE),
    "DCGAN": Network(blocks.dcgan, (16,)),
    "PointNet": Network(blocks.pointnet, (3, 20)),
    "video": Network(blocks.video, (3, 8, 16, 16)),
    "MLP": Network(blocks.mlp, (12,)),
}


def exported(name: str, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """The network ``name`` in eval mode, batch of any size, batch norms kept."""
    network = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = network.make().eval()
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                norm.weight.data[::5] *= -1
                nn.init.normal_(norm.bias, 0, 0.3)
        x = torch.randn(2, *network.shape)
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (x,),
                buffer,
                dynamo=False,
                opset_version=opset,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            )
    return onnx.load_from_string(buffer.getvalue())
