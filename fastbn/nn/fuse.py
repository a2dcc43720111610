"""Convolution, batch norm and ReLU of a model fused for training: one unit at run time, the same parameters."""

from collections.abc import Mapping
from typing import Any, Self

from fastbn.errors import DtypeError
from fastbn.functional.conv import Pair
from fastbn.nn.activation import ReLU
from fastbn.nn.batchnorm import BatchNorm2d
from fastbn.nn.containers import Residual, Sequential
from fastbn.nn.conv import Conv2d
from fastbn.nn.module import Module


def fuse(model: Module, fused: bool = True, *, replay: bool = False) -> Module:
    """Let ``model`` train every Conv2d with the BatchNorm2d, the sum and the ReLU after it as one unit; in place.

    Looks inside Sequential and Residual. Parameters, names and ``state_dict`` are as before. In training mode such a
    unit keeps one tensor for the backward pass instead of two or three; in eval mode a convolution and the ReLU after
    it are one pass. Their outputs are channels-last. Of many small images of few channels, in NCHW order, the sigmoid
    and the AvgPool2d that come next are part of the unit, too, and the output stays in that order. So do small Linear
    layers train with the BatchNorm1d and the ReLU or sigmoid after them. A module with a forward hook stays by itself.
    replay: record a training pass once some were alike, and repeat it with less of Python: the same bits, sooner where
    layers are small; the memory of a pass is then kept between passes. See ``fastbn.nn.replay``.
    fused=False undoes it. Returns ``model``.
    Raises DtypeError.
    """
    if not isinstance(model, Module):
        raise DtypeError(f"fuse: model must be a fastbn.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, (Sequential, Residual)):
            module.fused = fused
    _set_replay(model, fused and replay)
    return model


def _set_replay(module: Module, replay: bool) -> None:
    """Of the outermost containers: what is in them is part of their passes."""
    if isinstance(module, Sequential):
        module.replay = replay
        replay = False
    for child in module.children():
        _set_replay(child, replay)


class ConvBnReLU2d(Sequential):
    """Conv2d, BatchNorm2d and ReLU that train as one unit; children ``conv``, ``bn`` and ``relu``.

    The arguments are those of Conv2d and BatchNorm2d; relu=False leaves the ReLU out, bias is False by default.
    x: (N, in_channels, H, W); the output is channels-last.
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
        bias: bool = False,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        relu: bool = True,
    ) -> None:
        conv = Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        children: dict[str, Module] = {"conv": conv, "bn": BatchNorm2d(out_channels, eps, momentum)}
        super().__init__({**children, "relu": ReLU()} if relu else children)
        self.fused = True

    @classmethod
    def rebuild(cls, options: Mapping[str, Any], children: Mapping[str, Module]) -> Self:
        """The layer of ``children``: a Conv2d, a BatchNorm2d and perhaps a ReLU."""
        layer = cls.__new__(cls)
        Sequential.__init__(layer, children)
        layer.fused = bool(options.get("fused", False))
        return layer
