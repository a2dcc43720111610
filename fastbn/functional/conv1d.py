"""One-dimensional convolution: the two-dimensional one on images of height 1, all of them views."""

from typing import Any

import numpy as np

from fastbn._checks import check_same_dtype, check_shape
from fastbn.functional.conv import conv2d, conv2d_backward
from fastbn.functional.conv_arguments import check_convolution, check_operands

Single = int | tuple[int]


def conv1d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Single = 1,
    padding: Single | str = 0,
    dilation: Single = 1,
    groups: int = 1,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve ``x`` with ``weight``, add ``bias`` and ``residual``, then max(y, 0) if ``relu``.

    x: (N, C_in, L), float32 or float64, C-contiguous or channels-last. weight: (C_out, C_in / groups, k). stride,
    padding, dilation: an integer or a tuple of one. Everything else as in ``conv2d``.
    Returns (N, C_out, OL) in the memory order of ``x``. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv1d"
    sizes, y_shape = check_convolution(who, 1, x, weight, stride, padding, dilation, groups)
    check_operands(who, x, weight, bias, residual, out, y_shape)
    options = _row(sizes)
    operands = {"residual": _image(residual), "relu": relu, "out": _image(out)}
    y = conv2d(_image(x), _image(weight), bias, *options, groups, **operands)
    return y[:, :, 0] if out is None else out


def conv1d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Single = 1,
    padding: Single | str = 0,
    dilation: Single = 1,
    groups: int = 1,
    *,
    need_dx: bool = True,
    need_dbias: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Gradients of ``conv1d`` without residual and ReLU: (dx, dweight, dbias), as ``conv2d_backward`` has them."""
    who = "conv1d_backward"
    sizes, y_shape = check_convolution(who, 1, x, weight, stride, padding, dilation, groups)
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, y_shape, "as the output")
    needs = {"need_dx": need_dx, "need_dbias": need_dbias}
    dx, dweight, dbias = conv2d_backward(_image(dy), _image(x), _image(weight), *_row(sizes), groups, **needs)
    return None if dx is None else dx[:, :, 0], dweight[:, :, 0], dbias


def _image(array: Any) -> Any:
    """(N, C, L) as (N, C, 1, L), a view; None as it is."""
    return None if array is None else array[:, :, None]


def _row(sizes: tuple[Any, ...]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Stride, padding and dilation of images of height 1."""
    _, (stride,), (padding,), (dilation,) = sizes
    return (1, stride), (0, padding), (1, dilation)
