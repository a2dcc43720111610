"""How far a step moves what the layers behind see: distributions of inputs, and gradients."""

import numpy as np

from fastbn.data import Split
from fastbn.lab.probe import loss_and_gradient, parameters, preserved, set_parameters
from fastbn.nn.containers import Sequential
from fastbn.nn.linear import Linear


def moved(old: np.ndarray, new: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples (N, units) of one layer's inputs, in standard deviations, mean of units."""
    distance = np.abs(np.sort(new, axis=0).astype(np.float64) - np.sort(old, axis=0)).mean(axis=0)
    return float(np.mean(distance / np.maximum(old.std(axis=0, dtype=np.float64), np.finfo(np.float32).tiny)))


def gradient_shift(model: Sequential, before: np.ndarray, probe: Split) -> list[tuple[float, float]]:
    """Definition 2.1 of arXiv 1805.11604, for every linear layer but the first.

    G is the layer's gradient ``before`` the step, G' after the layers in front of it alone have taken the step:
    (|G - G'| / |G|, cosine of G and G').
    """
    shifts = []
    with preserved(model):
        after = parameters(model)
        set_parameters(model, before)
        _, old = loss_and_gradient(model, probe)
        for start, stop in _spans(model)[1:]:
            set_parameters(model, np.concatenate([after[:start], before[start:]]))
            _, new = loss_and_gradient(model, probe)
            g, changed = old[start:stop], new[start:stop]
            size = float(np.linalg.norm(g))
            cosine = float(g @ changed / (size * np.linalg.norm(changed)))
            shifts.append((float(np.linalg.norm(changed - g)) / size, cosine))
    return shifts


def _spans(model: Sequential) -> list[tuple[int, int]]:
    """Where the weights of each linear layer lie in the vector of parameters."""
    spans, start = [], 0
    for layer in model.children():
        if isinstance(layer, Linear):
            spans.append((start, start + layer.weight.size))
        start += sum(parameter.size for parameter in layer.parameters())
    return spans
