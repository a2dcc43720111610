"""Kernels of layer norm and group norm: in what portions they read rows, with which stores.

As for batch norm, what is summed together depends on the shape alone.
"""

import numpy as np

from fastbn._memory import empty
from fastbn._threads import get_num_threads, launch
from fastbn._views import as_flat, compute_dtype, empty_like, is_channels_last, storage
from fastbn.functional.norm_kernels import OWNED, portion, stores
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.group_norm_columns import backward_group_columns, forward_group_columns
from fastbn.kernels.group_norm_rows import backward_groups, forward_groups
from fastbn.kernels.layer_norm import backward_layers, forward_layers
from fastbn.kernels.sums import chunk_grid

TILE = 8  # rows at most, that are summed one behind the other before they are mapped
BLOCKS = 64  # at most, that rows are cut into for the gradients to weights
DEEP = 32  # runs of rows, that such a block has at least where that leaves four of them: sums take memory too

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # y; stats and affine, as kernels leave them


def lanes(x: np.ndarray) -> int:
    """Elements of a vector."""
    return VECTOR_BYTES // compute_dtype(x.dtype).itemsize


def _runs(array: np.ndarray, length: int) -> np.ndarray:
    """A C-contiguous, non-empty array as kernels read it: (1, rows, length)."""
    return storage(as_flat(array)).reshape(1, -1, length)


def _stores(out: np.ndarray, moved: int, length: int, over: np.ndarray) -> tuple[int, bool]:
    width = lanes(out)
    return (0, False) if length % width else stores(out, moved, width, over)


def _tile(x: np.ndarray, length: int) -> int:
    """Rows that are still in cache when they are read a second time."""
    return max(1, min(TILE, OWNED // (2 * length * x.itemsize)))


def _share(x: np.ndarray, length: int) -> tuple[int, int]:
    """Elements of a row that are summed together; rows of a task."""
    return chunk_grid(1, length)[1], portion(x.size // length, length * x.itemsize, get_num_threads())


def layers(
    x: np.ndarray, length: int, weight: np.ndarray, bias: np.ndarray, centred: bool, eps: float, out: np.ndarray | None
) -> Found:
    """Rows of ``length`` normalised, by weights and biases (P length,) in the dtype that x computes in."""
    y = empty(x.shape, x.dtype) if out is None else out
    rows = _runs(x, length)
    stats, affine = np.empty((3, rows.shape[1])), np.empty((3, rows.shape[1]), weight.dtype)
    share = *_share(x, length), _tile(x, length), *_stores(y, 2, length, x)
    launch(forward_layers, rows, weight, bias, centred, eps, *share, stats, affine, _runs(y, length), work=x.size)
    return y, stats, affine


def layers_backward(
    dy: np.ndarray,
    x: np.ndarray,
    length: int,
    weight: np.ndarray,
    centred: bool,
    stats: np.ndarray,
    affine: np.ndarray,
    out: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """dx; gradients to weights and biases, (2, P length) float64."""
    dx = empty(x.shape, x.dtype) if out is None else out
    patterns = weight.size // length
    runs = x.size // weight.size
    images = max(-(-runs // BLOCKS), min(DEEP, -(-runs // 4)))
    width = (-(-length // lanes(x)) + 1) * lanes(x)  # a whole vector more, for rows with a lead
    partials = np.empty((-(-runs // images), patterns, 2, width))
    share = images, TILE, *_stores(dx, 3, length, dy)
    slopes = np.empty((3, stats.shape[1]), affine.dtype)
    given = _runs(dy, length), _runs(x, length), weight, centred
    launch(backward_layers, *given, *share, stats, affine, slopes, partials, _runs(dx, length), work=x.size)
    return dx, partials.sum(axis=0)[:, :, :length].swapaxes(0, 1).reshape(2, -1)


def groups(
    x: np.ndarray, num_groups: int, weight: np.ndarray, bias: np.ndarray, eps: float, out: np.ndarray | None
) -> Found:
    """Each image's groups of channels normalised; weight, bias: (C,) float64, or empty."""
    if _is_short(x, num_groups):
        scales, shifts = _per_element(weight, x, 1.0), _per_element(bias, x, 0.0)
        return layers(x, scales.size // num_groups, scales, shifts, True, eps, out)
    y = empty_like(x) if out is None else out
    images, channels = x.shape[:2]
    stats = np.empty((3, images * num_groups))
    affine = np.empty((3, images * channels), compute_dtype(x.dtype))
    results = stats, affine
    if is_channels_last(x):
        share = _columns_share(x, num_groups, y, 2, x)
        launch(forward_group_columns, _pixels(x), weight, bias, eps, *share, *results, _pixels(y), work=x.size)
    else:
        length, run = x.size // (images * num_groups), x.size // (images * channels)
        portions = *_share(x, length), *_stores(y, 2, run, x)
        given = _runs(x, length), _runs(x, run), weight, bias, eps
        launch(forward_groups, *given, *portions, *results, _runs(y, run), work=x.size)
    return y, stats, affine


def groups_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, stats: np.ndarray, affine: np.ndarray, out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """dx; gradients to weights and biases, (2, C) float64."""
    images, channels = x.shape[:2]
    if _is_short(x, stats.shape[1] // images):
        length = x.size // stats.shape[1]
        dx, sums = layers_backward(dy, x, length, _per_element(weight, x, 1.0), True, stats, affine, out)
        return dx, sums.reshape(2, channels, -1).sum(axis=2)
    dx = empty_like(x) if out is None else out
    slopes, sums = np.empty((4, images * channels), affine.dtype), np.empty((2, images * channels))
    constants = stats, affine, slopes, sums
    if is_channels_last(x):
        share = _columns_share(x, stats.shape[1] // images, dx, 3, dy)
        given = _pixels(dy), _pixels(x), weight
        launch(backward_group_columns, *given, *share, *constants, _pixels(dx), work=x.size)
    else:
        length, run = x.size // stats.shape[1], x.size // (images * channels)
        portions = chunk_grid(1, run)[1], _share(x, length)[1], *_stores(dx, 3, run, dy)
        given = _runs(dy, run), _runs(x, run), weight
        launch(backward_groups, *given, *portions, *constants, _runs(dx, run), work=x.size)
    return dx, sums.reshape(2, images, channels).sum(axis=1)


def _is_short(x: np.ndarray, num_groups: int) -> bool:
    """Whether a channel does not fill a vector, so that several are mapped at once, element by element."""
    images, channels = x.shape[:2]
    return num_groups < channels and x.size // (images * channels) < lanes(x) and not is_channels_last(x)


def _per_element(values: np.ndarray, x: np.ndarray, absent: float) -> np.ndarray:
    """A weight or bias of each channel as one of each of an image's elements."""
    size, dtype = x.size // x.shape[0], compute_dtype(x.dtype)
    return np.repeat(values, size // values.size).astype(dtype) if values.size else np.full(size, absent, dtype)


def _pixels(array: np.ndarray) -> np.ndarray:
    """A channels-last array as kernels read it: (N, S, C)."""
    return storage(as_flat(array)).reshape(array.shape[0], -1, array.shape[1])


def _columns_share(x: np.ndarray, num_groups: int, out: np.ndarray, moved: int, over: np.ndarray) -> tuple[int, bool]:
    """Groups of a task; whether ``out`` is streamed."""
    images, channels = x.shape[:2]
    worth = -(-4 * lanes(x) * num_groups // channels)
    block = max(worth, OWNED * images * num_groups // x.nbytes)
    lead, streaming = _stores(out, moved, channels, over)
    whole = block * channels // num_groups % (4 * lanes(x)) == 0 and channels % (4 * lanes(x)) == 0
    return min(block, num_groups), streaming and whole and not lead
