"""Which batch norm kernel reads an array, in what portions, with which stores: decided here and nowhere else.

What is summed together depends on the shape alone, so that the bits do not depend on the number of threads; who sums
it, and how much an elementwise map takes at a time, may.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fastbn._cache import beyond_cache
from fastbn._memory import SMALLEST, empty
from fastbn._threads import MIN_PARALLEL_WORK, get_num_threads, run
from fastbn._views import TO_LAST, as_flat, channels_second, compute_dtype, storage
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.batch_norm_columns import backward_columns, forward_columns, normalize_columns
from fastbn.kernels.batch_norm_matrix import backward_matrix, forward_matrix, normalize_matrix
from fastbn.kernels.batch_norm_rows import forward_rows, moments_rows, normalize_rows
from fastbn.kernels.batch_norm_rows_backward import backward_rows, gradient_rows, products_rows
from fastbn.kernels.channels import D_MAX, R_MAX, D, R
from fastbn.kernels.sums import chunk_count, chunk_grid

SHORT_ROW = 64  # elements; of shorter rows, columns are summed
SHORT_IN_CACHE = 16  # the same, of arrays of up to IN_CACHE bytes: where rows begin in memory matters less there
IN_CACHE = 1 << 20
PORTION = 1 << 16  # bytes, about, that a task of an elementwise map writes
MATRIX_CHUNKS = 64  # that an (M, C) array is cut into at most
CHUNK_ROWS = 64  # that one of them has at least
FEW_ROWS = 256  # of a matrix, which are not cut: tasks own some of its columns
LEFT_ROWS = 64  # at least, of a matrix whose rows are read several at a time
OWNERS = 2  # such tasks for every thread
OWNED = 1 << 18  # bytes, about, of the channels of a task that owns them
OWNED_NEAR = 1 << 14  # the same, where that is LEAST_NEAR channels or more: they stay in a core's first cache
LEAST_NEAR = 4
MOST_OWNED = 64  # channels

# weight, bias, running mean and variance, of one dtype: (C,), or empty.
Parameters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Limits = tuple[float, float]  # r_max and d_max of batch renorm


class Plan(NamedTuple):
    """How kernels read and share out dense, non-empty arrays of one shape.

    kind: "channels", long rows, all of a channel for one task; "rows", long rows of too few channels for that;
    "columns", short rows; "matrix", channels-last and (M, C).
    axes: of channels-last arrays, in memory order; else empty. memory: the shape in that order.
    shape: of the view that kernels are given: (N, C, S), and (M, columns) of a matrix, whose rows hold the channels
    once or, where few of them would not fill a vector, several times. lanes: elements of a vector.
    run: elements that a row must be a multiple of to be streamed. chunk: images and positions, or rows of a matrix,
    that are summed together. block: channels of a task that owns them; of a matrix 0 unless its rows are few.
    portion: rows (n, c), or rows of a matrix, that a task of the map by given constants takes. partials: shape of the
    room for two sums of each channel or column of each chunk. words: shape of an array with one bit an element.
    computed: the dtype of constants. nbytes: of such an array, or of the one that it is a part of.
    """

    kind: str
    axes: tuple[int, ...]
    memory: tuple[int, ...]
    shape: tuple[int, ...]
    channels: int
    lanes: int
    run: int
    itemsize: int
    computed: np.dtype
    chunk: tuple[int, ...]
    block: int
    portion: int
    partials: tuple[int, int, int]
    words: tuple[int, ...]
    dtype: np.dtype
    nbytes: int

    def view(self, array: np.ndarray) -> np.ndarray:
        """``array`` as kernels read it."""
        if self.axes:
            array = array.transpose(self.axes)
        if self.itemsize == 2 or not array.flags.carray:
            array = storage(as_flat(array))
        return array.reshape(self.shape)

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """A new array of the kind that the plan is for, uninitialised, and its view."""
        array = np.empty(self.memory, self.dtype) if self.nbytes < SMALLEST else empty(self.memory, self.dtype)
        view = (array if self.itemsize > 2 else storage(array)).reshape(self.shape)
        return channels_second(array) if self.axes else array, view

    def output(self, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """``out``, or if that is None a new array, and its view."""
        return self.empty() if out is None else (out, self.view(out))

    def by_column(self, constants: np.ndarray, lead: int) -> np.ndarray:
        """Room for per-channel ``constants`` column by column of a matrix; themselves where they are that."""
        columns = self.shape[1]
        wide = lead or columns > self.channels
        return np.empty((len(constants), columns), constants.dtype) if wide else constants

    def signs(self) -> np.ndarray:
        """Room for one bit an element."""
        return np.empty(self.words, np.uint16 if self.lanes == 16 else np.uint8)

    def stores(self, out: np.ndarray, moved: int, also: bool, *over: np.ndarray | None) -> tuple[int, bool]:
        """(lead, streaming) for an output that is written while ``moved`` arrays of its size, itself one, are moved.

        also: another output is written vector by vector along with ``out``, so that there can be no lead.
        over: operands that ``out`` may be written over; they are in cache then, and would have to leave it.
        """
        if self.shape[-1] % self.run or not beyond_cache(moved * self.nbytes):
            return 0, False
        lead, streaming = _unless_over(out, self.lanes, *over)
        aligned = lead == 0 or not (also or self.kind == "columns" or (self.kind == "matrix" and self.block))
        return (lead, streaming) if aligned else (0, False)


def stores(out: np.ndarray, moved: int, lanes: int, *over: np.ndarray | None) -> tuple[int, bool]:
    """(lead, streaming) for rows of whole vectors; see ``Plan.stores``."""
    return _unless_over(out, lanes, *over) if beyond_cache(moved * out.nbytes) else (0, False)


def _unless_over(out: np.ndarray, lanes: int, *over: np.ndarray | None) -> tuple[int, bool]:
    """(lead, streaming) for an output that is streamed unless it is written over one of its operands."""
    begin = _address(out)
    if any(a is not None and _address(a) == begin for a in over):
        return 0, False
    return -begin % (lanes * out.itemsize) // out.itemsize, True


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def plan_for(x: np.ndarray) -> Plan:
    """The plan for a dense, non-empty ``x``."""
    plan = plan_if_dense(x)
    assert plan is not None
    return plan


def plan_if_dense(x: np.ndarray) -> Plan | None:
    """The plan for ``x``; None if it is empty, or dense in neither memory order."""
    return _plan(x.shape, x.strides, x.dtype, get_num_threads())


def portion(rows: int, row_bytes: int, threads: int) -> int:
    """Rows that a task of a map takes."""
    return max(1, min(-(-PORTION // row_bytes), -(-rows // (4 * threads))))


def _is_run(axes: Iterable[int], shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether an array is one run of memory, ``axes`` from the innermost on; any stride does for a length of 1."""
    for axis in axes:
        if shape[axis] > 1 and strides[axis] != itemsize:
            return False
        itemsize *= shape[axis]
    return True


@lru_cache(maxsize=1024)
def _plan(shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype, threads: int) -> Plan | None:
    n, c = shape[:2]
    itemsize, computed = dtype.itemsize, compute_dtype(dtype)
    axes = () if _is_run(reversed(range(len(shape))), shape, strides, itemsize) else TO_LAST[len(shape)]
    if 0 in shape or (axes and not _is_run(reversed(axes), shape, strides, itemsize)):
        return None
    rows_of_channels = len(shape) == 2 or bool(axes)
    memory = tuple(shape[axis] for axis in axes) or shape
    lanes = VECTOR_BYTES // computed.itemsize
    s = math.prod(shape[2:])
    nbytes = n * c * s * itemsize

    if rows_of_channels or s == 1:
        copies = _copies(n * s, c, lanes, 4 if nbytes <= IN_CACHE else 8)
        m, width = n * s // copies, c * copies
        chunk = max(CHUNK_ROWS, -(-m // MATRIX_CHUNKS))
        vectors = -(-width // lanes)
        owned = m <= FEW_ROWS and copies == 1
        partials = 2, -(-m // chunk), vectors * lanes
        return Plan(
            kind="matrix",
            axes=axes,
            memory=memory,
            shape=(m, width),
            channels=c,
            lanes=lanes,
            run=4 * lanes,
            itemsize=itemsize,
            computed=computed,
            chunk=(chunk,),
            block=-(-c // (OWNERS * threads * 4 * lanes)) * 4 * lanes if owned else 0,
            portion=portion(m, width * itemsize, threads),
            partials=partials,
            words=(m, vectors),
            dtype=dtype,
            nbytes=nbytes,
        )
    if n >= 8 and s < (SHORT_ROW if nbytes > IN_CACHE else SHORT_IN_CACHE):
        block = max(1, min(-(-c // 32), OWNED // (n * s * itemsize)))
        words = -(-c // block) * -(-block * s // lanes)
        return Plan(
            kind="columns",
            axes=(),
            memory=shape,
            shape=(n, c, s),
            channels=c,
            lanes=lanes,
            run=4 * lanes,
            itemsize=itemsize,
            computed=computed,
            chunk=(),
            block=block,
            portion=portion(n * c, s * itemsize, threads),
            partials=(0, 0, 0),
            words=(n, words),
            dtype=dtype,
            nbytes=nbytes,
        )
    # Whole channels for every thread, or no work for a second one.
    owned = c % threads == 0 or c >= 4 * threads or n * c * s < MIN_PARALLEL_WORK
    block = _owned(c, n * s * itemsize, threads)
    return Plan(
        kind="channels" if owned else "rows",
        axes=(),
        memory=shape,
        shape=(n, c, s),
        channels=c,
        lanes=lanes,
        run=lanes,
        itemsize=itemsize,
        computed=computed,
        chunk=chunk_grid(n, s),
        block=block,
        portion=portion(n * c, s * itemsize, threads),
        partials=(chunk_count(n, s), 2, c),
        words=(n, c, -(-s // lanes)),
        dtype=dtype,
        nbytes=nbytes,
    )


def _owned(c: int, channel_bytes: int, threads: int) -> int:
    """Channels that a task owns: whole registers of float64 where it has that many."""
    near, fit = OWNED_NEAR // channel_bytes, max(1, OWNED // channel_bytes)
    block = min(near if near >= LEAST_NEAR else fit, -(-c // (4 * threads)), MOST_OWNED)
    lanes = VECTOR_BYTES // 8
    return block if block < lanes else block - block % lanes


def _copies(m: int, c: int, lanes: int, least: int) -> int:
    """Rows of (m, c) to read as one, so that it is made of ``least`` vectors, or more by fours, or else of vectors.

    Constants are then repeated, too, which takes longer than a row does: enough rows must be left.
    """
    copies = 1
    while m % (2 * copies) == 0 and m >= 2 * copies * LEFT_ROWS and c * copies < 1024:
        if c * copies % (4 * lanes) == 0 and c * copies >= least * lanes:
            break
        copies *= 2
    return copies if c * copies % lanes == 0 or c * copies < 4 * lanes else 1


# The first channel with a negative running variance, with which nothing was written, or -1; y, stats, affine, and the
# signs of a ReLU's operand where they were to be kept.
Found = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


def forward(
    plan: Plan,
    x: np.ndarray,
    residual: np.ndarray | None,
    relu: bool,
    parameters: Parameters,
    momentum: float,
    eps: float,
    training: bool,
    keep_signs: bool,
    out: np.ndarray | None,
    limits: Limits | None = None,
) -> Found:
    """y, by the batch's statistics, which move the running ones, or by these; see ``kernels.channels``.

    limits: in training, those of batch renorm.
    """
    y, y_view = plan.output(out)
    stats, affine = np.empty((3, plan.channels)), np.empty((3, plan.channels), plan.computed)
    renorm = None
    if training and limits is not None:
        stats, renorm = _stats_to_renormalize(parameters, eps, limits), True
    signs = plan.signs() if keep_signs else None
    stores = plan.stores(y, 2 if residual is None else 3, keep_signs, x, residual)
    given = plan.view(x), None if residual is None else plan.view(residual), *parameters
    results = -math.inf if not relu else 0.0, *stores, stats, affine, signs, y_view
    if training:
        negative = _train(plan, given, (momentum, eps, renorm), results, x.size)
    else:
        negative = normalize_by(plan, given, eps, results, x.size // 2)  # training reads twice
    return negative, y, stats, affine, signs


def _stats_to_renormalize(parameters: Parameters, eps: float, limits: Limits) -> np.ndarray:
    """``stats`` of batch renorm as kernels take them; see ``kernels.channels``."""
    _, _, mean, var = parameters
    stats = np.empty((7, mean.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / np.sqrt(var.astype(np.float64) + eps)
    inverse[inverse == np.inf] = 0
    stats[R], stats[D] = mean, inverse
    stats[R_MAX], stats[D_MAX] = limits
    return stats


def _train(
    plan: Plan,
    given: tuple[Any, ...],
    options: tuple[float, float, bool | None],
    results: tuple[Any, ...],
    work: int,
) -> int:
    """options: momentum, eps, and True for batch renorm."""
    if plan.kind == "channels":
        return run(forward_rows, (*given, *options, *plan.chunk, plan.block, *results), work)
    if plan.kind == "columns":
        return run(forward_columns, (*given, *options, plan.block, *results), work)
    x, residual, weight, bias, mean, var = given
    parameters = weight, bias, mean, var, *options
    floor, lead, streaming, stats, affine, signs, y = results
    if plan.kind == "matrix" and plan.block:
        x, residual, y = _as_columns(plan, x, residual, y)
        results = floor, lead, streaming, stats, affine, signs, y
        return run(forward_columns, (x, residual, *parameters, plan.block, *results), work)
    partials = np.empty(plan.partials)
    if plan.kind == "matrix":
        shift = np.empty(plan.partials[2], plan.computed)
        share = *plan.chunk, plan.portion, partials, shift, plan.by_column(affine, lead)
        return run(forward_matrix, (x, residual, *parameters, *share, *results), work)
    negative = run(moments_rows, (x, *parameters, *plan.chunk, partials, stats, affine), work)
    if negative < 0:
        normalize_by(plan, (x, residual, weight, bias, mean[:0], var[:0]), options[1], results, work)
    return negative


def _as_columns(plan: Plan, *views: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
    """Views of a matrix as ``batch_norm_columns`` takes them."""
    return tuple(None if view is None else view.reshape(*plan.shape, 1) for view in views)


def normalize_by(plan: Plan, given: tuple[Any, ...], eps: float, results: tuple[Any, ...], work: int) -> int:
    """The map by the running statistics in ``given``, or by ready ones if those are empty."""
    if plan.kind == "matrix":
        _, lead, _, _, affine, _, _ = results
        return run(normalize_matrix, (*given, eps, plan.portion, plan.by_column(affine, lead), *results), work)
    *_, signs, _ = results
    if plan.kind == "columns" and signs is not None:
        return run(normalize_columns, (*given, eps, plan.block, *results), work)
    return run(normalize_rows, (*given, eps, plan.portion, *results), work)


def backward(
    plan: Plan,
    dy: np.ndarray,
    x: np.ndarray,
    relu: bool,
    signs: np.ndarray | None,
    stats: np.ndarray,
    affine: np.ndarray,
    batch_stats: bool,
    out: np.ndarray | None,
    masked: bool,
    dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """dx; dy where the ReLU let pass if ``masked``; dweight and dbias as (2, C) of ``dtype``."""
    work = 2 * x.size  # both are read
    dx, dx_view = plan.output(out)
    dresidual, dresidual_view = plan.empty() if masked else (None, None)
    slopes, gradients = np.empty((4, plan.channels), affine.dtype), np.empty((2, plan.channels), dtype)
    if dresidual is None:
        lead, streaming = plan.stores(dx, 3, False, dy)
    else:  # both are streamed, or neither
        lead, streaming = plan.stores(dx, 4, True)
        streaming = streaming and plan.stores(dresidual, 4, True)[1]
    views: tuple[np.ndarray | None, ...] = plan.view(dy), plan.view(x), dx_view, dresidual_view
    few_rows = plan.kind == "matrix" and plan.block
    if few_rows:
        views = _as_columns(plan, *views)
    given = *views[:2], signs, True if relu and signs is None else None
    constants, outputs = (stats, affine, slopes, gradients), views[2:]
    share: tuple[Any, ...]
    if plan.kind == "channels":
        share = *plan.chunk, plan.block, lead, streaming, np.empty((2, plan.channels))
        run(backward_rows, (*given, batch_stats, *share, *constants, *outputs), work)
    elif plan.kind == "columns" or few_rows:
        share = plan.block, streaming
        run(backward_columns, (*given, batch_stats, *share, *constants, *outputs), work)
    elif plan.kind == "matrix":
        wide = plan.by_column(affine, lead), plan.by_column(slopes, lead)
        share = *plan.chunk, plan.portion, np.empty(plan.partials), *wide, lead, streaming
        run(backward_matrix, (*given, batch_stats, *share, *constants, *outputs), work)
    else:
        share = *plan.chunk, streaming, np.empty(plan.partials)
        run(products_rows, (*given, batch_stats, *share, *constants, dresidual_view), work)
        run(gradient_rows, (*given, plan.portion, lead, streaming, affine, slopes, dx_view), work)
    return dx, dresidual, gradients
