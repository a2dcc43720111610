"""Optimisers and learning-rate schedules with PyTorch's names and definitions."""

from fastbn.optim.adam import Adam, AdamW
from fastbn.optim.clip import clip_grad_norm_, clip_grad_value_
from fastbn.optim.groups import param_groups
from fastbn.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
    StepLR,
)
from fastbn.optim.one_cycle import OneCycleLR
from fastbn.optim.optimizer import Optimizer
from fastbn.optim.rmsprop import RMSprop
from fastbn.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "RMSprop",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
    "param_groups",
]
