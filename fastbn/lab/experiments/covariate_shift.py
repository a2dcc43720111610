"""Internal covariate shift in both senses: how far distributions of inputs move in a step, and how far gradients do."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn.data import Dataset, Split
from fastbn.lab.descent import descend, first, flat, spaced
from fastbn.lab.drawing import colour_of, finish, label_of, legend
from fastbn.lab.experiment import Claim, Experiment, Figures, Options, median, numbers
from fastbn.lab.networks import pair, perceptron
from fastbn.lab.probe import inputs_of, parameters
from fastbn.lab.progress import Bar
from fastbn.lab.shift import gradient_shift, moved
from fastbn.nn.activation import Sigmoid
from fastbn.nn.init import manual_seed, xavier_normal_
from fastbn.optim import SGD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, RATE = 4000, 60, 0.1
RECORDS, PROBED = 40, 500
NORMS = ("none", "batch")


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    steps = options.scaled(STEPS, 2)
    progress.expect(len(NORMS) * steps)
    train = flat(dataset.train)
    runs = {norm: _run(norm, train, steps, options.seed, progress) for norm in NORMS}
    return {"steps": spaced(steps, RECORDS), "runs": runs}


def _run(norm: str, train: Split, steps: int, seed: int, progress: Bar) -> Figures:
    """By record and layer: the distance of inputs, the relative change and the cosine of gradients, of one step."""
    manual_seed(seed)
    model = perceptron((train.images.shape[1], 100, 100, 100, 10), norm=pair(norm), fill=xavier_normal_)
    sigmoids = [layer for layer in model.children() if isinstance(layer, Sigmoid)]
    probe = first(train, PROBED)
    records = spaced(steps, RECORDS)
    run: Figures = {"moved": [], "changed": [], "cosine": []}
    inputs, before = inputs_of(model, sigmoids, probe.images), parameters(model)
    progress.begin(label_of(norm))
    losses = descend(model, train, SGD(model.parameters(), lr=RATE), progress, batch_size=BATCH, steps=steps, seed=seed)
    for step, _ in enumerate(losses, 1):
        if step in records:
            after = inputs_of(model, sigmoids, probe.images)
            run["moved"].append([moved(old, new) for old, new in zip(inputs, after, strict=True)])
            changes = gradient_shift(model, before, probe)
            run["changed"].append([change for change, _ in changes])
            run["cosine"].append([cosine for _, cosine in changes])
        if step + 1 in records:
            inputs, before = inputs_of(model, sigmoids, probe.images), parameters(model)
    return run


def _judge(figures: Figures) -> list[Claim]:
    medians = {kind: [median(figures["runs"][norm][kind]) for norm in NORMS] for kind in ("moved", "changed", "cosine")}
    moved_none, moved_batch = medians["moved"]
    changed_none, changed_batch = medians["changed"]
    cosine_none, cosine_batch = medians["cosine"]
    return [
        Claim(
            "arXiv 1502.03167: with batch norm the distribution of a layer's inputs moves less in a step",
            moved_batch < moved_none,
            f"median {moved_batch:.3g} standard deviations against {moved_none:.3g}",
        ),
        Claim(
            "arXiv 1805.11604: with batch norm the step of the layers in front changes a layer's gradient no less",
            changed_batch >= changed_none,
            f"median {100 * changed_batch:.3g} % against {100 * changed_none:.3g} %",
        ),
        Claim(
            "arXiv 1805.11604: ... nor does it turn the gradient less",
            cosine_batch <= cosine_none,
            f"median cosine {cosine_batch:.6f} against {cosine_none:.6f}",
        ),
    ]


def _draw(figures: Figures, figure: "Figure") -> None:
    panels: Any = figure.subplots(1, 3)
    steps = np.array(figures["steps"])
    for norm in NORMS:
        run = figures["runs"][norm]
        turned = np.degrees(np.arccos(np.clip(numbers(run["cosine"]), -1, 1)))
        for axes, values in zip(panels, (run["moved"], 100 * numbers(run["changed"]), turned), strict=True):
            _lines(axes, steps, numbers(values), norm)
    finish(panels[0], "Inputs: moved in one step", "training steps", "Wasserstein distance (standard deviations)")
    finish(panels[1], "Gradients: changed by the layers in front", "training steps", "change of the gradient (%)")
    finish(panels[2], "... and turned", "training steps", "angle between old and new gradient (degrees)")
    for axes in panels:
        axes.set_yscale("log")
    legend(panels[0], loc="best")


def _lines(axes: Any, steps: np.ndarray, layers: np.ndarray, norm: str) -> None:
    """Thin dashes for each layer, a thick line for their geometric mean."""
    positive = np.where(layers > 0, layers, np.nan)
    at = steps[: len(layers)]
    for layer in positive.T:
        axes.plot(at, layer, color=colour_of(norm), linewidth=0.8, alpha=0.4)
    mean = np.exp(np.log(positive).mean(axis=1))
    axes.plot(at, mean, color=colour_of(norm), linewidth=2, label=f"{label_of(norm)}: mean of layers, and each")


COVARIATE_SHIFT = Experiment(
    name="covariate-shift",
    title="Internal covariate shift: what one step does to the layers behind",
    source="Ioffe and Szegedy 2015, arXiv 1502.03167; Santurkar and others 2018, arXiv 1805.11604, section 2.2",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(13, 4.8),
)
