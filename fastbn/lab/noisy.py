"""Noisy batch norm (arXiv 1805.11604, figure 2): distributions that jump in every step, and what that does."""

from typing import Any

import numpy as np

from fastbn.data import Dataset, Split
from fastbn.lab.descent import accuracy, descend, first, flat, spaced
from fastbn.lab.drawing import COLOURS, MARKERS, accuracy_axis, finish, legend, wrong
from fastbn.lab.experiment import Claim, Figures, Options, median, numbers
from fastbn.lab.networks import pair, perceptron
from fastbn.lab.probe import inputs_of
from fastbn.lab.progress import Bar
from fastbn.lab.shift import moved
from fastbn.nn.activation import Sigmoid
from fastbn.nn.batchnorm import BatchNorm1d
from fastbn.nn.containers import Sequential
from fastbn.nn.init import manual_seed, spawn_generator, xavier_normal_
from fastbn.nn.module import Module
from fastbn.optim import SGD

STEPS, BATCH, RATE = 3000, 60, 0.1
RECORDS, PROBED = 30, 500
NORMS = {"none": "no norm", "batch": "batch norm", "noisy": "noisy batch norm"}
MEAN, SCALE, JITTER = 0.5, 1.25, 0.1  # n_mu, n_sigma and r of the paper


class Noise(Module):
    """In training mode ``s x + m`` of rows (N, C), s and m drawn anew in every step; x itself in eval mode.

    Unit j has m ~ U(mu_j - r, mu_j + r) and s ~ N(sigma_j, r), mu_j ~ U(-n_mu, n_mu), sigma_j ~ U(1, n_sigma)
    (arXiv 1805.11604, appendix A: neither mean nor variance stay from step to step).
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = spawn_generator()

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like x."""
        if not self.training:
            return x
        rng = self._generator
        mu, sigma = rng.uniform(-MEAN, MEAN, x.shape[1]), rng.uniform(1.0, SCALE, x.shape[1])
        scale = rng.normal(sigma, JITTER, x.shape).astype(x.dtype)
        self._keep(scale)
        return scale * x + rng.uniform(mu - JITTER, mu + JITTER, x.shape).astype(x.dtype)

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """``s dy``."""
        return self._take() * dy


def steps_of(options: Options) -> int:
    """What ``measure`` adds to the bar."""
    return len(NORMS) * options.scaled(STEPS, 2)


def measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    """Test accuracy, and the distance that the inputs of the sigmoids move in a step, for each norm."""
    steps = options.scaled(STEPS, 2)
    data = Dataset(dataset.name, flat(dataset.train), flat(dataset.test))
    runs = {norm: _run(norm, data, steps, options.seed, progress) for norm in NORMS}
    return {"steps": spaced(steps, RECORDS), "runs": runs}


def _run(norm: str, data: Dataset, steps: int, seed: int, progress: Bar) -> Figures:
    manual_seed(seed)
    made = (lambda features: Sequential(BatchNorm1d(features), Noise())) if norm == "noisy" else pair(norm)
    model = perceptron((data.train.images.shape[1], 100, 100, 100, 10), norm=made, fill=xavier_normal_)
    sigmoids = [layer for layer in model.children() if isinstance(layer, Sigmoid)]
    probe: Split = first(data.train, PROBED)
    records = spaced(steps, RECORDS)
    run: Figures = {"accuracy": [], "moved": []}
    inputs = inputs_of(model, sigmoids, probe.images)
    progress.begin(f"sigmoids, {NORMS[norm]}")
    optimizer = SGD(model.parameters(), lr=RATE)
    losses = descend(model, data.train, optimizer, progress, batch_size=BATCH, steps=steps, seed=seed)
    for step, _ in enumerate(losses, 1):
        if step in records:
            after = inputs_of(model, sigmoids, probe.images)
            run["moved"].append(np.mean([moved(old, new) for old, new in zip(inputs, after, strict=True)]))
            run["accuracy"].append(accuracy(model, data.test))
        if step + 1 in records:
            inputs = inputs_of(model, sigmoids, probe.images)
    return run


def judge(figures: Figures) -> list[Claim]:
    """Whether the noise shifts distributions, and whether batch norm helps nevertheless."""
    moves = {norm: median(figures["runs"][norm]["moved"]) for norm in NORMS}
    mean = {norm: float(np.mean(numbers(figures["runs"][norm]["accuracy"]))) for norm in NORMS}
    return [
        Claim(
            "noisy batch norm moves the inputs of layers more in a step than no norm does",
            moves["noisy"] > moves["none"],
            f"median {moves['noisy']:.3g} standard deviations against {moves['none']:.3g}",
        ),
        Claim(
            "the network learns faster with noisy batch norm than without any: mean test accuracy on the way",
            mean["noisy"] > mean["none"],
            f"{100 * mean['noisy']:.2f} % against {100 * mean['none']:.2f} %",
        ),
        Claim(
            "noisy batch norm costs little: that mean is within a point of batch norm's",
            mean["batch"] - mean["noisy"] < 0.01,
            f"{100 * mean['noisy']:.2f} % against {100 * mean['batch']:.2f} %",
        ),
    ]


def draw(figures: Figures, left: Any, right: Any) -> None:
    """Accuracy and movement by steps."""
    for norm, colour, marker in zip(NORMS, (COLOURS[1], COLOURS[0], COLOURS[2]), MARKERS, strict=False):
        run = figures["runs"][norm]
        at = figures["steps"][: len(run["moved"])]
        style = {"color": colour, "marker": marker, "markersize": 3, "label": NORMS[norm]}
        left.plot(at, wrong(run["accuracy"]), **style)
        right.semilogy(at, numbers(run["moved"]), **style)
    accuracy_axis(left)
    finish(left, "Three layers of 100 sigmoids: test accuracy", "training steps", "correct (%)")
    finish(right, "... and how far inputs move in one step", "training steps", "distance (standard deviations)")
    legend(left, loc="lower right", bbox_to_anchor=(1, 0.12))
