"""Which batch norm kernel reads an array, in what portions, with which stores: decided here and nowhere else.

What is summed together depends on the shape alone, so that the bits do not depend on the number of threads; who sums
it, and how much an elementwise map takes at a time, may.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastbn._cache import beyond_cache
from fastbn._threads import MIN_PARALLEL_WORK, get_num_threads, launch
from fastbn._views import as_flat, compute_dtype, is_channels_last, storage
from fastbn.kernels import batch_norm_columns as columns
from fastbn.kernels import batch_norm_rows as rows
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.sums import chunk_count, chunk_grid

SHORT_ROW = 128  # elements; of shorter rows, columns are summed
PORTION = 1 << 16  # bytes, about, that a task of an elementwise map writes
MATRIX_CHUNKS = 64  # that an (M, C) array is cut into at most
CHUNK_ROWS = 64  # that one of them has at least
OWNED = 1 << 18  # bytes, about, of the channels of a task that owns them


# weight, bias, running mean and variance, of one dtype: (C,), or empty.
Parameters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Layout(NamedTuple):
    """How kernels read dense, non-empty arrays of one shape: as long "rows", short "columns", or a "matrix".

    shape: of the view that they are given: (N, C, S), and (M, columns) of a matrix, whose rows hold the channels once
    or, where few of them would not fill a vector, several times. lanes: elements of a vector. block: channels of a task
    that reads columns. words: shape of an array with one bit an element, for the signs of vectors.
    """

    kind: str
    shape: tuple[int, ...]
    channels: int
    lanes: int
    itemsize: int
    block: int
    words: tuple[int, ...]

    def view(self, array: np.ndarray) -> np.ndarray:
        """``array`` as kernels read it."""
        if self.itemsize == 2 or not array.flags.carray:
            array = storage(as_flat(array))
        return array.reshape(self.shape)

    def nothing(self, dtype: np.dtype) -> np.ndarray:
        """The view of an operand that does not apply: of the same type, for one version of the kernel."""
        return storage(np.empty((0,) * len(self.shape), dtype))


def layout_of(x: np.ndarray) -> Layout:
    """The layout of a dense, non-empty ``x``."""
    return _layout(x.shape, x.ndim == 2 or is_channels_last(x), x.itemsize)


@lru_cache(maxsize=1024)
def _layout(shape: tuple[int, ...], channels_last: bool, itemsize: int) -> Layout:
    n, c = shape[:2]
    lanes = VECTOR_BYTES // max(4, itemsize)
    s = math.prod(shape[2:])
    if channels_last or s == 1:
        copies = _copies(n * s, c, lanes)
        rows_, width = n * s // copies, c * copies
        return Layout("matrix", (rows_, width), c, lanes, itemsize, 0, (rows_, -(-width // lanes)))
    if s < SHORT_ROW and n >= 8:
        block = max(1, min(-(-c // 32), OWNED // (n * s * itemsize)))
        words = -(-c // block) * -(-block * s // lanes)
        return Layout("columns", (n, c, s), c, lanes, itemsize, block, (n, words))
    return Layout("rows", (n, c, s), c, lanes, itemsize, 0, (n, c, -(-s // lanes)))


def _copies(m: int, c: int, lanes: int) -> int:
    """Rows of (m, c) to read as one, so that it is made of whole vectors, or of several."""
    copies = 1
    while m % (2 * copies) == 0 and (c * copies % lanes or c * copies < 4 * lanes) and c * copies < 1024:
        copies *= 2
    return copies if c * copies % lanes == 0 or c * copies < 4 * lanes else 1


def _stores(layout: Layout, out: np.ndarray, moved: int, signs: np.ndarray) -> tuple[int, bool]:
    """(lead, streaming) for an output of which ``moved`` bytes are read and written along."""
    if not beyond_cache(moved) or layout.shape[-1] % layout.lanes:
        return 0, False
    lead = -out.__array_interface__["data"][0] % (layout.lanes * out.itemsize) // out.itemsize
    aligned = lead == 0 or not (signs.size or layout.kind == "columns")
    return (lead, True) if aligned else (0, False)


def _portion(layout: Layout, images: int, length: int) -> int:
    """Images, of ``length`` elements, that a task of an elementwise map takes."""
    worth = -(-PORTION // (length * layout.itemsize))
    return max(1, min(worth, -(-images // (4 * get_num_threads()))))


def _owned(layout: Layout) -> int:
    """Channels of a task that owns them: their part of one image is a run of memory worth reading."""
    n, c, s = layout.shape
    fit = max(1, OWNED // (n * s * layout.itemsize))
    return max(1, min(fit, -(-c // (4 * get_num_threads())), 64))


def _own_channels(layout: Layout, size: int) -> bool:
    """Whether every thread gets whole channels to itself, or there is no work for a second one."""
    threads = get_num_threads()
    return layout.channels % threads == 0 or layout.channels >= 4 * threads or size < MIN_PARALLEL_WORK


def _new_signs(layout: Layout, wanted: bool) -> np.ndarray:
    word = np.uint16 if layout.lanes == 16 else np.uint8
    return np.empty(layout.words if wanted else (0,) * len(layout.words), word)


def _matrix_chunks(layout: Layout) -> tuple[int, np.ndarray]:
    """Rows of a chunk, and room for two sums of every column of every chunk."""
    m, width = layout.shape
    chunk = max(CHUNK_ROWS, -(-m // MATRIX_CHUNKS))
    return chunk, np.empty((2, -(-m // chunk), -(-width // layout.lanes) * layout.lanes))


Found = tuple[int, np.ndarray, np.ndarray, np.ndarray]


def train(
    x: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    parameters: Parameters,
    momentum: float,
    eps: float,
    y: np.ndarray,
    keep_signs: bool,
) -> Found:
    """Normalise by the batch's statistics and move the running ones; see ``kernels.channels``.

    Returns the first channel with a negative running variance, with which nothing is written, or -1; stats, affine,
    and the signs of a ReLU's operand, empty unless ``keep_signs``.
    """
    layout = layout_of(x)
    dtype = compute_dtype(x.dtype)
    stats, affine = np.empty((3, layout.channels)), np.empty((3, layout.channels), dtype)
    signs = _new_signs(layout, keep_signs)
    stores = _stores(layout, y, (2 if residual is None else 3) * x.nbytes, signs)
    source, target = layout.view(x), layout.view(y)
    added = layout.nothing(x.dtype) if residual is None else layout.view(residual)
    floor = 0.0 if relu else -math.inf
    given = *parameters, float(momentum), float(eps)
    arguments: tuple[Any, ...]
    if layout.kind == "matrix":
        chunk, partials = _matrix_chunks(layout)
        tile, shift = _portion(layout, *layout.shape), np.empty(partials.shape[2], dtype)
        results = stats, affine, np.empty((3, layout.shape[1]), dtype)
        arguments = source, added, *given, chunk, tile, shift, partials, *results, floor, *stores, signs, target
        negative = launch(columns.forward_matrix, *arguments, work=x.size)
    elif layout.kind == "columns":
        arguments = source, added, *given, layout.block, stats, affine, floor, stores[1], signs, target
        negative = launch(columns.forward_columns, *arguments, work=x.size)
    elif _own_channels(layout, x.size):
        grid = chunk_grid(layout.shape[0], layout.shape[2])
        arguments = source, added, *given, *grid, _owned(layout), stats, affine, floor, *stores, signs, target
        negative = launch(rows.forward_rows, *arguments, work=x.size)
    else:
        n, c, s = layout.shape
        partials = np.empty((2, chunk_count(n, s), c))
        found = stats, affine
        negative = launch(rows.moments_rows, source, *given, *chunk_grid(n, s), partials, *found, work=x.size)
        if negative < 0:
            _map_rows(
                layout, source, added, _without_statistics(parameters), 0.0, stats, affine, floor, stores, signs, target
            )
    return negative, stats, affine, signs


def infer(
    x: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    parameters: Parameters,
    eps: float,
    y: np.ndarray,
    keep_signs: bool,
) -> Found:
    """Normalise by the running statistics; arguments and results as of ``train``."""
    layout = layout_of(x)
    dtype = compute_dtype(x.dtype)
    stats, affine = np.empty((3, layout.channels)), np.empty((3, layout.channels), dtype)
    signs = _new_signs(layout, keep_signs)
    stores = _stores(layout, y, (2 if residual is None else 3) * x.nbytes, signs)
    source, target = layout.view(x), layout.view(y)
    added = layout.nothing(x.dtype) if residual is None else layout.view(residual)
    floor = 0.0 if relu else -math.inf
    eps = float(eps)
    arguments: tuple[Any, ...]
    if layout.kind == "matrix":
        tile, wide_affine = _portion(layout, *layout.shape), np.empty((3, layout.shape[1]), dtype)
        arguments = source, added, *parameters, eps, tile, stats, affine, wide_affine, floor, *stores, signs, target
        negative = launch(columns.normalize_matrix, *arguments, work=x.size)
    elif layout.kind == "columns":
        arguments = source, added, *parameters, eps, layout.block, stats, affine, floor, stores[1], signs, target
        negative = launch(columns.normalize_columns, *arguments, work=x.size)
    else:
        negative = _map_rows(layout, source, added, parameters, eps, stats, affine, floor, stores, signs, target)
    return negative, stats, affine, signs


def _without_statistics(parameters: Parameters) -> Parameters:
    return parameters[0], parameters[1], parameters[2][:0], parameters[3][:0]


def _map_rows(
    layout: Layout,
    source: np.ndarray,
    added: np.ndarray,
    parameters: Parameters,
    eps: float,
    stats: np.ndarray,
    affine: np.ndarray,
    floor: float,
    stores: tuple[int, bool],
    signs: np.ndarray,
    target: np.ndarray,
) -> int:
    n, c, s = layout.shape
    block = _portion(layout, n * c, s)
    arguments = source, added, *parameters, eps, block, stats, affine, floor, *stores, signs, target
    return launch(rows.normalize_rows, *arguments, work=source.size)


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    relu: bool,
    signs: np.ndarray,
    stats: np.ndarray,
    affine: np.ndarray,
    batch_stats: bool,
    dx: np.ndarray,
    dresidual: np.ndarray | None,
    dtype: np.dtype,
) -> np.ndarray:
    """Write dx, and dresidual unless None; returns dweight and dbias, (2, C) of ``dtype``."""
    layout = layout_of(x)
    slopes, gradients = np.empty((4, layout.channels), affine.dtype), np.empty((2, layout.channels), dtype)
    stores = _stores(layout, dx, (3 if dresidual is None else 4) * x.nbytes, signs)
    target = layout.view(dx)
    also = layout.nothing(x.dtype) if dresidual is None else layout.view(dresidual)
    sources = layout.view(dy), layout.view(x), signs
    given: tuple[Any, ...]
    arguments: tuple[Any, ...]
    if layout.kind == "matrix":
        width = layout.shape[1]
        chunk, partials = _matrix_chunks(layout)
        wide_affine, wide_slopes = np.empty((3, width), affine.dtype), np.empty((4, width), affine.dtype)
        given = stats, affine, wide_affine, relu, batch_stats, chunk, _portion(layout, *layout.shape), partials
        arguments = *sources, *given, slopes, wide_slopes, gradients, *stores, target, also
        launch(columns.backward_matrix, *arguments, work=x.size)
    elif layout.kind == "columns":
        given = stats, affine, relu, batch_stats, layout.block
        launch(columns.backward_columns, *sources, *given, slopes, gradients, stores[1], target, also, work=x.size)
    elif _own_channels(layout, x.size):
        grid = chunk_grid(layout.shape[0], layout.shape[2])
        given = stats, affine, relu, batch_stats, *grid, _owned(layout)
        launch(rows.backward_rows, *sources, *given, slopes, gradients, *stores, target, also, work=x.size)
    else:
        n, c, s = layout.shape
        grid, partials = chunk_grid(n, s), np.empty((2, chunk_count(n, s), c))
        given = stats, affine, relu, batch_stats, *grid, partials
        launch(rows.products_rows, *sources, *given, slopes, gradients, work=x.size)
        given = _portion(layout, n * c, s), affine, slopes, relu
        launch(rows.gradient_rows, *sources, *given, *stores, target, also, work=x.size)
    return gradients
