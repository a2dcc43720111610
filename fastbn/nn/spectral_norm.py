"""Spectral norm of a layer's weight."""

from typing import Any

import numpy as np

from fastbn._checks import check_int, check_number
from fastbn.functional.spectral_norm import as_matrix, spectral_norm_backward
from fastbn.functional.spectral_norm import spectral_norm as divided
from fastbn.nn import init
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter
from fastbn.nn.parametrization import Parametrization, unparametrize

FIRST_ITERATIONS = 15  # as in PyTorch
VECTORS = "0._u", "0._v"


class SpectralNorm(Parametrization):
    """A weight divided by its largest singular value (Miyato et al. 2018, arXiv 1802.05957); see ``spectral_norm``.

    original: the weight before the division. Buffers 0._u, 0._v: the unit vectors of the power iteration.
    """

    who = "spectral_norm"
    main = "original"

    def __init__(self, n_power_iterations: int = 1, eps: float = 1e-12, dim: int = 0) -> None:
        super().__init__()
        check_int("spectral_norm", "n_power_iterations", n_power_iterations, 1)
        check_number("spectral_norm", "eps", eps, 0.0)
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.dim = dim

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {"n_power_iterations": self.n_power_iterations, "eps": self.eps, "dim": self.dim}

    def _adopt(self, weight: Parameter) -> None:
        rows, columns = as_matrix("spectral_norm", weight.data, self.dim).shape
        u = init.normal_(np.empty(rows, weight.dtype))
        v = init.normal_(np.empty(columns, weight.dtype))
        divided(weight.data, u, v, FIRST_ITERATIONS, self.eps, self.dim)
        self.original = weight
        for name, vector in zip(VECTORS, (u, v), strict=True):
            self.register_buffer(name, vector)

    @property
    def data(self) -> np.ndarray:
        """The weight; in training mode after ``n_power_iterations`` more steps, as in PyTorch."""
        steps = self.n_power_iterations if self.training else 0
        u, v = (self._buffers[name] for name in VECTORS)
        w, saved = divided(self.original.data, u, v, steps, self.eps, self.dim)
        self._keep(saved)
        return w

    def accumulate(self, grad: np.ndarray) -> None:
        """Add to the gradient of ``original``, with u and v of the last reading in training mode as constants."""
        self.original.accumulate(spectral_norm_backward(grad, self._take()))


def spectral_norm(
    module: Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int = 0
) -> Module:
    """Train the parameter ``name`` of ``module`` divided by its largest singular value; in place, as in PyTorch.

    module: a Linear or convolution, whose weight is a matrix with axis ``dim`` first. n_power_iterations: steps towards
    the singular value in every forward pass of training; none in eval mode. eps: the least length that a vector is
    divided by; a weight of zeros becomes NaN. State is named ``parametrizations.weight.original``,
    ``parametrizations.weight.0._u`` and ``_v``, as by ``torch.nn.utils.parametrizations.spectral_norm``.
    ``remove_spectral_norm`` and ``fastbn.fold`` give a plain weight back, and so does an export. Returns ``module``.
    Raises DtypeError, ShapeError, ArgumentError.
    """
    SpectralNorm(n_power_iterations, eps, dim).put_on(module, name)
    return module


def remove_spectral_norm(module: Module, name: str = "weight") -> Module:
    """Undo ``spectral_norm``: a plain parameter with the weight's values. Returns ``module``. Raises ArgumentError."""
    unparametrize(module, name, SpectralNorm)
    return module
