"""A trainable array and its gradient."""

from typing import Any

import numpy as np

from fastbn._tape import current


class Parameter:
    """An array that an optimiser changes.

    data: the values. grad: the gradient, of data's shape and dtype, or None before a backward pass; backward passes
    add to it. requires_grad: False keeps optimisers away.
    """

    def __init__(self, data: np.ndarray, requires_grad: bool = True) -> None:
        self.data = data
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``data``."""
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of ``data``."""
        return self.data.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    def unlock(self) -> None:
        """Make ``data`` a copy that can be written, if it is read-only, as the weights of a folded model are."""
        if not self.data.flags.writeable:
            self.data = self.data.copy()

    def accumulate(self, grad: np.ndarray) -> None:
        """Add ``grad`` to ``self.grad``; nothing if gradients are not required."""
        tape = current()
        if tape is not None:
            tape.add_gradient(self, grad)
        if self.requires_grad:
            self.grad = grad if self.grad is None else self.grad + grad

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.data, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"Parameter({self.data!r})"
