"""What the pictures share: a colour and a marker for each norm, axes, labels beside lines."""

from typing import Any

from fastbn.training.plot import COLOURS, MARKERS

GREY = "#555555"
BLACK = "#000000"

LABELS = {"batch": "batch norm", "none": "no norm"}
FIXED = {"batch": 0, "none": 1}  # the pair that most pictures compare, in the first colours


def label_of(norm: str) -> str:
    """A norm as the pictures call it."""
    return LABELS.get(norm, norm if norm in ("fixup",) else f"{norm} norm")


def style_of(norm: str, norms: list[str]) -> dict[str, Any]:
    """Colour, marker and dash of a norm among ``norms``; batch norm and none have the same in every picture."""
    others = [name for name in norms if name not in FIXED]
    index = FIXED[norm] if norm in FIXED else len(FIXED) + others.index(norm)
    dashes = ("-", "--", "-.", ":")
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": dashes[index // len(COLOURS) % len(dashes)],
    }


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
