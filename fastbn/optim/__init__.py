"""Optimisers and learning-rate schedules with PyTorch's names and definitions."""

from fastbn.optim.adam import Adam, AdamW
from fastbn.optim.groups import param_groups
from fastbn.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, StepLR
from fastbn.optim.optimizer import Optimizer
from fastbn.optim.rmsprop import RMSprop
from fastbn.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "CosineAnnealingLR", "LRScheduler", "LambdaLR", "Optimizer", "StepLR"]
