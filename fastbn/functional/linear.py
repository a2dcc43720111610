"""The linear layer: ``y = x W^T + b``."""

import math

import numpy as np

from fastbn._checks import check_float, check_per_channel, check_same_dtype, check_shape
from fastbn._memory import empty, empty_on_lines, scratch
from fastbn._tape import call
from fastbn._threads import get_num_threads, launch, max_threads
from fastbn._views import as_flat, check_out, dense_c, native
from fastbn.errors import ShapeError
from fastbn.functional import conv_point
from fastbn.functional.conv_point import POINT
from fastbn.functional.conv_point_portions import forward_portions
from fastbn.functional.weight_panels import STREAMED_DWEIGHT, passes_caches
from fastbn.kernels import activation as kernels
from fastbn.kernels._simd import VECTOR_BYTES
from fastbn.kernels.gemm import gemm, gemm_workspace, packed_elements, packed_gemm
from fastbn.kernels.linear_few_rows import OUTPUTS, few_rows_gradients
from fastbn.kernels.linear_gradients import linear_gradients

SMALL = 1 << 19  # elements of both operands, at most, to lie where they are: the second cache holds them
# Rows of a left operand for which the right one, a weight, is read where it lies and what comes out is turned: from so
# many on, as what is summed lies side by side in it or not, and so many at most.
LEAST_TURNED, LEAST_TURNED_APART, MOST_TURNED = 12, 24, 128
# Rows, features and multiply-adds, for which the matrix unit is faster.
LEAST_ROWS, LEAST_SIDE, LEAST_WORK = 64, 128, 1 << 23
FEW_TASKS = 8  # of a pass over the weight that makes the gradients of fewer rows
LEAST_APART = 1 << 18  # elements of a weight, from which on it makes the gradients faster by a product each


def linear(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """``y = x weight^T + bias``, then max(y, 0) if ``relu``.

    x: (*, in), float32 or float64. weight: (out, in), bias: (out,), both of x's dtype.
    Returns (*, out), C-contiguous; out: written and returned if given, apart from ``x``. A large float32 layer goes by
    the matrix unit, where there is one: sums that an Inf is part of are NaN then.
    Raises ShapeError, DtypeError, ArgumentError.
    """
    _check("linear", x, weight)
    features_out, features_in = weight.shape
    if bias is not None:
        check_same_dtype("linear", "bias", bias, "x", x)
        check_per_channel("linear", "bias", bias, features_out)
    shape = (*x.shape[:-1], features_out)
    if out is None:
        out = empty(shape, native(x))
    else:
        check_out("linear", out, shape, np.empty((0, 0), x.dtype), apart_from={"x": x, "weight": weight, "bias": bias})
    shift = np.empty(0, native(x)) if bias is None else as_flat(dense_c(bias))
    rows = x.size // features_in if features_in else math.prod(shape[:-1])
    if _by_matrix_unit(rows, features_in, features_out, x.itemsize):
        pixels, y = _as_pixels(dense_c(x).reshape(rows, -1)), _as_pixels(out.reshape(rows, -1))
        conv_point.forward(pixels, _as_kernel(weight), None if bias is None else shift, POINT, 1, None, relu, y)
        return out
    _multiply(rows, features_out, features_in, (x, features_in, 1), (weight, 1, features_in), shift, relu, out)
    return out


def linear_backward(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, *, need_dx: bool = True, need_dbias: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Gradients of ``linear`` without its ReLU: (dx, dweight, dbias), dbias summed in float64.

    dy: (*, out), x: (*, in), weight: (out, in). need_dx=False leaves dx out (None), as for a network's first layer,
    need_dbias=False dbias. Raises ShapeError, DtypeError.
    """
    who = "linear_backward"
    _check(who, x, weight)
    features_out, features_in = weight.shape
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, (*x.shape[:-1], features_out))
    rows = math.prod(x.shape[:-1])
    if _by_matrix_unit(rows, features_in, features_out, x.itemsize):
        of_pixels = _products if weight.size >= LEAST_APART else _gradients_of_pixels
        part, dweight = of_pixels(dense_c(dy).reshape(rows, -1), dense_c(x).reshape(rows, -1), weight, need_dx)
        dbias = _sum_of_rows(dy, rows) if need_dbias else None
        return None if part is None else part.reshape(x.shape), dweight, dbias
    dx = empty(x.shape if need_dx else (0,), native(x))
    dweight = empty(weight.shape, native(x), lasting=True)
    dbias = np.empty(features_out if need_dbias else 0, native(x))
    sizes = rows, features_in, features_out
    if are_small(*sizes):
        gradients(sizes, dense_c(dy), dense_c(x), dense_c(weight), dx, dweight, dbias)
    else:
        few = 0 < rows < LEAST_ROWS and min(features_in, features_out) >= LEAST_SIDE
        of_rows = _gradients_of_few_rows if few else _gradients_apart
        of_rows(sizes, dense_c(dy), dense_c(x), dense_c(weight), dx, dweight)
        if need_dbias:
            dbias = _sum_of_rows(dy, rows)
    return dx if need_dx else None, dweight, dbias if need_dbias else None


def gradients(
    sizes: tuple[int, int, int],
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
) -> None:
    """``linear_backward`` of dense operands that ``are_small``; dx and dbias empty where they are not needed."""
    rows, features_in, features_out = sizes
    launch(
        linear_gradients,
        sizes,
        as_flat(dy),
        as_flat(x),
        as_flat(weight),
        dx.reshape(-1),
        dweight.reshape(-1),
        dbias,
        *gradient_room(sizes, x.dtype),
        get_num_threads(),
        work=rows * features_in * features_out // 8,
    )


def are_small(rows: int, features_in: int, features_out: int) -> bool:
    """Whether no size is 0 and the operands of each of a layer's products are small enough to lie where they are."""
    small, middle, large = sorted((rows, features_in, features_out))
    return small > 0 and (small + middle) * large <= SMALL


def gradient_room(sizes: tuple[int, int, int], dtype: np.dtype) -> tuple[np.ndarray, int, np.ndarray]:
    """Panels of ``linear_gradients``, the elements of those of the weight, and room for every thread."""
    rows, features_in, features_out = sizes
    cut, room = packed_elements(features_in, features_out, True, dtype.itemsize)
    more, _ = packed_elements(features_in, rows, True, dtype.itemsize)
    return np.empty(cut + more, dtype), cut, scratch((max_threads(), room), dtype)


def _gradients_of_pixels(
    dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool
) -> tuple[np.ndarray | None, np.ndarray]:
    """(dx or None, dweight) of matrices, by the matrix unit in one pass."""
    pixels = _as_pixels(dy), _as_pixels(x)
    dkernel, dx, _ = conv_point.backward(*pixels, _as_kernel(weight), POINT, 1, need_dx=need_dx)
    return None if dx is None else as_flat(dx), dkernel.reshape(weight.shape)


def _products(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool) -> tuple[np.ndarray | None, np.ndarray]:
    """As ``_gradients_of_pixels``, each by a product of its own."""
    columns = 1, x.shape[1]
    dx = empty(x.shape, native(x)) if need_dx else None
    if dx is not None:
        conv_point.product(dy, weight, columns, dx)
    dweight = empty(weight.shape, native(x), lasting=True)
    conv_point.product(conv_point.turned(dy), x, columns, dweight)
    return dx, dweight


def _gradients_of_few_rows(
    sizes: tuple[int, int, int], dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dx: np.ndarray, dweight: np.ndarray
) -> None:
    """As ``gradients``, without dbias: dense operands, of which only the weight is large."""
    rows, features_in, features_out = sizes
    at_once = -(-features_out // (FEW_TASKS * OUTPUTS)) * OUTPUTS
    of_x = -(-features_in * x.itemsize // VECTOR_BYTES) * VECTOR_BYTES // x.itemsize * rows
    of_dy = -(-features_out // OUTPUTS) * OUTPUTS * rows
    launch(
        few_rows_gradients,
        sizes,
        at_once,
        as_flat(dy),
        as_flat(x),
        as_flat(weight),
        empty_on_lines((of_x + of_dy,), dweight.dtype),
        empty_on_lines((-(-features_out // at_once), of_x), dweight.dtype),
        dx.reshape(-1),
        dweight.reshape(-1),
        passes_caches(dweight, features_in, STREAMED_DWEIGHT),
        work=weight.size,
    )


def _gradients_apart(
    sizes: tuple[int, int, int], dy: np.ndarray, x: np.ndarray, weight: np.ndarray, dx: np.ndarray, dweight: np.ndarray
) -> None:
    """As ``_gradients_of_few_rows``, of any sizes, one after the other."""
    rows, features_in, features_out = sizes
    none = np.empty(0, native(x))
    _multiply(rows, features_in, features_out, (dy, features_out, 1), (weight, features_in, 1), none, False, dx)
    _multiply(features_out, features_in, rows, (dy, 1, features_out), (x, features_in, 1), none, False, dweight)


def _sum_of_rows(dy: np.ndarray, rows: int) -> np.ndarray:
    """In float64, as dy's dtype."""
    total: np.ndarray = dy.reshape(rows, dy.shape[-1]).sum(axis=0, dtype=np.float64)
    return total.astype(native(dy))


def _by_matrix_unit(rows: int, features_in: int, features_out: int, itemsize: int) -> bool:
    """Whether a layer is large enough to be a convolution of ``rows`` single pixels, and there is a unit for those."""
    sides = min(features_in, features_out)
    if rows < LEAST_ROWS or sides < LEAST_SIDE or rows * features_in * features_out < LEAST_WORK:
        return False
    return forward_portions(rows, features_in, features_out, itemsize).matrix is True


def _as_pixels(matrix: np.ndarray) -> np.ndarray:
    """(rows, features) as (1, features, rows, 1), channels-last."""
    return matrix[None, :, None].transpose(0, 3, 1, 2)


def _as_kernel(weight: np.ndarray) -> np.ndarray:
    return dense_c(weight).reshape(*weight.shape, 1, 1)


def _check(who: str, x: np.ndarray, weight: np.ndarray) -> None:
    check_float(who, "x", x)
    check_same_dtype(who, "weight", weight, "x", x)
    if weight.ndim != 2:
        raise ShapeError(f"{who}: weight must have 2 axes (out, in), got shape {weight.shape}")
    if x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"{who}: x must have shape (*, {weight.shape[1]}) to fit weight, got {x.shape}")


def _multiply(
    rows: int,
    columns: int,
    depth: int,
    left: tuple[np.ndarray, int, int],
    right: tuple[np.ndarray, int, int],
    bias: np.ndarray,
    relu: bool,
    out: np.ndarray,
) -> None:
    """out (rows x columns) = relu(left right + bias); operands come with their (row, depth) / (depth, column) steps."""
    if out.size == 0:
        return
    if depth == 0:
        out[...] = bias if bias.size else 0
        if relu:
            np.maximum(out, 0, out=out)
        return
    (a, a_row, a_depth), (b, b_depth, b_column) = left, right
    a, b = as_flat(dense_c(a)), as_flat(dense_c(b))
    small = (rows + columns) * depth <= SMALL
    least = LEAST_TURNED if b_depth == 1 else LEAST_TURNED_APART
    if not small and least <= rows <= min(columns, MOST_TURNED):
        turned, none = np.empty((columns, rows), out.dtype), np.empty(0, out.dtype)
        _multiply_packed((columns, rows, depth), (b, b_column, b_depth), (a, a_depth, a_row), none, False, turned)
        call(np.add, turned.T, bias if bias.size else 0, out.reshape(rows, columns))
        if relu:
            launch(kernels.relu, out.reshape(-1), out.reshape(-1), work=out.size)
    elif small:
        _multiply_packed((rows, columns, depth), (a, a_row, a_depth), (b, b_depth, b_column), bias, relu, out)
    else:
        workspace = scratch((max_threads(), gemm_workspace(out.itemsize)), out.dtype)
        operands = a, a_row, a_depth, b, b_depth, b_column, bias, bool(relu)
        work = rows * columns * depth // 16
        launch(gemm, rows, columns, depth, *operands, out.reshape(-1), workspace, work=work)


def _multiply_packed(
    sizes: tuple[int, int, int],
    left: tuple[np.ndarray, int, int],
    right: tuple[np.ndarray, int, int],
    bias: np.ndarray,
    relu: bool,
    out: np.ndarray,
) -> None:
    """As ``_multiply``, of flat operands: the left one is read where it lies."""
    rows, columns, depth = sizes
    panels, room = packed_elements(columns, depth, right[2] == 1, out.itemsize)
    share = empty((panels,), out.dtype), scratch((max_threads(), room), out.dtype)
    operands = *left, *right, bias, bool(relu)
    launch(packed_gemm, *sizes, *operands, out.reshape(-1), *share, work=rows * columns * depth // 16)
