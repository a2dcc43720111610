"""Views of arrays in the shapes that kernels read, without a copy where the memory order allows one.

Logical axes are always (N, C, *spatial); *channels-last* means that memory lies as (N, *spatial, C).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from fastbn._checks import FLOAT32, FLOAT64, check_same_dtype, check_shape, check_writable
from fastbn._memory import empty
from fastbn._tape import unrepeatable
from fastbn.errors import ArgumentError

# Axes of an array, by its rank.
TO_LAST = {rank: (0, *range(2, rank), 1) for rank in range(2, 65)}
TO_SECOND = {rank: (0, rank - 1, *range(1, rank - 1)) for rank in range(2, 65)}

EMPTY: Mapping[str, np.ndarray | None] = MappingProxyType({})


class _WritableAlias:
    """The memory of a read-only array under a writable flag, so that kernels need one version for both."""

    def __init__(self, array: np.ndarray) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self.keep_alive = array


def _kernel_ready(array: np.ndarray) -> np.ndarray:
    """A C-contiguous array as kernels take it: flagged writable, though inputs stay unwritten."""
    return array if array.flags.writeable else np.asarray(_WritableAlias(array))


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, *spatial) seen as (N, *spatial, C)."""
    return array.transpose(TO_LAST[array.ndim])


def channels_second(array: np.ndarray) -> np.ndarray:
    """(N, *spatial, C) seen as (N, C, *spatial)."""
    return array.transpose(TO_SECOND[array.ndim])


def is_channels_last(array: np.ndarray) -> bool:
    """Whether memory is dense as (N, *spatial, C), and not also as (N, C, *spatial)."""
    if array.flags.c_contiguous or array.ndim < 3:
        return False
    return bool(array.transpose(TO_LAST[array.ndim]).flags.c_contiguous)


def dense(array: np.ndarray) -> np.ndarray:
    """``array`` if it is dense in either memory order, aligned and in native byte order, else a copy of that kind."""
    if array.flags.carray and array.dtype.isnative:
        return array
    if not array.flags.aligned or not array.dtype.isnative:
        unrepeatable()
        array = array.astype(native(array), order="K")
    return array if is_channels_last(array) else _in_order(array)


def dense_c(array: np.ndarray) -> np.ndarray:
    """``array`` if it is C-contiguous, aligned and in native byte order, else a copy of that kind."""
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    unrepeatable()
    return array.astype(native(array), order="C")


def _in_order(array: np.ndarray) -> np.ndarray:
    """``array`` if it is C-contiguous, else a copy that is."""
    if array.flags.c_contiguous:
        return array
    unrepeatable()
    return np.ascontiguousarray(array)


def native(array: np.ndarray) -> np.dtype:
    """The dtype of ``array`` in native byte order."""
    return array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")


def compute_dtype(dtype: np.dtype) -> np.dtype:
    """What kernels compute arrays of ``dtype`` in: float32 for 16-bit floats too."""
    return FLOAT64 if dtype.itemsize == 8 else FLOAT32


def storage(array: np.ndarray) -> np.ndarray:
    """A C-contiguous array as kernels take it: 16-bit floats as uint16 (float16) and int16 (bfloat16)."""
    if array.itemsize != 2:
        return array
    return array.view(np.uint16 if array.dtype.kind == "f" else np.int16)


def empty_like(array: np.ndarray, shape: tuple[int, ...] | None = None, dtype: Any = None) -> np.ndarray:
    """A new array in the memory order of ``array``, uninitialised, of its shape and dtype unless given."""
    shape = array.shape if shape is None else shape
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if not array.flags.c_contiguous and is_channels_last(array):
        return channels_second(empty((shape[0], *shape[2:], shape[1]), dtype))
    return empty(shape, dtype)


def lies_as(array: Any, like: np.ndarray) -> bool:
    """Whether ``array`` plainly has the dtype, the shape and the memory order of ``like``, and kernels can take it.

    A short look, for most calls: False may come of a difference that does not matter.
    """
    return (
        type(array) is np.ndarray
        and array.dtype is like.dtype
        and array.shape == like.shape
        and array.strides == like.strides
        and array.flags.behaved
    )


def in_order_of(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """``array`` in the memory order of a dense ``like``, copied if it lies otherwise."""
    if lies_as(array, like):
        return array
    array = dense(array)
    if is_channels_last(like):
        return channels_second(_in_order(channels_last(array)))
    return _in_order(array)


def as_ncs(array: np.ndarray) -> np.ndarray:
    """A C-contiguous (N, C, *spatial) array as (N, C, S)."""
    n, c = array.shape[:2]
    return _kernel_ready(array).reshape(n, c, array.size // max(n * c, 1))


def as_flat(array: np.ndarray) -> np.ndarray:
    """A dense array as one run of memory."""
    run = array.ravel("K")
    return run if run.flags.writeable else _kernel_ready(run)


def flat(array: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A dense (N, C, H, W) array as one run of memory, and the steps along its logical axes there."""
    _, c, h, w = array.shape
    # From the shape: NumPy lets the stride of an axis of length 1 be anything.
    return as_flat(array), (c * h * w, h * w, w, 1) if array.flags.c_contiguous else (c * h * w, 1, w * c, c)


def with_places(array: np.ndarray) -> tuple[np.ndarray, tuple[int, ...], tuple[int, int, int, int]]:
    """A dense (N, C, H, W) array as kernels take it: flat, its shape, and the steps along its logical axes."""
    memory, strides = flat(array)
    return memory, array.shape, strides


def element_strides(array: np.ndarray) -> tuple[int, int, int, int]:
    """Steps of ``as_flat(array)`` along the logical axes of a dense (N, C, H, W) array."""
    return flat(array)[1]


def check_out(
    who: str,
    out: np.ndarray,
    shape: tuple[int, ...],
    like: np.ndarray,
    *,
    may_be: Mapping[str, np.ndarray | None] = EMPTY,
    apart_from: Mapping[str, np.ndarray | None] = EMPTY,
) -> None:
    """``out`` must be writable, of ``shape``, and of the dtype and memory order of a dense ``like``.

    may_be: arrays by name that may be ``out`` itself, but may not overlap it in part. apart_from: may not at all.
    """
    if not (lies_as(out, like) and out.shape == shape):
        _check_layout(who, out, shape, like)
    for name, array in may_be.items():
        if array is None or array is out:
            continue
        if np.may_share_memory(array, out) and not _same_memory(array, out):
            raise ArgumentError(f"{who}: out must be {name} itself or apart from it, got an overlap")
    for name, array in apart_from.items():
        if array is not None and np.may_share_memory(array, out):
            raise ArgumentError(f"{who}: out must be apart from {name}, got an overlap")


def _check_layout(who: str, out: np.ndarray, shape: tuple[int, ...], like: np.ndarray) -> None:
    check_same_dtype(who, "out", out, "x", like)
    check_shape(who, "out", out, shape)
    check_writable(who, "out", out)
    if not out.flags.aligned or not out.dtype.isnative:
        raise ArgumentError(f"{who}: out must be aligned and in native byte order, got {_layout(out)}")
    same_order = is_channels_last(out) if is_channels_last(like) else out.flags.c_contiguous
    if out.size and not (same_order or (out.flags.c_contiguous and channels_last(out).flags.c_contiguous)):
        raise ArgumentError(f"{who}: out must be dense in the memory order of x, got strides {out.strides}")


def _layout(array: np.ndarray) -> str:
    return f"{array.dtype.str}, {'aligned' if array.flags.aligned else 'unaligned'}"


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] and a.strides == b.strides
