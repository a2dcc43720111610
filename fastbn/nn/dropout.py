"""Dropout (Srivastava et al. 2014), scaled in training so that nothing is left to do in eval mode."""

from typing import Any

import numpy as np

from fastbn._checks import check_float, check_int, check_number, check_shape
from fastbn._views import dense, empty_like, in_order_of
from fastbn.nn import init
from fastbn.nn.module import Module


class Dropout(Module):
    """In training mode each value is 0 with probability p, else divided by 1 - p; in eval mode x itself.

    seed: of ``generator``, which draws the masks; unless given, the seed of ``manual_seed`` decides. A mask does not
    depend on the memory order or dtype of x.
    """

    def __init__(self, p: float = 0.5, seed: int | None = None) -> None:
        super().__init__()
        check_number("Dropout", "p", p, 0.0, 1.0)
        if seed is not None:
            check_int("Dropout", "seed", seed, 0)
        self.p = p
        self.seed = seed
        self.generator = init.spawn_generator() if seed is None else np.random.default_rng(seed)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {"p": self.p} if self.seed is None else {"p": self.p, "seed": self.seed}

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like x, of any shape, float32 or float64."""
        check_float("Dropout", "x", x)
        if not self.training:
            return x
        x = dense(x)
        kept = in_order_of(self.generator.random(x.shape, np.float32) >= self.p, x)
        self._keep(kept)
        return self._masked(x, kept)

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dy where x was kept, divided by 1 - p."""
        kept = self._take()
        check_float("Dropout.backward", "dy", dy)
        check_shape("Dropout.backward", "dy", dy, kept.shape, "as x")
        return self._masked(in_order_of(dy, kept), kept)

    def _masked(self, values: np.ndarray, kept: np.ndarray) -> np.ndarray:
        y = empty_like(values)
        # A product, so that a NaN or an infinity that is dropped still shows.
        with np.errstate(invalid="ignore", over="ignore"):
            np.multiply(values, kept, out=y)
            y *= 1.0 / (1.0 - self.p) if self.p < 1.0 else 0.0
        return y
