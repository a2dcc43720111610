"""Convolution and linear layers that are trained with their batch norm folded in."""

from typing import Any, ClassVar

import numpy as np

from fastbn._checks import check_float, check_rank
from fastbn.functional.fold import fold_conv_bn_weights, fold_linear_bn_weights
from fastbn.functional.fold_training import Operation, Quantizer
from fastbn.functional.linear import linear, linear_backward
from fastbn.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.nn.conv import Conv, Conv1d, Conv2d, Conv3d, Size
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.linear import Linear


class ConvBn(LayerBn):
    """``LayerBn`` of a convolution; arguments as in ``Conv`` and ``BatchNorm``, but no bias unless asked for."""

    layer_type: ClassVar[type[Conv]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        mode: str = "batch",
        relu: bool = False,
        weight_quantizer: Quantizer | None = None,
    ) -> None:
        super().__init__()
        window = kernel_size, stride, padding, dilation
        conv = self.layer_type(in_channels, out_channels, *window, groups, bias)
        self._adopt(conv, self.norm_type(out_channels, eps, momentum), mode, relu, weight_quantizer)

    def _operation(self) -> Operation:
        conv = self.layer
        options = conv.stride, conv.padding, conv.dilation, conv.groups

        def forward(x: np.ndarray, weight: np.ndarray, bias: Any, relu: bool, out: Any) -> np.ndarray:
            return conv.convolve(x, weight, bias, *options, relu=relu, out=out)

        def backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool) -> Any:
            return conv.convolve_backward(dy, x, weight, *options, need_dx=need_dx)

        return Operation(forward, backward, fold_conv_bn_weights)


class ConvBn1d(ConvBn):
    """``ConvBn`` of x (N, in_channels, L); children conv and bn."""

    layer_type, norm_type = Conv1d, BatchNorm1d


class ConvBn2d(ConvBn):
    """``ConvBn`` of x (N, in_channels, H, W); children conv and bn."""

    layer_type, norm_type = Conv2d, BatchNorm2d


class ConvBn3d(ConvBn):
    """``ConvBn`` of x (N, in_channels, D, H, W); children conv and bn."""

    layer_type, norm_type = Conv3d, BatchNorm3d


class LinearBn1d(LayerBn):
    """``LayerBn`` of a linear layer on x (N, in_features); children linear and bn.

    Arguments as in ``Linear`` and ``BatchNorm1d``. x of three axes is refused: the batch norm would act on another axis
    than the linear layer.
    """

    layer_name = "linear"
    layer_type, norm_type = Linear, BatchNorm1d

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        mode: str = "batch",
        relu: bool = False,
        weight_quantizer: Quantizer | None = None,
    ) -> None:
        super().__init__()
        norm = BatchNorm1d(out_features, eps, momentum)
        self._adopt(Linear(in_features, out_features, bias), norm, mode, relu, weight_quantizer)

    def _check_input(self, x: np.ndarray) -> None:
        check_float("LinearBn1d", "x", x)
        check_rank("LinearBn1d", "x", x, (2,), "(N, C)")

    def _operation(self) -> Operation:
        def forward(x: np.ndarray, weight: np.ndarray, bias: Any, relu: bool, out: Any) -> np.ndarray:
            return linear(x, weight, bias, relu=relu, out=out)

        def backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, need_dx: bool) -> Any:
            return linear_backward(dy, x, weight)

        return Operation(forward, backward, fold_linear_bn_weights)

    def _restrict(self, folded: bool) -> None:
        self.layer.matrix_only = folded
