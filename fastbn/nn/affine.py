"""What normalising layers share: a weight of ones and a bias of zeros, either of which may be absent."""

import numpy as np

from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter


class AffineModule(Module):
    """A layer with ``weight`` and ``bias``, Parameters or None."""

    def _register_affine(self, shape: int | tuple[int, ...], weight: bool, bias: bool) -> None:
        self.register_parameter("weight", Parameter(np.ones(shape, np.float32)) if weight else None)
        self.register_parameter("bias", Parameter(np.zeros(shape, np.float32)) if bias else None)

    def affine_arrays(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The arrays of weight and bias, None where there is none."""
        return None if self.weight is None else self.weight.data, None if self.bias is None else self.bias.data

    def _accumulate(self, dweight: np.ndarray | None, dbias: np.ndarray | None) -> None:
        if dweight is not None:
            self.weight.accumulate(dweight)
        if dbias is not None:
            self.bias.accumulate(dbias)
