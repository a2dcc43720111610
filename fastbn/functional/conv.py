"""Two-dimensional convolution (cross-correlation, as PyTorch and ONNX mean it)."""

from typing import Any

import numpy as np

from fastbn._checks import as_pair, check_float, check_int, check_per_channel, check_rank, check_same_dtype, check_shape
from fastbn._threads import launch, max_threads
from fastbn._views import as_flat, check_out, dense, element_strides, empty_like, in_order_of
from fastbn.errors import ArgumentError, ShapeError
from fastbn.kernels import conv as kernels
from fastbn.kernels._simd import TILE_ROWS

IMAGE_AXES = "(N, C, H, W)"

Pair = int | tuple[int, int]


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Convolve ``x`` with ``weight``, add ``bias`` and ``residual``, then max(y, 0) if ``relu``.

    x: (N, C_in, H, W), float32 or float64, C-contiguous or channels-last. weight: (C_out, C_in / groups, kh, kw),
    bias: (C_out,), of x's dtype. stride, padding (zeros on both sides, or "valid" or, at stride 1, "same"), dilation:
    an integer or (h, w). residual: as the output.
    Returns (N, C_out, OH, OW) in the memory order of ``x``, OH = (H + 2 padding - dilation (kh - 1) - 1) // stride + 1;
    out: written and returned if given, apart from ``x``. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv2d"
    window, y_shape = _geometry(who, x, weight, stride, padding, dilation, groups)
    if bias is not None:
        check_same_dtype(who, "bias", bias, "x", x)
        check_per_channel(who, "bias", bias, weight.shape[0])
    source = dense(x)
    if residual is not None:
        check_same_dtype(who, "residual", residual, "x", x)
        check_shape(who, "residual", residual, y_shape, "as the output")
    if out is None:
        y = empty_like(source, y_shape)
    else:
        check_out(who, out, y_shape, source, {"residual": residual})
        if np.may_share_memory(x, out):
            raise ArgumentError(f"{who}: out must be apart from x, got an overlap")
        y = out
    if y.size == 0:
        return y
    none = np.empty(0, x.dtype)
    if weight.size == 0:
        raise ShapeError(f"{who}: weight must not be empty, got shape {weight.shape}")
    launch(
        kernels.conv2d,
        as_flat(source),
        source.shape,
        element_strides(source),
        _pack_weight(weight, groups),
        none if bias is None else as_flat(np.ascontiguousarray(bias)),
        none if residual is None else as_flat(in_order_of(residual, y)),
        as_flat(y),
        y_shape,
        element_strides(y),
        window,
        groups,
        relu,
        _workspace(kernels.forward_workspace(x.itemsize), x.dtype),
        work=y.size * weight[0].size // 16,
    )
    return y


def conv2d_backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    need_dx: bool = True,
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Gradients of ``conv2d`` without residual and ReLU: (dx, dweight, dbias), dbias summed in float64.

    dy: as the output, x and weight: as in the forward pass. need_dx=False leaves dx out (None), as for a network's
    first layer. Raises ShapeError, DtypeError, ArgumentError.
    """
    who = "conv2d_backward"
    window, y_shape = _geometry(who, x, weight, stride, padding, dilation, groups)
    check_same_dtype(who, "dy", dy, "x", x)
    check_shape(who, "dy", dy, y_shape, "as the output")
    source = dense(x)
    grad = in_order_of(dy, source)
    dx = np.zeros_like(source) if need_dx else None
    if dy.size == 0:
        return dx, np.zeros(weight.shape, x.dtype), np.zeros(weight.shape[0], x.dtype)
    work = y_shape[0] * y_shape[2] * y_shape[3] * weight.size // 16
    if dx is not None:
        launch(
            kernels.conv2d_backward_data,
            as_flat(grad),
            y_shape,
            element_strides(grad),
            as_flat(np.ascontiguousarray(weight)),
            as_flat(dx),
            source.shape,
            element_strides(dx),
            window,
            groups,
            _workspace(kernels.backward_data_workspace(x.itemsize, window[0] * window[1]), x.dtype),
            work=work,
        )
    splits, images_at_once = _splits(y_shape[0], weight)
    partials = np.empty((splits, *weight.shape), x.dtype)
    launch(
        kernels.conv2d_backward_weight,
        images_at_once,
        as_flat(grad),
        y_shape,
        element_strides(grad),
        as_flat(source),
        source.shape,
        element_strides(source),
        window,
        groups,
        as_flat(partials),
        _workspace(kernels.backward_weight_workspace(x.itemsize, weight.shape[0] // groups), x.dtype),
        work=work,
    )
    return dx, partials.sum(axis=0), grad.sum(axis=(0, 2, 3), dtype=np.float64).astype(x.dtype)


def window_extent(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Outputs along one axis, 0 or less if the kernel does not fit."""
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _geometry(
    who: str, x: np.ndarray, weight: np.ndarray, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[tuple[int, ...], tuple[int, int, int, int]]:
    """The kernels' ``window`` and the output's shape."""
    check_float(who, "x", x)
    check_rank(who, "x", x, (4,), IMAGE_AXES)
    check_same_dtype(who, "weight", weight, "x", x)
    check_rank(who, "weight", weight, (4,), "(C_out, C_in / groups, kh, kw)")
    check_int(who, "groups", groups, 1)
    channels_out, group_channels, kernel_h, kernel_w = weight.shape
    if x.shape[1] != group_channels * groups or channels_out % groups:
        raise ShapeError(
            f"{who}: weight must have shape (a multiple of {groups}, {x.shape[1]} / {groups}, kh, kw) "
            f"for x of shape {x.shape} and groups {groups}, got {weight.shape}"
        )
    strides = as_pair(who, "stride", stride, 1)
    dilations = as_pair(who, "dilation", dilation, 1)
    pads = resolve_padding(who, padding, (kernel_h, kernel_w), strides, dilations)
    extent = [window_extent(x.shape[2 + i], weight.shape[2 + i], strides[i], pads[i], dilations[i]) for i in range(2)]
    if min(extent) < 1:
        raise ShapeError(
            f"{who}: x must be at least as large as the dilated kernel less the padding, "
            f"got {x.shape[2:]} for a kernel of {(kernel_h, kernel_w)}"
        )
    window = (kernel_h, kernel_w, *strides, *pads, *dilations)
    return window, (x.shape[0], channels_out, extent[0], extent[1])


def resolve_padding(
    who: str, padding: Any, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> tuple[int, int]:
    """Padding as a pair: integers as they are, "valid" as 0, "same" as what keeps the size at stride 1."""
    if padding == "valid":
        return 0, 0
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if stride != (1, 1) or any(total % 2 for total in totals):
            raise ArgumentError(
                f"{who}: padding 'same' must come with stride 1 and odd kernels, got stride {stride}, kernel {kernel}"
            )
        return totals[0] // 2, totals[1] // 2
    if isinstance(padding, str):
        raise ArgumentError(f"{who}: padding must be an integer, a pair, 'valid' or 'same', got {padding!r}")
    return as_pair(who, "padding", padding, 0)


def _pack_weight(weight: np.ndarray, groups: int) -> np.ndarray:
    """(C_out, C_in / groups, kh, kw) as flat panels (groups, row panels, K, TILE_ROWS), zero past the edge."""
    rows = weight.shape[0] // groups
    depth = weight[0].size
    panels = -(-rows // TILE_ROWS)
    padded = np.zeros((groups, panels * TILE_ROWS, depth), weight.dtype)
    padded[:, :rows] = weight.reshape(groups, rows, depth)
    return np.ascontiguousarray(padded.reshape(groups, panels, TILE_ROWS, depth).swapaxes(2, 3)).reshape(-1)


def _workspace(elements: int, dtype: np.dtype) -> np.ndarray:
    return np.empty((max_threads(), elements), dtype)


def _splits(images: int, weight: np.ndarray) -> tuple[int, int]:
    """Runs of images whose weight gradients are summed apart, and the images in each: from the shape alone."""
    most = max(1, min(16, (16 << 20) // weight.size))
    images_at_once = -(-images // most)
    return -(-images // images_at_once), images_at_once
