"""What an experiment is: it measures figures; claims and the picture are made of the figures alone."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastbn._progress import Bar
from fastbn.data import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 7  # significant ones of every figure that is kept

Figures = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """How to run. seed: of initial values and of the order of samples. effort: multiple of the steps and of grids."""

    seed: int = 0
    effort: float = 1.0

    def scaled(self, count: int, least: int = 1) -> int:
        """``count`` at an effort of 1, at least ``least``."""
        return max(least, round(count * self.effort))


@dataclass(frozen=True)
class Claim:
    """text: what is claimed. holds: whether the figures say so. found: the numbers that decide."""

    text: str
    holds: bool
    found: str

    def __str__(self) -> str:
        return f"{'reproduced' if self.holds else 'not reproduced'}: {self.text} ({self.found})"


@dataclass(frozen=True)
class Result:
    """figures: what was measured, as JSON can hold it; what is not finite is None. claims: judged by them."""

    figures: Figures
    claims: list[Claim]


@dataclass(frozen=True)
class Experiment:
    """name: on the command line. title: in one line. source: the paper and its figure or section.

    measure: the figures of a data set. judge: the claims that they bear out or do not. draw: their picture.
    size: of the picture in inches.
    """

    name: str
    title: str
    source: str
    measure: Callable[[Dataset, Options, Bar], Figures]
    judge: Callable[[Figures], list[Claim]]
    draw: Callable[[Figures, "Figure"], None]
    size: tuple[float, float]

    def run(self, dataset: Dataset, options: Options, progress: Bar) -> Result:
        """Measure and judge; the same options give the same figures, bit for bit."""
        with np.errstate(all="ignore"):  # a run that diverges is a result
            figures = plain(self.measure(dataset, options, progress))
        return Result(figures, self.judge(figures))

    def to_json(self, result: Result, dataset: Dataset, options: Options) -> str:
        """Figures, claims, and what they were made with."""
        report = {
            "experiment": self.name,
            "title": self.title,
            "source": self.source,
            "data": dataset.name,
            **asdict(options),
            "claims": [asdict(claim) for claim in result.claims],
            "figures": result.figures,
        }
        return json.dumps(report, allow_nan=False, indent=1)


def plain(value: Any) -> Any:
    """NumPy's values as JSON's, numbers to seven digits; None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    return value


def numbers(values: Any) -> np.ndarray:
    """Figures as an array of float64, NaN for None."""
    return np.array(values, dtype=np.float64)


def median(values: Any) -> float:
    """The median of the finite figures, NaN without any."""
    known = numbers(values)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if known.size else math.nan
