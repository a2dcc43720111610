"""Losses: ``loss(output, target)`` is a number, ``backward()`` its gradient to the output."""

import numpy as np

from fastbn.errors import StateError
from fastbn.functional.loss import cross_entropy_backward, cross_entropy_forward


class CrossEntropyLoss:
    """Mean softmax cross-entropy of logits (N, classes) against integer targets (N,)."""

    def __init__(self) -> None:
        self._saved: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __call__(self, logits: np.ndarray, targets: np.ndarray) -> float:
        loss, rows = cross_entropy_forward(logits, targets)
        self._saved = logits, targets, rows
        return loss

    def backward(self) -> np.ndarray:
        """Dlogits (N, classes) of the last call. Raises StateError without one."""
        saved, self._saved = self._saved, None
        if saved is None:
            raise StateError("CrossEntropyLoss.backward: a call with logits and targets must come first, got none")
        return cross_entropy_backward(*saved)
