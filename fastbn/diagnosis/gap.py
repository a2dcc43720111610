"""The gap between training and eval mode: outputs with the statistics of batches beside those with running statistics.

Of one batch norm, with m, v the mean and the biased variance of its input over all batches and r, u the running ones:

    y_train - y_eval = gamma ((x - m) / sqrt(v + eps) - (x - r) / sqrt(u + eps))

Its mean square over x, per channel, is gamma^2 (v (1 / sqrt(v + eps) - 1 / sqrt(u + eps))^2 + (m - r)^2 / (u + eps)).
The gap is the root of the sum over channels, divided by that of gamma^2: 0 where the statistics agree, 1 where the
outputs differ by as much as they vary. Channels count as much as they matter to the output.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastbn.errors import ArgumentError
from fastbn.nn.layer_bn import LayerBn
from fastbn.nn.module import Module
from fastbn.training.statistics import Part, merged, moving_norms, recorded


@dataclass(frozen=True)
class OutputGap:
    """The final output of a model with batch statistics beside that with running statistics.

    relative: root mean square of the difference over that of the output, None where it is no number. changed: rows of a
    matrix whose largest entry is another one, None where outputs are no matrices. samples: how many there were.
    """

    relative: float | None
    changed: int | None
    samples: int


def norm_gap(
    gamma: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float, batch_mean: np.ndarray, batch_var: np.ndarray
) -> float | None:
    """The gap of one batch norm; all (C,) float64, variances biased. None where it is no number."""
    with np.errstate(all="ignore"):
        batch_scale, scale = gamma / np.sqrt(batch_var + eps), gamma / np.sqrt(var + eps)
        squares = (batch_var * (batch_scale - scale) ** 2 + (scale * (batch_mean - mean)) ** 2).sum()
        gap = float(np.sqrt(squares / (gamma * gamma).sum())) if squares else 0.0
    return gap if np.isfinite(gap) else None


def measure(model: Module, batches: Iterable[np.ndarray]) -> tuple[dict[str, Part], OutputGap]:
    """The moments of what every batch norm sees that training moves, by its name, and the gap of the final output.

    Both passes run on a copy of ``model`` in which the batch norms alone train. Raises ArgumentError without any batch,
    and what the model raises for one.
    """
    probe = copy.deepcopy(model).eval()
    probe.zero_grad()
    for module in probe.modules():
        module._forward_hooks.clear()
    norms = moving_norms(probe)
    for norm in norms:
        norm.momentum = 0.0
    trained = [*norms, *(module for module in probe.modules() if isinstance(module, LayerBn) and not module.folded)]
    total = Total()
    with recorded(norms) as moments:
        for batch in batches:
            eval_output = probe(batch)
            _train(trained, True)
            total.add(probe(batch), eval_output)
            _train(trained, False)
    if not total.samples:
        raise ArgumentError("doctor: batches must hold at least one sample, got none")
    names = {id(module): name for name, module in probe.named_modules()}
    return {names[key]: merged(parts) for key, parts in moments.items() if parts}, total.gap()


def _train(modules: Sequence[Module], mode: bool) -> None:
    for module in modules:
        module.training, module._saved = mode, None


class Total:
    """Sums over the outputs of a model so far."""

    def __init__(self) -> None:
        self.samples = self.changed = 0
        self._difference = self._size = 0.0
        self._rows = True

    def add(self, output: np.ndarray, eval_output: np.ndarray) -> None:
        """The outputs of one batch, with its own statistics and with the running ones."""
        self.samples += len(output)
        self._rows = self._rows and output.ndim == 2 and output.shape[1] > 1
        if self._rows:
            self.changed += int((output.argmax(axis=1) != eval_output.argmax(axis=1)).sum())
        with np.errstate(all="ignore"):
            self._difference += float(np.square(output - eval_output, dtype=np.float64).sum())
            self._size += float(np.square(output, dtype=np.float64).sum())

    def gap(self) -> OutputGap:
        """Of all batches together."""
        relative = float(np.sqrt(self._difference / self._size)) if self._size else 0.0
        changed = self.changed if self._rows else None
        return OutputGap(relative if np.isfinite(relative) else None, changed, self.samples)
