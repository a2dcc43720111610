"""Training, measuring and keeping models."""

from fastbn.training.checkpoint import load, save
from fastbn.training.fit import evaluate, fit
from fastbn.training.history import Epoch, History
from fastbn.training.statistics import update_bn_stats
from fastbn.training.summary import Summary, summary
from fastbn.training.warmup import warmup

__all__ = ["Epoch", "History", "Summary", "evaluate", "fit", "load", "save", "summary", "update_bn_stats", "warmup"]
