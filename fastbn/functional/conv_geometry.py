"""Where a convolution finds its inputs: planes, phases and offsets, as ``kernels.conv`` reads them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np


class Window(NamedTuple):
    """Kernel size, stride, padding and dilation, each (h, w)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Phase(NamedTuple):
    """The pixels of dx whose row and column are ``first_row`` and ``first_column`` modulo the stride.

    height, width: how many. rows, columns: the kernel rows and columns that reach them.
    """

    first_row: int
    first_column: int
    height: int
    width: int
    rows: np.ndarray
    columns: np.ndarray


@dataclass(frozen=True)
class Planes:
    """One channel as planes of ``height`` x ``width``, one for each pair of ``starts_h`` and ``starts_w``.

    Element (row, column) of a plane is the pixel (start_h + row stride, start_w + column stride). channel_size:
    elements of a channel's planes. offsets: for each phase, the distance of the pixel under weight k = (channel, kernel
    row, kernel column) from the output pixel's own q. phases: of the gradient to the input; sparse: it has zeros
    that no phase reaches.
    """

    starts_h: np.ndarray
    starts_w: np.ndarray
    stride: tuple[int, int]
    height: int
    width: int
    channel_size: int
    offsets: tuple[np.ndarray, ...] = ()
    phases: tuple[Phase, ...] = ()
    sparse: bool = False

    @classmethod
    def plain(cls, height: int, width: int, channel_size: int) -> Self:
        """The image itself, with zeros on the right and at the end."""
        zero = np.zeros(1, np.int64)
        return cls(zero, zero, (1, 1), height, width, channel_size)


@lru_cache(maxsize=256)
def forward_planes(channels: int, out_size: tuple[int, int], window: Window) -> Planes:
    """Planes of x for the output and for the gradient to the weights; ``channels`` are a group's."""
    # The kernel row r of output row o looks at o stride + r dilation - padding: residue and quotient by the stride.
    taps = [np.arange(window.kernel[i]) * window.dilation[i] for i in range(2)]
    residues = [np.unique(taps[i] % window.stride[i]) for i in range(2)]
    size = [out_size[i] + int(taps[i][-1]) // window.stride[i] for i in range(2)]
    places = [(np.searchsorted(residues[i], taps[i] % window.stride[i]), taps[i] // window.stride[i]) for i in range(2)]
    (plane_h, row), (plane_w, column) = places
    plane = size[0] * size[1]
    channel_size = len(residues[0]) * len(residues[1]) * plane
    inner = (plane_h[:, None] * len(residues[1]) + plane_w) * plane + row[:, None] * size[1] + column
    return Planes(
        starts_h=residues[0] - window.padding[0],
        starts_w=residues[1] - window.padding[1],
        stride=window.stride,
        height=size[0],
        width=size[1],
        channel_size=channel_size,
        offsets=(_by_channel(channels, channel_size, inner),),
    )


@lru_cache(maxsize=256)
def backward_planes(channels_out: int, out_size: tuple[int, int], in_size: tuple[int, int], window: Window) -> Planes:
    """Planes of dy for the gradient to x; ``channels_out`` are a group's."""
    axes = [_backward_axis(i, out_size[i], in_size[i], window) for i in range(2)]
    (lead_h, height, phases_h), (lead_w, width, phases_w) = axes
    phases, offsets = [], []
    for first_row, count_h, rows, shift_h in phases_h:
        for first_column, count_w, columns, shift_w in phases_w:
            phases.append(Phase(first_row, first_column, count_h, count_w, rows, columns))
            inner = (shift_h[:, None] + lead_h) * width + shift_w + lead_w
            offsets.append(_by_channel(channels_out, height * width, inner))
    reached = sum(phase.height * phase.width for phase in phases)
    return Planes(
        starts_h=np.array([-lead_h]),
        starts_w=np.array([-lead_w]),
        stride=(1, 1),
        height=height,
        width=width,
        channel_size=height * width,
        offsets=tuple(offsets),
        phases=tuple(phases),
        sparse=reached < in_size[0] * in_size[1],
    )


def _backward_axis(
    axis: int, out_size: int, in_size: int, window: Window
) -> tuple[int, int, list[tuple[int, int, np.ndarray, np.ndarray]]]:
    """Along one axis: zeros before dy, length of the plane, and (first, count, taps, shifts) of every phase.

    Input i = first + t stride gets, from kernel tap r, the output o = t + (first + padding - r dilation) / stride,
    where the stride divides it.
    """
    stride, padding, dilation = window.stride[axis], window.padding[axis], window.dilation[axis]
    phases = []
    for first in range(min(stride, in_size)):
        distance = first + padding - np.arange(window.kernel[axis]) * dilation
        taps = np.flatnonzero(distance % stride == 0)
        if taps.size:
            phases.append((first, -(-(in_size - first) // stride), taps, distance[taps] // stride))
    lead = max((max(0, -int(shifts.min())) for *_, shifts in phases), default=0)
    reach = max((count + int(shifts.max()) for _, count, _, shifts in phases), default=0)
    return lead, lead + max(reach, out_size), phases


def _by_channel(channels: int, channel_size: int, inner: np.ndarray) -> np.ndarray:
    """Offsets for k = (channel, kernel row, kernel column), given those within one channel."""
    return (np.arange(channels)[:, None] * channel_size + inner.reshape(-1)).reshape(-1)
