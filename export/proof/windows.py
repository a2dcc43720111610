"""Convolutions and pools in plain NumPy, any number of axes: slow beside a kernel, fast enough to judge one.

The attributes are ONNX's: x (N, C, *in), ``pads`` all beginnings, then all ends, ``auto_pad`` instead of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

COLUMNS = 2**23  # elements of an input unrolled at once: 64 MB of float64


def convolve(x: np.ndarray, w: np.ndarray, groups: int, **window: Any) -> np.ndarray:
    """Conv of x (N, C, *in) with w (M, C / groups, *kernel)."""
    kernel = w.shape[2:]
    strides, dilations, pads, _, sizes = _geometry(x.shape[2:], **(window | {"kernel_shape": kernel}))
    y = np.empty((len(x), w.shape[0], *sizes), x.dtype)
    matrices = w.reshape(groups, w.shape[0] // groups, -1)
    padded = np.pad(x, [(0, 0), (0, 0), *pads])
    rows = max(1, int(COLUMNS // max(1, x.shape[1] * np.prod(kernel) * np.prod(sizes[1:]))))
    for n in range(len(x)):
        windows = _windows(padded[n], kernel, strides, dilations)  # (C, *out, *kernel)
        axes = (0, *range(1 + len(kernel), windows.ndim), *range(1, 1 + len(kernel)))
        for first in range(0, sizes[0], rows):
            part = windows[:, first : first + rows].transpose(axes)
            columns = part.reshape(groups, matrices.shape[2], -1)
            y[n, :, first : first + rows] = (matrices @ columns).reshape(w.shape[0], -1, *sizes[1:])
    return y


def convolve_transpose(x: np.ndarray, w: np.ndarray, groups: int, **window: Any) -> np.ndarray:
    """ConvTranspose of x (N, C, *in) with w (C, M / groups, *kernel)."""
    kernel, inputs = w.shape[2:], x.shape[2:]
    axes = len(kernel)
    strides, dilations = window.get("strides") or [1] * axes, window.get("dilations") or [1] * axes
    extra = window.get("output_padding") or [0] * axes
    full = [s * (i - 1) + d * (k - 1) + 1 for s, i, d, k in zip(strides, inputs, dilations, kernel, strict=True)]
    begins, sizes = _crop(full, extra, [s * i for s, i in zip(strides, inputs, strict=True)], window)
    matrices = w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)
    columns = matrices @ x.reshape(len(x), groups, w.shape[0] // groups, -1)
    columns = columns.reshape(len(x), groups * w.shape[1], *kernel, *inputs)
    room = [max(f + e, b + s) for f, e, b, s in zip(full, extra, begins, sizes, strict=True)]
    y = np.zeros((len(x), groups * w.shape[1], *room), x.dtype)
    for tap in np.ndindex(*kernel):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        where = [slice(b, b + s * (i - 1) + 1, s) for b, s, i in zip(starts, strides, inputs, strict=True)]
        y[(slice(None), slice(None), *where)] += columns[(slice(None), slice(None), *tap)]
    where = [slice(b, b + s) for b, s in zip(begins, sizes, strict=True)]
    return y[(slice(None), slice(None), *where)]


def _crop(
    full: Sequence[int], extra: Sequence[int], same: Sequence[int], window: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """Where a transposed convolution's output begins in all that its taps reach, and its sizes."""
    pads, auto_pad, wanted = window.get("pads"), window.get("auto_pad") or "NOTSET", window.get("output_shape")
    if not wanted and auto_pad.startswith("SAME"):
        wanted = same
    if wanted:
        total = [f + e - s for f, e, s in zip(full, extra, wanted, strict=True)]
        begins = [max(t, 0) // 2 if auto_pad == "SAME_UPPER" else max(t, 0) - max(t, 0) // 2 for t in total]
        return begins, list(wanted)
    if not pads or auto_pad == "VALID":
        return [0] * len(full), [f + e for f, e in zip(full, extra, strict=True)]
    begins, ends = pads[: len(full)], pads[len(full) :]
    return list(begins), [f + e - b - d for f, e, b, d in zip(full, extra, begins, ends, strict=True)]


def max_pool(x: np.ndarray, column_major: bool, **window: Any) -> tuple[np.ndarray, np.ndarray]:
    """Maximum of every window, and its position in x as if it were flat; the spatial axes reversed if column_major."""
    kernel = window["kernel_shape"]
    strides, dilations, pads, overhang, sizes = _geometry(x.shape[2:], **window)
    widths = [(0, 0), (0, 0), *((b, e + more) for (b, e), more in zip(pads, overhang, strict=True))]
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    places = np.arange(np.prod(x.shape[2:], dtype=int)).reshape(x.shape[2:], order="F" if column_major else "C")
    padded, where = np.pad(x, widths, constant_values=lowest), np.pad(places, widths[2:], constant_values=-1)
    y, indices = np.empty((*x.shape[:2], *sizes), x.dtype), np.empty((*x.shape[:2], *sizes), np.int64)
    flat = (*sizes, -1)
    at = _windows(where[None], kernel, strides, dilations).reshape(flat)
    for n, c in np.ndindex(*x.shape[:2]):
        values = _windows(padded[n, c][None], kernel, strides, dilations).reshape(flat)
        best = np.argmax(np.where(at < 0, lowest, values), axis=-1)[..., None]
        y[n, c] = np.take_along_axis(values, best, -1)[..., 0]
        indices[n, c] = np.take_along_axis(at, best, -1)[..., 0] + (n * x.shape[1] + c) * places.size
    return y, indices


def average_pool(x: np.ndarray, include_pad: bool, **window: Any) -> np.ndarray:
    """Mean of every window, over what it covers of x, or of x and its padding."""
    kernel = window["kernel_shape"]
    strides, dilations, pads, overhang, sizes = _geometry(x.shape[2:], **window)
    beyond = [(0, more) for more in overhang]
    weight = np.pad(np.ones(x.shape[2:], x.dtype), pads, constant_values=float(include_pad))
    padded, weight = np.pad(x, [(0, 0), (0, 0), *map(_total, pads, beyond)]), np.pad(weight, beyond)
    total, count = np.zeros((*x.shape[:2], *sizes), x.dtype), np.zeros(sizes, x.dtype)
    for where in _taps(kernel, strides, dilations, sizes):
        total += padded[(slice(None), slice(None), *where)]
        count += weight[where]
    return total / count


def _total(pad: tuple[int, int], beyond: tuple[int, int]) -> tuple[int, int]:
    return pad[0] + beyond[0], pad[1] + beyond[1]


def _taps(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[slice, ...]]:
    for tap in np.ndindex(*kernel):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        yield tuple(slice(b, b + s * (o - 1) + 1, s) for b, s, o in zip(starts, strides, sizes, strict=True))


def _windows(x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> np.ndarray:
    """(C, *in) as (C, *out, *kernel), a view."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    view = sliding_window_view(x, reach, axis=tuple(range(1, x.ndim)))
    steps = [slice(None, None, step) for step in (*strides, *dilations)]
    return view[(slice(None), *steps)]


def _geometry(
    inputs: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str | None = None,
    ceil_mode: int | None = 0,
) -> tuple[list[int], list[int], list[tuple[int, int]], list[int], list[int]]:
    """Strides, dilations, padding (begin, end), how far windows reach beyond that, and output sizes, axis by axis."""
    axes = len(inputs)
    strides, dilations = list(strides or [1] * axes), list(dilations or [1] * axes)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sizes = [-(-i // s) for i, s in zip(inputs, strides, strict=True)]
        total = [max((o - 1) * s + r - i, 0) for o, s, r, i in zip(sizes, strides, reach, inputs, strict=True)]
        pairs = [(t // 2, t - t // 2) if auto_pad == "SAME_UPPER" else (t - t // 2, t // 2) for t in total]
        return strides, dilations, pairs, [0] * axes, sizes
    given = list(pads) if pads and auto_pad != "VALID" else [0] * (2 * axes)
    pairs = list(zip(given[:axes], given[axes:], strict=True))
    sizes, overhang = [], []
    for i, s, r, (begin, end) in zip(inputs, strides, reach, pairs, strict=True):
        slack = i + begin + end - r
        size = (-(-slack // s) if ceil_mode else slack // s) + 1
        if ceil_mode and (size - 1) * s >= i + begin:  # a window must begin in the input or before it
            size -= 1
        sizes.append(size)
        overhang.append(max((size - 1) * s - slack, 0))
    return strides, dilations, pairs, overhang, sizes
