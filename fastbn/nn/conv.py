"""The convolution layers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbn._checks import as_tuple, check_int
from fastbn.errors import ArgumentError
from fastbn.functional.conv import conv2d, conv2d_backward
from fastbn.functional.conv1d import conv1d, conv1d_backward
from fastbn.functional.conv3d import conv3d, conv3d_backward
from fastbn.functional.conv_arguments import resolve_padding
from fastbn.nn import init
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter

Size = int | tuple[int, ...]


class Conv(Module):
    """Convolution of x (N, in_channels, *spatial) over ``axes`` axes; weight (out, in / groups, *kernel_size).

    kernel_size, stride, padding, dilation: an integer or one an axis; padding also "valid" or "same". Initial values
    are PyTorch's.
    """

    axes: int
    convolve: Callable[..., np.ndarray]
    convolve_backward: Callable[..., tuple[np.ndarray | None, np.ndarray, np.ndarray | None]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        check_int(who, "in_channels", in_channels, 1)
        check_int(who, "out_channels", out_channels, 1)
        check_int(who, "groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"{who}: groups must divide in_channels {in_channels} and out_channels {out_channels}, got {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_tuple(who, "kernel_size", kernel_size, 1, self.axes)
        self.stride = as_tuple(who, "stride", stride, 1, self.axes)
        self.dilation = as_tuple(who, "dilation", dilation, 1, self.axes)
        self.padding = resolve_padding(who, padding, self.kernel_size, self.stride, self.dilation)
        self.groups = groups
        self.weight = Parameter(np.empty((out_channels, in_channels // groups, *self.kernel_size), np.float32))
        init.kaiming_uniform_(self.weight.data, math.sqrt(5.0))
        self.register_parameter("bias", None)
        if bias:
            bound = 1.0 / math.sqrt(self.weight.data[0].size)
            self.bias = Parameter(np.empty(out_channels, np.float32))
            init.uniform_(self.bias.data, -bound, bound)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias is not None,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, in_channels, *spatial) to (N, out_channels, *spatial)."""
        weight, bias = self.weight.data, None if self.bias is None else self.bias.data
        self._keep((x, weight))
        return self.convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx like x, or None unless it is needed."""
        options = self.stride, self.padding, self.dilation, self.groups
        dx, dweight, dbias = self.convolve_backward(
            dy, *self._take(), *options, need_dx=need_dx, need_dbias=self.bias is not None
        )
        self.weight.accumulate(dweight)
        if dbias is not None:
            self.bias.accumulate(dbias)
        return dx


class Conv1d(Conv):
    """``Conv`` of x (N, in_channels, L)."""

    axes = 1
    convolve = staticmethod(conv1d)
    convolve_backward = staticmethod(conv1d_backward)


class Conv2d(Conv):
    """``Conv`` of x (N, in_channels, H, W)."""

    axes = 2
    convolve = staticmethod(conv2d)
    convolve_backward = staticmethod(conv2d_backward)


class Conv3d(Conv):
    """``Conv`` of x (N, in_channels, D, H, W)."""

    axes = 3
    convolve = staticmethod(conv3d)
    convolve_backward = staticmethod(conv3d_backward)
