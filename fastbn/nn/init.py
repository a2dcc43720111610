"""Initial values, drawn from one generator that ``manual_seed`` sets. Functions ending in _ fill in place."""

import math

import numpy as np

from fastbn._checks import check_int
from fastbn.errors import ArgumentError

_generator = np.random.default_rng()


def manual_seed(seed: int) -> None:
    """Make the initial values that follow the same in every run. Raises ArgumentError, DtypeError."""
    global _generator
    check_int("manual_seed", "seed", seed, 0)
    _generator = np.random.default_rng(seed)


def spawn_generator() -> np.random.Generator:
    """A generator for what a layer draws later; the initial values that follow are the same without it."""
    return _generator.spawn(1)[0]


def uniform_(array: np.ndarray, low: float, high: float) -> None:
    """Uniform on [low, high)."""
    array[...] = _generator.uniform(low, high, array.shape)


def normal_(array: np.ndarray, mean: float = 0.0, std: float = 1.0) -> None:
    """Normal with ``mean`` and standard deviation ``std``."""
    array[...] = _generator.normal(mean, std, array.shape)


def kaiming_uniform_(array: np.ndarray, a: float = 0.0, mode: str = "fan_in") -> None:
    """Uniform with variance ``2 / ((1 + a^2) fan)``, a being the slope of a leaky ReLU (He et al. 2015, eq. 14-15)."""
    bound = math.sqrt(6.0 / ((1.0 + a * a) * _fan(array, mode)))
    array[...] = _generator.uniform(-bound, bound, array.shape)


def kaiming_normal_(array: np.ndarray, a: float = 0.0, mode: str = "fan_in") -> None:
    """Normal with variance ``2 / ((1 + a^2) fan)`` (He et al. 2015, eq. 14-15)."""
    array[...] = _generator.normal(0.0, math.sqrt(2.0 / ((1.0 + a * a) * _fan(array, mode))), array.shape)


def _fan(array: np.ndarray, mode: str) -> int:
    """Inputs (or outputs) that meet in one unit: weights are (out, in, *kernel)."""
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"kaiming: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    if array.ndim < 2 or array.size == 0:
        raise ArgumentError(f"kaiming: array must have at least 2 axes, none empty, got shape {array.shape}")
    receptive = array[0, 0].size
    return array.shape[1 if mode == "fan_in" else 0] * receptive
