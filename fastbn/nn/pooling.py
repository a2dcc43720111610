"""Pooling layers over (N, C, H, W)."""

from typing import Any

import numpy as np

from fastbn._checks import check_float, check_rank
from fastbn.errors import ArgumentError
from fastbn.functional.conv import Pair
from fastbn.functional.conv_arguments import IMAGE_AXES
from fastbn.functional.pooling import avg_pool2d, avg_pool2d_backward, max_pool2d_backward, max_pool2d_forward
from fastbn.nn.module import Module


class MaxPool2d(Module):
    """The largest value of each window; arguments as in ``functional.max_pool2d``."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        dilation: Pair = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, OH, OW)."""
        y, indices = max_pool2d_forward(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        self._keep((indices, x.shape))
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        return max_pool2d_backward(dy, *self._take())


class AvgPool2d(Module):
    """The mean of each window; arguments as in ``functional.avg_pool2d``."""

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair | None = None,
        padding: Pair = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = kernel_size if stride is None else stride
        self.padding = padding
        self.ceil_mode = ceil_mode
        self.count_include_pad = count_include_pad

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, OH, OW)."""
        self._keep(x)
        return avg_pool2d(x, **self.config())

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        return avg_pool2d_backward(dy, self._take(), **self.config())


class AdaptiveAvgPool2d(Module):
    """The mean of each whole plane: (N, C, H, W) to (N, C, 1, 1). Other output sizes than 1 are refused."""

    def __init__(self, output_size: Pair = 1) -> None:
        super().__init__()
        if output_size not in (1, (1, 1), [1, 1]):
            raise ArgumentError(f"AdaptiveAvgPool2d: output_size must be 1, got {output_size!r}; use AvgPool2d")

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {"output_size": 1}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(N, C, H, W) to (N, C, 1, 1)."""
        check_float("AdaptiveAvgPool2d", "x", x)
        check_rank("AdaptiveAvgPool2d", "x", x, (4,), IMAGE_AXES)
        self._keep(x)
        return avg_pool2d(x, x.shape[2:])

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        x = self._take()
        return avg_pool2d_backward(dy, x, x.shape[2:])
