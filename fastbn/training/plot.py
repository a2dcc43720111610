"""Pictures of training runs."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from fastbn._files import replacing
from fastbn.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastbn.training.history import History

# Okabe and Ito's colours: told apart by colour-blind readers, and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")


def require_matplotlib() -> type["Figure"]:
    """matplotlib's Figure. Raises ModelError where there is none: call it before the work that is to be drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ModelError("plot: matplotlib must be installed, got none; pip install fastbn[plot]") from error
    return Figure


def plot_histories(histories: Mapping[str, "History"], path: str | Path, title: str | None = None) -> None:
    """Loss (left) and accuracy (right) by epoch, a colour for each run; validation solid, training dashed.

    Raises ModelError where matplotlib is missing, or where ``path`` cannot be written or is no kind of picture.
    """
    figure = require_matplotlib()(figsize=(10, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for (label, history), colour, marker in zip(histories.items(), cycle(COLOURS), cycle(MARKERS)):
        steps = range(1, len(history) + 1)
        validated = any(epoch.val_loss is not None for epoch in history)
        train_style = {"color": colour, "linestyle": "--", "linewidth": 1.2, "alpha": 0.75}
        test_style = {"color": colour, "marker": marker, "markersize": 4, "linewidth": 1.8}
        name = f"{label}, training" if validated else label
        losses.plot(steps, [epoch.loss for epoch in history], label=name, **train_style)
        accuracies.plot(steps, [100 * epoch.accuracy for epoch in history], label=name, **train_style)
        if validated:
            losses.plot(steps, [epoch.val_loss for epoch in history], label=f"{label}, test", **test_style)
            percent = [None if e.val_accuracy is None else 100 * e.val_accuracy for e in history]
            accuracies.plot(steps, percent, label=f"{label}, test", **test_style)
    drawn = [
        loss for history in histories.values() for e in history for loss in (e.loss, e.val_loss) if loss is not None
    ]
    scale = "log" if drawn and min(drawn) > 0 else "linear"
    losses.set(title="Loss", ylabel="mean cross-entropy", yscale=scale)
    accuracies.set(title="Accuracy", ylabel="correct (%)")
    for axes in (losses, accuracies):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    if title:
        figure.suptitle(title)
    with replacing(path) as temporary:
        try:
            figure.savefig(temporary, format=Path(path).suffix[1:] or "png", dpi=150)
        except ValueError as error:
            raise ModelError(f"plot: {path} must end as a picture does, such as .png, got {error}") from error
