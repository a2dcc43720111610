"""Which batch norm kernel reads an array, in what portions, with which stores: decided here and nowhere else.

What is summed together depends on the shape alone, so that the bits do not depend on the number of threads; who sums
it, and how much an elementwise map takes at a time, may.
"""

import math
from dataclasses import dataclass

import numpy as np

from fastbn._cache import beyond_cache
from fastbn._threads import get_num_threads, launch
from fastbn._views import as_mc, as_ncs, compute_dtype, is_channels_last, storage
from fastbn.kernels import batch_norm_columns as columns
from fastbn.kernels import batch_norm_rows as rows
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.channels import finish_inference
from fastbn.kernels.sums import chunk_count, chunk_grid

SHORT_ROW = 128  # elements; of shorter rows, columns are summed
PORTION = 1 << 16  # bytes, about, that a task of an elementwise map writes
MATRIX_CHUNKS = 64  # that an (M, C) array is cut into at most
CHUNK_ROWS = 64  # that one of them has at least
OWNED = 1 << 18  # bytes, about, of the channels of a task that owns them


@dataclass(frozen=True)
class Layout:
    """How kernels read arrays like a dense, non-empty ``x``: as long "rows", short "columns", or a "matrix".

    shape: of the view that they are given: (N, C, S), and (M, columns) of a matrix, whose rows hold the channels once
    or, where few of them would not fill a vector, several times. lanes: elements of a vector.
    """

    kind: str
    shape: tuple[int, ...]
    channels: int
    lanes: int
    itemsize: int

    def view(self, array: np.ndarray) -> np.ndarray:
        """``array`` as kernels read it."""
        return storage(as_mc(array) if self.kind == "matrix" else as_ncs(array)).reshape(self.shape)

    @property
    def row(self) -> int:
        """Elements from one place where vectors begin to the next."""
        return self.shape[-1]

    @property
    def words(self) -> tuple[int, ...]:
        """Shape of an array with one bit an element: words of one vector's signs."""
        if self.kind == "rows":
            return (*self.shape[:2], -(-self.row // self.lanes))
        if self.kind == "matrix":
            return (self.shape[0] * -(-self.row // self.lanes),)
        return (self.shape[0] * self.wide,)

    @property
    def block(self) -> int:
        """Channels of a task that owns them: their part of one image is a run of memory worth reading."""
        n, c, s = self.shape
        fit = max(1, OWNED // (n * s * self.itemsize))
        return max(1, min(fit, -(-c // (4 * get_num_threads())), 64))

    @property
    def wide(self) -> int:
        """Words to an image, where columns are read: every task begins a new one."""
        _, c, s = self.shape
        return -(-c // self.column_block) * -(-self.column_block * s // self.lanes)

    @property
    def column_block(self) -> int:
        """Channels of a task that reads columns: from the shape alone, for words of signs to stay where they are."""
        n, c, s = self.shape
        return max(1, min(-(-c // 32), OWNED // (n * s * self.itemsize)))


def layout_of(x: np.ndarray) -> Layout:
    """The layout of a dense, non-empty ``x``."""
    n, c = x.shape[:2]
    lanes = VECTOR_BYTES // compute_dtype(x.dtype).itemsize
    if x.ndim == 2 or is_channels_last(x) or x.size == n * c:
        copies = _copies(x.size // c, c, lanes)
        return Layout("matrix", (x.size // c // copies, c * copies), c, lanes, x.itemsize)
    s = x.size // (n * c)
    kind = "columns" if s < SHORT_ROW and n >= 8 else "rows"
    return Layout(kind, (n, c, s), c, lanes, x.itemsize)


def _copies(m: int, c: int, lanes: int) -> int:
    """Rows of (m, c) to read as one, so that it is made of whole vectors, or of several."""
    copies = 1
    while m % (2 * copies) == 0 and (c * copies % lanes or c * copies < 4 * lanes) and c * copies < 1024:
        copies *= 2
    return copies if c * copies % lanes == 0 or c * copies < 4 * lanes else 1


def _stores(layout: Layout, out: np.ndarray, moved: int, signs: bool) -> tuple[int, bool]:
    """(lead, streaming) for an output of which ``moved`` bytes are read and written along."""
    if not beyond_cache(moved) or layout.row % layout.lanes:
        return 0, False
    lead = -out.__array_interface__["data"][0] % (layout.lanes * out.itemsize) // out.itemsize
    aligned = lead == 0 or not (signs or layout.kind == "columns")
    return (lead, True) if aligned else (0, False)


def _portion(layout: Layout, images: int, length: int) -> int:
    """Images, of ``length`` elements, that a task of an elementwise map takes."""
    worth = -(-PORTION // (length * layout.itemsize))
    return max(1, min(worth, -(-images // (4 * get_num_threads()))))


def _own_channels(layout: Layout, size: int) -> bool:
    """Whether every thread gets whole channels to itself, or there is no work for a second one."""
    threads = get_num_threads()
    return layout.channels % threads == 0 or layout.channels >= 4 * threads or size < 1 << 15


def _new_signs(layout: Layout, wanted: bool) -> np.ndarray:
    word = np.uint16 if layout.lanes == 16 else np.uint8
    return np.empty(layout.words if wanted else (0,) * (3 if layout.kind == "rows" else 1), word)


def _matrix_workspace(layout: Layout) -> tuple[int, np.ndarray]:
    """Rows of a chunk, and room for two sums of every column of every chunk."""
    m, width = layout.shape
    chunk = max(CHUNK_ROWS, -(-m // MATRIX_CHUNKS))
    return chunk, np.empty((2, -(-m // chunk), -(-width // layout.lanes) * layout.lanes))


def train(
    x: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    momentum: float,
    eps: float,
    channels: np.ndarray,
    y: np.ndarray,
    *,
    keep_signs: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Normalise by the batch's statistics; ``channels`` is completed, see ``kernels.channels``.

    Returns affine, and the signs of a ReLU's operand or an empty array unless ``keep_signs``.
    """
    layout = layout_of(x)
    dtype = compute_dtype(x.dtype)
    affine = np.empty((3, layout.channels), dtype)
    bits = _new_signs(layout, keep_signs)
    floor = 0.0 if relu else -math.inf
    lead, streaming = _stores(layout, y, (2 if residual is None else 3) * x.nbytes, keep_signs)
    source, added, target = layout.view(x), _optional(layout, residual, x), layout.view(y)
    statistics = float(momentum), float(eps)
    if layout.kind == "matrix":
        m, width = layout.shape
        chunk, partials = _matrix_workspace(layout)
        shift, wide_affine = np.empty(partials.shape[2], dtype), np.empty((3, width), dtype)
        portions = chunk, _portion(layout, m, width)
        workspaces = shift, partials, channels, affine, wide_affine
        stores = floor, lead, streaming
        launch(
            columns.forward_matrix,
            source,
            added,
            *statistics,
            *portions,
            *workspaces,
            *stores,
            bits,
            target,
            work=x.size,
        )
    elif layout.kind == "columns":
        block, wide = layout.column_block, layout.wide
        launch(
            columns.forward_columns,
            source,
            added,
            *statistics,
            block,
            channels,
            affine,
            floor,
            streaming,
            wide,
            bits,
            target,
            work=x.size,
        )
    else:
        n, c, s = layout.shape
        grid = chunk_grid(n, s)
        if _own_channels(layout, x.size):
            launch(
                rows.forward_rows,
                source,
                added,
                *statistics,
                grid,
                layout.block,
                channels,
                affine,
                floor,
                lead,
                streaming,
                bits,
                target,
                work=x.size,
            )
        else:
            partials = np.empty((2, chunk_count(n, s), c))
            launch(rows.moments_rows, source, *statistics, grid, partials, channels, affine, work=x.size)
            block = _portion(layout, n * c, s)
            launch(rows.normalize_rows, source, added, block, affine, floor, lead, streaming, bits, target, work=x.size)
    return affine, bits


def infer(
    x: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    eps: float,
    channels: np.ndarray,
    y: np.ndarray,
    *,
    keep_signs: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Normalise by the running statistics in ``channels``, which is completed; returns as ``train``."""
    affine = np.empty((3, x.shape[1]), compute_dtype(x.dtype))
    finish_inference(float(eps), channels, affine)
    if x.size == 0:
        return affine, np.empty(0, np.uint8)
    layout = layout_of(x)
    bits = _new_signs(layout, keep_signs)
    floor = 0.0 if relu else -math.inf
    lead, streaming = _stores(layout, y, (2 if residual is None else 3) * x.nbytes, keep_signs)
    source, added, target = layout.view(x), _optional(layout, residual, x), layout.view(y)
    if layout.kind == "matrix":
        m, width = layout.shape
        tile, wide_affine = _portion(layout, m, width), np.empty((3, width), affine.dtype)
        launch(
            columns.normalize_matrix,
            source,
            added,
            tile,
            affine,
            wide_affine,
            floor,
            lead,
            streaming,
            bits,
            target,
            work=x.size,
        )
    elif layout.kind == "columns":
        block, wide = layout.column_block, layout.wide
        launch(
            columns.normalize_columns, source, added, block, affine, floor, streaming, wide, bits, target, work=x.size
        )
    else:
        n, c, s = layout.shape
        block = _portion(layout, n * c, s)
        launch(rows.normalize_rows, source, added, block, affine, floor, lead, streaming, bits, target, work=x.size)
    return affine, bits


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    relu: bool,
    bits: np.ndarray,
    channels: np.ndarray,
    affine: np.ndarray,
    batch_stats: bool,
    dx: np.ndarray,
    dresidual: np.ndarray | None,
) -> np.ndarray:
    """Write dx, and dresidual unless None; returns dweight and dbias, (2, C) float64. bits: as ``train`` gave them."""
    layout = layout_of(x)
    slopes, gradients = np.empty((4, layout.channels), affine.dtype), np.empty((2, layout.channels))
    lead, streaming = _stores(layout, dx, (3 if dresidual is None else 4) * x.nbytes, bits.size > 0)
    sources = layout.view(dy), layout.view(x), bits
    targets = layout.view(dx), _optional(layout, dresidual, x)
    if layout.kind == "matrix":
        m, width = layout.shape
        chunk, partials = _matrix_workspace(layout)
        wide_affine, wide_slopes = np.empty((3, width), affine.dtype), np.empty((4, width), affine.dtype)
        portions = chunk, _portion(layout, m, width)
        launch(
            columns.backward_matrix,
            *sources,
            channels,
            affine,
            wide_affine,
            relu,
            batch_stats,
            *portions,
            partials,
            slopes,
            wide_slopes,
            gradients,
            lead,
            streaming,
            *targets,
            work=x.size,
        )
    elif layout.kind == "columns":
        block, wide = layout.column_block, layout.wide
        launch(
            columns.backward_columns,
            *sources,
            channels,
            affine,
            relu,
            batch_stats,
            block,
            wide,
            slopes,
            gradients,
            streaming,
            *targets,
            work=x.size,
        )
    else:
        n, c, s = layout.shape
        grid = chunk_grid(n, s)
        if _own_channels(layout, x.size):
            launch(
                rows.backward_rows,
                *sources,
                channels,
                affine,
                relu,
                batch_stats,
                grid,
                layout.block,
                slopes,
                gradients,
                lead,
                streaming,
                *targets,
                work=x.size,
            )
        else:
            partials = np.empty((2, chunk_count(n, s), c))
            launch(
                rows.products_rows,
                *sources,
                channels,
                affine,
                relu,
                batch_stats,
                grid,
                partials,
                slopes,
                gradients,
                work=x.size,
            )
            block = _portion(layout, n * c, s)
            launch(rows.gradient_rows, *sources, block, affine, slopes, relu, lead, streaming, *targets, work=x.size)
    return gradients


def _optional(layout: Layout, array: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """The view of an optional operand: empty where it is absent, as x is otherwise, for one version of the kernel."""
    return storage(np.empty((0,) * len(layout.shape), x.dtype)) if array is None else layout.view(array)
