"""Weights packed into the panels of ``kernels.conv_panels``, and gradients unpacked from them."""

from functools import lru_cache

import numpy as np

from fastbn._memory import empty, scratch
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat
from fastbn.functional.conv_portions import Packing, blocks_of, places_of
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.conv_panels import add_panels, block_elements, block_lanes, pack_panels, panel_columns, squares

LINE = 64  # bytes of a line of the cache
STREAMED = 1 << 18  # bytes from which on reading what was streamed costs less than writing it through the caches


def passes_caches(out: np.ndarray, row: int, least: int = STREAMED) -> bool:
    """Whether ``out`` is large, and made of rows, of so many elements, of whole lines: these need not be read first."""
    whole = row * out.itemsize % LINE == out.__array_interface__["data"][0] % LINE == 0
    return VECTOR_BYTES == LINE and out.nbytes >= least and whole


def writeable(weight: np.ndarray) -> np.ndarray:
    """``weight``, or a copy: kernels would be compiled anew for what is read-only."""
    return weight if weight.flags.writeable else weight.copy()


def packed_panels(weight: np.ndarray, packing: Packing, size: int) -> np.ndarray:
    """A C-contiguous ``weight`` as panels of so many elements."""
    panels = empty((size,), weight.dtype)
    spare = scratch((max_threads(), squares(weight.itemsize)), weight.dtype)
    streaming = passes_caches(panels, block_lanes(weight.itemsize))
    launch(pack_panels, as_flat(writeable(weight)), *packing, panels, streaming, spare, work=size)
    return panels


def packed_matrix(weight: np.ndarray, outputs: int, channels: int, strides: tuple[int, int]) -> np.ndarray:
    """As ``packed_panels``, of single taps, ``strides`` from output to output and channel to channel."""
    size = panels_size(outputs, channels, weight.itemsize)
    return packed_panels(weight, _of_matrix(outputs, channels, strides, weight.itemsize), size)


@lru_cache(maxsize=256)
def _of_matrix(outputs: int, channels: int, strides: tuple[int, int], itemsize: int) -> Packing:
    places = places_of(np.zeros(1, np.int64), 1, channels, itemsize)
    return Packing((outputs * channels, *strides), places, 1, outputs, channels)


def panels_size(outputs: int, channels: int, itemsize: int) -> int:
    """Elements of the panels of so many outputs and channels."""
    columns = panel_columns(itemsize)
    return -(-outputs // columns) * columns * blocks_of(channels, itemsize) * block_lanes(itemsize)


def unpacked(products: np.ndarray, splits: int, shape: tuple[int, ...], groups: int, taps: int) -> np.ndarray:
    """Weights of ``shape``, (outputs, ...), that are the sum of ``splits`` panels."""
    dweight, itemsize = empty(shape, products.dtype), products.itemsize
    length = dweight[0].size
    spare = scratch((max_threads(), taps * block_elements(itemsize) + squares(itemsize)), products.dtype)
    share = splits, taps, groups, shape[0] // groups, length // taps, as_flat(dweight), passes_caches(dweight, length)
    launch(add_panels, as_flat(products), *share, spare, work=products.size)
    return dweight
