"""The figures of one batch norm that its health is judged by, wherever they come from."""

from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Vitals:
    """One batch norm in float64; what is None is not known, and nothing is said about it.

    gamma, beta, mean, variance: (C,). momentum: weight of the new batch. batches: num_batches_tracked. frozen: the
    statistics are constants in training, too. layer_weight: (C, K), that of the convolution or linear layer before it.
    layer_bias: how many bias parameters that layer has. gap: see ``fastbn.diagnosis.gap``. samples: it was measured on.
    """

    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    eps: float | None = None
    momentum: float | None = None
    batches: int | None = None
    frozen: bool = False
    layer_weight: np.ndarray | None = None
    layer_bias: int = 0
    gap: float | None = None
    samples: int = 0

    @property
    def roles(self) -> dict[str, np.ndarray]:
        """What is known, by name."""
        named = {"gamma": self.gamma, "beta": self.beta, "mean": self.mean, "variance": self.variance}
        return {role: array for role, array in named.items() if array is not None}

    @property
    def proper(self) -> np.ndarray | None:
        """(C,), where variance + eps can be divided by; None where one of them is not known."""
        if self.variance is None or self.eps is None:
            return None
        return np.isfinite(self.variance) & (self.variance >= 0) & (self.variance + self.eps > 0)

    @property
    def scale(self) -> np.ndarray | None:
        """(C,), gamma / sqrt(variance + eps), NaN where that is not proper; None where one of them is not known."""
        proper = self.proper
        if proper is None or self.gamma is None or self.variance is None or self.eps is None:
            return None
        return self.gamma / np.sqrt(np.where(proper, self.variance + self.eps, np.nan))


def finite_range(array: np.ndarray | None) -> Range | None:
    """Smallest and largest finite value."""
    finite = np.empty(0) if array is None else array[np.isfinite(array)]
    return (float(finite.min()), float(finite.max())) if finite.size else None
