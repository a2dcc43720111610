"""Batch normalisation on the CPU: fast to train, folded away to run.

``fastbn.functional`` holds the operations, ``fastbn.nn`` the layers, ``fastbn.optim`` the optimisers,
``fastbn.models`` the networks, ``fastbn.data`` the data sets. The package ``export`` writes and folds ONNX.
A name is loaded when it is first used: ``import fastbn`` alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastbn import data, errors, functional, models, nn, optim
    from fastbn._memory import get_cache_limit, set_cache_limit
    from fastbn._threads import get_num_threads, set_num_threads
    from fastbn.diagnosis.doctor import Diagnosis, doctor
    from fastbn.diagnosis.finding import Finding
    from fastbn.nn.fold import fold
    from fastbn.nn.fuse import fuse
    from fastbn.nn.init import manual_seed
    from fastbn.training.checkpoint import load, save
    from fastbn.training.fit import evaluate, fit
    from fastbn.training.history import Epoch, History
    from fastbn.training.statistics import update_bn_stats
    from fastbn.training.summary import Summary, summary
    from fastbn.training.warmup import warmup

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

_SUBMODULES = ("data", "errors", "functional", "models", "nn", "optim")
_ELSEWHERE = {
    "Diagnosis": "fastbn.diagnosis.doctor",
    "doctor": "fastbn.diagnosis.doctor",
    "Finding": "fastbn.diagnosis.finding",
    "get_cache_limit": "fastbn._memory",
    "set_cache_limit": "fastbn._memory",
    "get_num_threads": "fastbn._threads",
    "set_num_threads": "fastbn._threads",
    "fold": "fastbn.nn.fold",
    "fuse": "fastbn.nn.fuse",
    "manual_seed": "fastbn.nn.init",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"fastbn.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'fastbn' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ELSEWHERE.get(name, "fastbn.training")), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
