"""An experiment's result in files and on lines."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from fastbn._files import check_target, replacing
from fastbn.data import Dataset
from fastbn.lab.experiment import Experiment, Options, Result
from fastbn.training.plot import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def targets(experiment: Experiment, data: str, folder: Path) -> tuple[Path, Path]:
    """The picture and the figures. Raises ModelError where they could not be written."""
    stem = f"lab-{experiment.name}-{data}"
    paths = folder / f"{stem}.png", folder / f"{stem}.json"
    for path in paths:
        check_target(path)
    return paths


def figure_of(experiment: Experiment, result: Result, data: str) -> "Figure":
    """The picture. Raises ModelError without matplotlib."""
    figure = require_matplotlib()(figsize=experiment.size, layout="constrained")
    figure.suptitle(f"{experiment.title} ({data})", fontsize=13)
    verdicts = "\n".join(str(claim) for claim in result.claims)
    figure.supxlabel(verdicts, x=0.01, ha="left", fontsize=8, color="#444444", linespacing=1.4)
    experiment.draw(result.figures, figure)
    return figure


def write(experiment: Experiment, result: Result, dataset: Dataset, options: Options, folder: Path) -> None:
    """Both files, each whole or not at all. Raises ModelError."""
    picture, figures = targets(experiment, dataset.name, folder)
    image = BytesIO()
    figure_of(experiment, result, dataset.name).savefig(image, format="png", dpi=DPI)
    with replacing(figures) as temporary:
        temporary.write_text(experiment.to_json(result, dataset, options) + "\n")
    with replacing(picture) as temporary:
        temporary.write_bytes(image.getvalue())
