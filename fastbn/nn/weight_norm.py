"""Weight norm of a layer's weight."""

from typing import Any

import numpy as np

from fastbn.errors import ArgumentError
from fastbn.functional.weight_norm import norm_except_dim
from fastbn.functional.weight_norm import weight_norm as normalized
from fastbn.functional.weight_norm import weight_norm_backward as normalized_backward
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization, unparametrize


class WeightNorm(Parametrization):
    """A weight as ``g v / |v|`` (Salimans and Kingma 2016, arXiv 1602.07868); put on a layer by ``weight_norm``.

    original0: g, its length, one for each index of ``dim``; original1: v, its direction, of the weight's shape.
    """

    who = "weight_norm"
    main = "original1"

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = dim

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {"dim": self.dim}

    def _adopt(self, weight: Parameter) -> None:
        length = norm_except_dim(weight.data, self.dim)
        if not length.all():
            index = int(np.argmin(length.reshape(-1) != 0))
            raise ArgumentError(f"weight_norm: weight must have a direction, got zeros alone at index {index}")
        self.original0 = Parameter(length, weight.requires_grad)
        self.original1 = weight

    @property
    def data(self) -> np.ndarray:
        """The weight."""
        return normalized(self.original1.data, self.original0.data, self.dim)

    def accumulate(self, grad: np.ndarray) -> None:
        """Add to the gradients of g and v."""
        dv, dg = normalized_backward(grad, self.original1.data, self.original0.data, self.dim)
        self.original0.accumulate(dg)
        self.original1.accumulate(dv)


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Train the parameter ``name`` of ``module`` as a length and a direction; in place, as in PyTorch.

    module: a Linear or convolution. dim: the axis whose indices have a length each; None for one of the whole weight.
    The weight keeps its value. Parameters are then named ``parametrizations.weight.original0`` (g) and ``original1``
    (v), as by ``torch.nn.utils.parametrizations.weight_norm``. ``remove_weight_norm`` and ``fastbn.fold`` give the
    plain weight back, and so does an export. Returns ``module``.
    Raises DtypeError, ArgumentError for a weight that is absent, parametrised already, or 0 throughout an index.
    """
    WeightNorm(dim).put_on(module, name)
    return module


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Undo ``weight_norm``: a plain parameter with the weight's values. Returns ``module``. Raises ArgumentError."""
    unparametrize(module, name, WeightNorm)
    return module
