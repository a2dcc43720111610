"""Networks to train and measure on."""

from fastbn.models.lenet import lenet
from fastbn.models.resnet import resnet18, resnet50

__all__ = ["lenet", "resnet18", "resnet50"]
