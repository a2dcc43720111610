"""The linear layer."""

import math
from typing import Any

import numpy as np

from fastbn._checks import check_int
from fastbn.errors import ShapeError
from fastbn.functional.linear import linear, linear_backward
from fastbn.nn import init
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter


class Linear(Module):
    """``y = x weight^T + bias`` for x (*, in_features); weight (out, in), bias (out,), PyTorch's initial values.

    matrix_only: accept x (N, in_features) only. Set by ``fold``: a batch norm after (N, L, C) acts on axis 1 and
    cannot have been folded.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, matrix_only: bool = False) -> None:
        super().__init__()
        check_int("Linear", "in_features", in_features, 1)
        check_int("Linear", "out_features", out_features, 1)
        self.in_features = in_features
        self.out_features = out_features
        self.matrix_only = matrix_only
        self.weight = Parameter(np.empty((out_features, in_features), np.float32))
        init.kaiming_uniform_(self.weight.data, math.sqrt(5.0))
        self.register_parameter("bias", None)
        if bias:
            bound = 1.0 / math.sqrt(in_features)
            self.bias = Parameter(np.empty(out_features, np.float32))
            init.uniform_(self.bias.data, -bound, bound)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        options = {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias is not None}
        return {**options, "matrix_only": True} if self.matrix_only else options

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(*, in_features) to (*, out_features)."""
        if self.matrix_only and x.ndim != 2:
            raise ShapeError(f"Linear: x must have 2 axes (N, C) once a batch norm is folded in, got shape {x.shape}")
        weight = self.weight.data
        self._keep((x, weight))
        return linear(x, weight, None if self.bias is None else self.bias.data)

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray | None:
        """dx like x, or None unless it is needed."""
        dx, dweight, dbias = linear_backward(dy, *self._take(), need_dx=need_dx, need_dbias=self.bias is not None)
        self.weight.accumulate(dweight)
        if dbias is not None:
            self.bias.accumulate(dbias)
        return dx
