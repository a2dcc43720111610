"""Rows of a weight with a length of their own, w = g v / |v|, and its gradients; sums in float64."""

import math

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import fma, lanes_of, splat, total, widen
from fastbn.kernels._vector_memory import load, load_part, store_part


@inlined
def _row_product(a, b, first, last):
    """Sum of a[i] b[i]; two sums run side by side, because one waits for its own last addition."""
    lanes, zero = lanes_of(a), splat(a, 0.0)
    whole = first + (last - first) // (2 * lanes) * (2 * lanes)
    even, odd = widen(zero), widen(zero)
    for i in range(first, whole, 2 * lanes):
        even = fma(widen(load(a, i)), widen(load(b, i)), even)
        odd = fma(widen(load(a, i + lanes)), widen(load(b, i + lanes)), odd)
    for i in range(whole, last, lanes):
        count = min(lanes, last - i)
        even = fma(widen(load_part(a, i, count, zero)), widen(load_part(b, i, count, zero)), even)
    return total(even + odd)


@body
def _normalize_row(row, v, g, w):
    first, last = row * v.shape[1], (row + 1) * v.shape[1]
    lanes, zero = lanes_of(v), splat(v, 0.0)
    scale = splat(v, g[row] / math.sqrt(_row_product(v, v, first, last)))
    for i in range(first, last, lanes):
        count = min(lanes, last - i)
        store_part(w, i, load_part(v, i, count, zero) * scale, count)


@driver
def normalize_weight(v, g, w, parallel):
    """w (R, M) = g v / |v|, row by row; g: (R,) float64. A row of zeros becomes NaN."""
    if parallel:
        for row in prange(v.shape[0]):
            _normalize_row(int64(row), v, g, w)
    else:
        for row in range(v.shape[0]):
            _normalize_row(row, v, g, w)


@body
def _backward_row(row, dw, v, g, dv, dg):
    first, last = row * v.shape[1], (row + 1) * v.shape[1]
    lanes, zero = lanes_of(v), splat(v, 0.0)
    square, product = _row_product(v, v, first, last), _row_product(dw, v, first, last)
    length = math.sqrt(square)
    dg[row] = product / length
    scale, along = splat(v, g[row] / length), splat(v, -g[row] / length * product / square)
    for i in range(first, last, lanes):
        count = min(lanes, last - i)
        rest = load_part(v, i, count, zero) * along
        store_part(dv, i, fma(load_part(dw, i, count, zero), scale, rest), count)


@driver
def normalize_weight_backward(dw, v, g, dv, dg, parallel):
    """dg (R,) float64 = dw . v / |v|, dv = g / |v| (dw - dg v / |v|); dv may be dw."""
    if parallel:
        for row in prange(v.shape[0]):
            _backward_row(int64(row), dw, v, g, dv, dg)
    else:
        for row in range(v.shape[0]):
            _backward_row(row, dw, v, g, dv, dg)
