"""The convolution layer."""

import math
from typing import Any

import numpy as np

from fastbn._checks import as_pair, check_int
from fastbn.errors import ArgumentError
from fastbn.functional.conv import Pair, conv2d, conv2d_backward, resolve_padding
from fastbn.nn import init
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter


class Conv2d(Module):
    """2-d convolution of x (N, in_channels, H, W); weight (out, in / groups, kh, kw), PyTorch's initial values.

    kernel_size, stride, padding, dilation: an integer or (h, w); padding also "valid" or "same".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        who = "Conv2d"
        check_int(who, "in_channels", in_channels, 1)
        check_int(who, "out_channels", out_channels, 1)
        check_int(who, "groups", groups, 1)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"{who}: groups must divide in_channels {in_channels} and out_channels {out_channels}, got {groups}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_pair(who, "kernel_size", kernel_size, 1)
        self.stride = as_pair(who, "stride", stride, 1)
        self.dilation = as_pair(who, "dilation", dilation, 1)
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
        """(N, in_channels, H, W) to (N, out_channels, OH, OW)."""
        self._keep(x)
        bias = None if self.bias is None else self.bias.data
        return conv2d(x, self.weight.data, bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx like x, or None unless it is needed."""
        options = self.stride, self.padding, self.dilation, self.groups
        dx, dweight, dbias = conv2d_backward(
            dy, self._take(), self.weight.data, *options, need_dx=need_dx, need_dbias=self.bias is not None
        )
        self.weight.accumulate(dweight)
        if dbias is not None:
            self.bias.accumulate(dbias)
        return dx
