"""What the pictures share: a colour and a marker for each norm, axes, labels beside lines."""

from typing import Any

import numpy as np

from fastbn.lab.experiment import numbers
from fastbn.training.plot import COLOURS, MARKERS

GREY = "#555555"
LEAST_WRONG = 0.1  # per cent; what reads better is drawn there

LABELS = {"none": "no norm", "renorm": "batch renorm", "fixup": "FixUp, no norm"}
FIXED = {"batch": 0, "none": 1}  # the pair that most pictures compare, in the first colours
STYLES = list(zip((*COLOURS, "#000000", "#888888"), (*MARKERS, "X", "*"), strict=True))


def label_of(norm: str) -> str:
    """A norm as the pictures call it."""
    return LABELS.get(norm, f"{norm} norm")


def style_of(norm: str, norms: list[str]) -> dict[str, Any]:
    """Colour and marker of a norm among ``norms``, and dashes from the ninth on; those of the first two are fixed."""
    others = [name for name in norms if name not in FIXED]
    index = FIXED[norm] if norm in FIXED else len(FIXED) + others.index(norm)
    colour, marker = STYLES[index % len(STYLES)]
    return {"color": colour, "marker": marker, "linestyle": "-" if index < len(STYLES) else "--"}


def colour_of(norm: str) -> str:
    """Of "batch" or "none"."""
    return COLOURS[FIXED[norm]]


def finish(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    """Title, units, a faint grid, and no frame where there are no ticks."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def legend(axes: Any, **options: Any) -> None:
    """A small legend on white."""
    axes.legend(**{"fontsize": "small", "framealpha": 0.9, "edgecolor": "none", **options})


def wrong(accuracy: Any) -> np.ndarray:
    """Per cent of wrong answers, as ``accuracy_axis`` has them."""
    return np.maximum(100 * (1 - numbers(accuracy)), LEAST_WRONG)


def accuracy_axis(axes: Any) -> None:
    """Turn a y axis of ``wrong`` into one of accuracy that has room where networks differ, between 90 and 100 %."""
    axes.set_yscale("log")
    axes.set_ylim(100, min(axes.get_ylim()[0], 0.8))
    low = axes.get_ylim()[1]
    ticks = [tick for tick in (90, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if tick >= low]
    axes.set_yticks(ticks, [f"{100 - tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.axhline(90, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(
        "chance", (1, 90), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=GREY, fontsize=8
    )
