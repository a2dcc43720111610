"""The loss on the surface through the initial point and the ends of SGD, momentum and Adam, by norm."""

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset, Split
from fastbn.lab.descent import accuracy, descend, first, flat
from fastbn.lab.drawing import colour_of, finish, label_of, legend
from fastbn.lab.experiment import Claim, Experiment, Figures, Options, numbers
from fastbn.lab.networks import pair, perceptron
from fastbn.lab.probe import loss_of, parameters, preserved, set_parameters
from fastbn.nn.activation import ReLU
from fastbn.nn.init import kaiming_normal_, manual_seed
from fastbn.nn.module import Module
from fastbn.optim import SGD, Adam, Optimizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS, BATCH, PROBED = 1200, 64, 1000
GRID = 25  # points along each side
REACH = 0.25  # of a side, beyond the corners
LINE = 21  # points between two ends
CORNERS = {"start": (0.0, 0.0), "SGD": (1.0, 0.0), "momentum": (1.0, 1.0), "Adam": (0.0, 1.0)}
ENDS = ("SGD", "momentum", "Adam")
NORMS = ("none", "batch")


def _optimizer(name: str, model: Module) -> Optimizer:
    if name == "Adam":
        return Adam(model.parameters(), lr=1e-3)
    return SGD(model.parameters(), lr=0.1) if name == "SGD" else SGD(model.parameters(), lr=0.02, momentum=0.9)


def _measure(dataset: Dataset, options: Options, progress: Bar) -> Figures:
    steps, grid = options.scaled(STEPS), options.scaled(GRID, 5)
    pairs = list(combinations(CORNERS, 2))
    progress.expect(len(NORMS) * (len(ENDS) * steps + grid * grid + len(pairs) * LINE))
    data = Dataset(dataset.name, flat(dataset.train), flat(dataset.test))
    axis = np.linspace(-REACH, 1 + REACH, grid)
    runs = {norm: _run(norm, data, steps, axis, options.seed, progress) for norm in NORMS}
    return {"axis": axis, "steps": steps, "runs": runs}


def _run(norm: str, data: Dataset, steps: int, axis: np.ndarray, seed: int, progress: Bar) -> Figures:
    """Losses on the grid and on the lines between corners, with the statistics of the probe at every point."""
    manual_seed(seed)
    widths = (data.train.images.shape[1], 100, 100, 100, 10)
    model = perceptron(widths, norm=pair(norm), activation=ReLU, fill=kaiming_normal_)
    points = {"start": parameters(model)}
    probe = first(data.train, PROBED)
    reached = {}
    for name in ENDS:
        progress.say(behind=f"{label_of(norm)}, {name}")
        with preserved(model):
            losses = descend(
                model, data.train, _optimizer(name, model), progress, batch_size=BATCH, steps=steps, seed=seed
            )
            for _ in losses:
                pass
            points[name], reached[name] = parameters(model), accuracy(model, data.test)
    progress.say(behind=f"{label_of(norm)}, surface")
    surface = [[_loss_at(model, bilinear(points, a, b), probe, progress) for a in axis] for b in axis]
    lines = {}
    for one, other in combinations(CORNERS, 2):
        between = [points[one] + t * (points[other] - points[one]) for t in np.linspace(0, 1, LINE)]
        lines[f"{one} - {other}"] = [_loss_at(model, point, probe, progress) for point in between]
    return {"accuracy": reached, "surface": surface, "lines": lines}


def bilinear(points: dict[str, np.ndarray], a: float, b: float) -> np.ndarray:
    """The point (a, b) of the surface on which the four corners lie; no plane holds four points."""
    lower = (1 - a) * points["start"] + a * points["SGD"]
    upper = (1 - a) * points["Adam"] + a * points["momentum"]
    return (1 - b) * lower + b * upper


def _loss_at(model: Module, point: np.ndarray, probe: Split, progress: Bar) -> float:
    progress.advance()
    with preserved(model):
        set_parameters(model, point)
        return loss_of(model, probe)


def barrier(losses: Any) -> float:
    """How far the loss on a line rises above the straight line between the losses of its ends."""
    values = numbers(losses)
    return float(np.max(values - np.linspace(values[0], values[-1], len(values))))


def _judge(figures: Figures) -> list[Claim]:
    claims = []
    for norm in NORMS:
        lines = figures["runs"][norm]["lines"]
        between = {name: barrier(losses) for name, losses in lines.items() if not name.startswith("start")}
        lowest = min(between, key=lambda name: between[name])
        claims.append(
            Claim(
                f"the optimisers end in different places, {label_of(norm)}: a barrier lies between any two of them",
                between[lowest] > 0.1,
                f"lowest {between[lowest]:.3g} nats, {lowest}",
            )
        )
    for norm in NORMS:
        lines = figures["runs"][norm]["lines"]
        rises = {name: barrier(losses) for name, losses in lines.items() if name.startswith("start")}
        highest = max(rises, key=lambda name: rises[name])
        claims.append(
            Claim(
                f"no barrier lies between the start and an end, {label_of(norm)}",
                rises[highest] <= 0.1,
                f"highest {rises[highest]:.3g} nats, {highest}",
            )
        )
    return claims


def _draw(figures: Figures, figure: "Figure") -> None:
    panels: Any = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    axis = numbers(figures["axis"])
    surfaces = {norm: numbers(figures["runs"][norm]["surface"]) for norm in NORMS}
    low = min(float(np.nanmin(surface)) for surface in surfaces.values())
    levels = np.geomspace(max(low, 1e-3), 10, 21)
    for axes, norm in zip(panels, NORMS, strict=False):
        shown = np.clip(surfaces[norm], levels[0], levels[-1])
        filled = axes.contourf(axis, axis, shown, levels=levels, cmap="cividis_r", norm="log")
        axes.contour(axis, axis, shown, levels=levels[::2], colors="white", linewidths=0.4, norm="log")
        _corners(axes, figures["runs"][norm]["accuracy"])
        axes.set_title(f"Loss, {label_of(norm)}", fontsize=11, loc="left")
        axes.set_xlabel("start to SGD, Adam to momentum (share of the way)")
        axes.set_ylabel("start to Adam, SGD to momentum (share)")
        axes.set_aspect("equal")
    bar = figure.colorbar(filled, ax=panels[:2], shrink=0.8, ticks=[0.001, 0.01, 0.1, 1, 10], format="%g", pad=0.01)
    bar.set_label("cross-entropy (nats)")
    _barriers(panels[2], figures["runs"])


def _corners(axes: Any, reached: dict[str, float]) -> None:
    for name, (a, b) in CORNERS.items():
        label = name if name == "start" else f"{name}\n{100 * reached[name]:.1f} %"
        axes.plot(a, b, "o", color="white", markeredgecolor="black", markersize=7)
        axes.annotate(
            label, (a, b), xytext=(0, -9 if b == 0 else 9), textcoords="offset points", ha="center",
            va="top" if b == 0 else "bottom", fontsize=9,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
        )  # fmt: skip


def _barriers(axes: Any, runs: Figures) -> None:
    names = list(runs[NORMS[0]]["lines"])
    places = np.arange(len(names))
    for shift, norm in zip((-0.2, 0.2), NORMS, strict=True):
        heights = [max(barrier(runs[norm]["lines"][name]), 0.0) for name in names]
        axes.barh(places + shift, heights, 0.38, color=colour_of(norm), label=label_of(norm))
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    finish(axes, "Barriers on straight lines", "rise above both ends' line (nats)", "")
    legend(axes)


SURFACE = Experiment(
    name="surface",
    title="The loss on the surface through the start and the ends of three optimisers",
    source="Im, Tao and Branson 2016, arXiv 1612.04010; lines: Goodfellow and others 2014, arXiv 1412.6544",
    measure=_measure,
    judge=_judge,
    draw=_draw,
    size=(15, 6.2),
)
