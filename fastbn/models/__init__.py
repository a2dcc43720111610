"""Networks to train and measure on."""

from fastbn.models.lenet import lenet
from fastbn.models.mlp import mlp
from fastbn.models.mobilenet import mobilenet_v2
from fastbn.models.resnet import resnet18, resnet50

__all__ = ["lenet", "mlp", "mobilenet_v2", "resnet18", "resnet50"]
