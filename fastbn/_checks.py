"""Checks at the doors. Every sentence says who, what, wanted and got."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastbn.errors import ArgumentError, DtypeError, ShapeError

COMPUTED = ("float32", "float64")
STORED = (*COMPUTED, "float16", "bfloat16")  # by name: NumPy knows bfloat16 from ml_dtypes, which need not be there


FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


def _is_float(array: Any) -> bool:
    """Whether ``array`` plainly is what most are: the doors ask this first, for a name of a dtype takes long."""
    return type(array) is np.ndarray and (array.dtype is FLOAT32 or array.dtype is FLOAT64)


def check_float(who: str, name: str, array: Any, dtypes: tuple[str, ...] = COMPUTED) -> None:
    """``array`` must be a NumPy array of one of ``dtypes``, in either byte order."""
    if _is_float(array):
        return
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"{who}: {name} must be a NumPy array, got {type(array).__name__}; use numpy.asarray")
    if array.dtype.name not in dtypes:
        wanted = f"{', '.join(dtypes[:-1])} or {dtypes[-1]}"
        raise DtypeError(f"{who}: {name} must be {wanted}, got {array.dtype}; cast it with astype")


def check_same_dtype(who: str, name: str, array: np.ndarray, like_name: str, like: np.ndarray) -> None:
    """``array`` must be a NumPy array with the dtype of ``like``."""
    if _is_float(array) and array.dtype is like.dtype:
        return
    check_float(who, name, array, STORED)
    if array.dtype.newbyteorder("=") != like.dtype.newbyteorder("="):
        raise DtypeError(f"{who}: {name} must be {like.dtype} as {like_name} is, got {array.dtype}")


def check_rank(who: str, name: str, array: np.ndarray, ranks: Sequence[int], axes: str) -> None:
    """``array`` must have one of ``ranks`` axes."""
    if array.ndim not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise ShapeError(f"{who}: {name} must have {wanted} axes {axes}, got shape {array.shape}")


def check_shape(who: str, name: str, array: np.ndarray, shape: tuple[int, ...], why: str = "") -> None:
    """``array`` must have exactly ``shape``."""
    if array.shape != shape:
        reason = f", {why}" if why else ""
        raise ShapeError(f"{who}: {name} must have shape {shape}{reason}, got {array.shape}")


def check_per_channel(who: str, name: str, array: Any, channels: int) -> None:
    """``array`` must be None or float of shape (channels,)."""
    if array is not None and not (_is_float(array) and array.shape == (channels,)):
        check_float(who, name, array)
        check_shape(who, name, array, (channels,), "one entry per channel")


def check_running_pair(
    who: str, mean: Any, var: Any, channels: int, names: tuple[str, str] = ("running_mean", "running_var")
) -> None:
    """Both or neither must be given, per channel; ``names``: what the caller calls them."""
    if (mean is None) != (var is None):
        given = names[1] if mean is None else names[0]
        raise ArgumentError(f"{who}: {names[0]} and {names[1]} must be given together, got {given} only")
    check_per_channel(who, names[0], mean, channels)
    check_per_channel(who, names[1], var, channels)


def check_running_stats(
    who: str, mean: Any, var: Any, channels: int, names: tuple[str, str] = ("running_mean", "running_var")
) -> None:
    """``check_running_pair``, and no variance may be negative."""
    check_running_pair(who, mean, var, channels, names)
    if var is not None and (var < 0).any():
        channel = int(np.argmax(var < 0))
        raise ArgumentError(f"{who}: {names[1]} must not be negative, got {var[channel]} in channel {channel}")


def check_writable(who: str, name: str, array: np.ndarray) -> None:
    """``array`` must be writable: it is changed in place."""
    if not array.flags.writeable:
        raise ArgumentError(f"{who}: {name} must be writable, got a read-only array; pass a copy")


def check_targets(who: str, targets: Any, rows: int) -> None:
    """``targets`` must be integers of shape (rows,)."""
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "iu":
        kind = targets.dtype if isinstance(targets, np.ndarray) else type(targets).__name__
        raise DtypeError(f"{who}: targets must be a NumPy array of integers, got {kind}")
    check_shape(who, "targets", targets, (rows,), "one class per row")


def check_number(who: str, name: str, value: Any, low: float, high: float = np.inf) -> None:
    """``value`` must be a real number in [low, high]."""
    if type(value) is float and low <= value <= high:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DtypeError(f"{who}: {name} must be a number, got {type(value).__name__}")
    if not low <= value <= high:
        wanted = f"at least {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
        raise ArgumentError(f"{who}: {name} must be {wanted}, got {value}")


def check_int(who: str, name: str, value: Any, low: int) -> None:
    """``value`` must be an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DtypeError(f"{who}: {name} must be an integer, got {type(value).__name__}")
    if value < low:
        raise ArgumentError(f"{who}: {name} must be at least {low}, got {value}")


def as_tuple(who: str, name: str, value: Any, low: int, length: int) -> tuple[int, ...]:
    """An integer, or ``length`` of them (1 to 3), each at least ``low``, as a tuple of that length."""
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * length
    if len(entries) != length:
        wanted = ("a tuple of one", "a pair of them", "a triple of them")[length - 1]
        raise ArgumentError(f"{who}: {name} must be an integer or {wanted}, got {value!r}")
    for entry in entries:
        check_int(who, name, entry, low)
    return tuple(int(entry) for entry in entries)


def as_pair(who: str, name: str, value: Any, low: int) -> tuple[int, int]:
    """``as_tuple`` of two."""
    first, second = as_tuple(who, name, value, low, 2)
    return first, second
