"""Weights packed into the panels of ``kernels.conv_panels``, and gradients unpacked from them."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fastbn._memory import empty, scratch
from fastbn._tape import unrepeatable
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.conv_panels import add_panels, block_elements, block_lanes, pack_panels, panel_columns, squares

LINE = 64  # bytes of a line of the cache
STREAMED_DWEIGHT = 1 << 17  # bytes of a gradient from which on it is streamed: nobody reads it before the step is over


class Packing(NamedTuple):
    """Of weights into panels, as ``pack_panels`` takes it."""

    strides: tuple[int, int, int]
    places: np.ndarray
    groups: int
    outputs: int
    channels: int


def tap_elements(channels: int, itemsize: int) -> int:
    """Elements of a tap in a panel."""
    return -(-channels // block_lanes(itemsize)) * block_elements(itemsize)


def places_of(order: np.ndarray, taps: int, channels: int, itemsize: int, first: int = 0) -> np.ndarray:
    """``pack_panels``' places of taps that become ``order`` of the ``taps`` of panels, which begin at ``first``."""
    size = tap_elements(channels, itemsize)
    return np.stack([first + order * size, np.full(order.size, taps * size)])


def panels_size(outputs: int, channels: int, itemsize: int) -> int:
    """Elements of the panels, of single taps, of so many outputs and channels."""
    return -(-outputs // panel_columns(itemsize)) * tap_elements(channels, itemsize)


def passes_caches(out: np.ndarray, row: int, least: int) -> bool:
    """Whether ``out`` has as many bytes, in rows, of so many elements, of whole lines: those need not be read first."""
    if VECTOR_BYTES != LINE or out.nbytes < least or row * out.itemsize % LINE:
        return False
    return bool(out.__array_interface__["data"][0] % LINE == 0)


def writeable(weight: np.ndarray) -> np.ndarray:
    """``weight``, or a copy: kernels would be compiled anew for what is read-only."""
    if weight.flags.writeable:
        return weight
    unrepeatable()
    return weight.copy()


def packed_panels(weight: np.ndarray, packing: Packing, size: int) -> np.ndarray:
    """A C-contiguous ``weight`` as panels of so many elements."""
    panels = empty((size,), weight.dtype)
    spare = scratch((max_threads(), squares(weight.itemsize)), weight.dtype)
    launch(pack_panels, as_flat(writeable(weight)), *packing, panels, spare, work=size)
    return panels


def packed_matrix(weight: np.ndarray, outputs: int, channels: int, strides: tuple[int, int]) -> np.ndarray:
    """As ``packed_panels``, of single taps, ``strides`` from output to output and channel to channel."""
    size = panels_size(outputs, channels, weight.itemsize)
    return packed_panels(weight, _of_matrix(outputs, channels, strides, weight.itemsize), size)


@lru_cache(maxsize=256)
def _of_matrix(outputs: int, channels: int, strides: tuple[int, int], itemsize: int) -> Packing:
    places = places_of(np.zeros(1, np.int64), 1, channels, itemsize)
    return Packing((outputs * channels, *strides), places, 1, outputs, channels)


def unpacked(products: np.ndarray, splits: int, shape: tuple[int, ...], groups: int, taps: int) -> np.ndarray:
    """Weights of ``shape``, (outputs, ...), that are the sum of ``splits`` panels."""
    dweight, itemsize = empty(shape, products.dtype, lasting=True), products.itemsize
    length = dweight[0].size
    spare = scratch((max_threads(), taps * block_elements(itemsize) + squares(itemsize)), products.dtype)
    share = splits, taps, groups, shape[0] // groups, length // taps
    target = as_flat(dweight), passes_caches(dweight, length, STREAMED_DWEIGHT), spare
    launch(add_panels, as_flat(products), *share, *target, work=products.size)
    return dweight
