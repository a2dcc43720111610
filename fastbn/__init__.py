"""Batch normalisation on the CPU: fast to train, folded away to run.

``fastbn.functional`` holds the operations, ``fastbn.nn`` the layers, ``fastbn.optim`` the optimisers,
``fastbn.models`` the networks, ``fastbn.data`` the data sets. The package ``export`` writes and folds ONNX.
"""

from fastbn import data, errors, functional, models, nn, optim
from fastbn._memory import get_cache_limit, set_cache_limit
from fastbn._threads import get_num_threads, set_num_threads
from fastbn.diagnosis.doctor import Diagnosis, doctor
from fastbn.diagnosis.finding import Finding
from fastbn.nn.fold import fold
from fastbn.nn.fuse import fuse
from fastbn.nn.init import manual_seed
from fastbn.training import (
    Epoch,
    History,
    Summary,
    evaluate,
    fit,
    load,
    save,
    summary,
    update_bn_stats,
    warmup,
)

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "Epoch",
    "Finding",
    "History",
    "Summary",
    "data",
    "doctor",
    "errors",
    "evaluate",
    "fit",
    "fold",
    "functional",
    "fuse",
    "get_cache_limit",
    "get_num_threads",
    "load",
    "manual_seed",
    "models",
    "nn",
    "optim",
    "save",
    "set_cache_limit",
    "set_num_threads",
    "summary",
    "update_bn_stats",
    "warmup",
]
