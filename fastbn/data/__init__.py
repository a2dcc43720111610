"""Data sets by name."""

from collections.abc import Callable

from fastbn.data.dataset import Dataset, Split
from fastbn.data.digits import digits
from fastbn.data.idx import read_idx
from fastbn.data.mnist import mnist
from fastbn.errors import ArgumentError

DATASETS: dict[str, Callable[[], Dataset]] = {"digits": digits, "mnist": mnist}


def load(name: str) -> Dataset:
    """The data set called ``name``. Raises ArgumentError for an unknown one, ModelError where it cannot be had."""
    if name not in DATASETS:
        raise ArgumentError(f"data: name must be one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name]()


__all__ = ["DATASETS", "Dataset", "Split", "digits", "load", "mnist", "read_idx"]
