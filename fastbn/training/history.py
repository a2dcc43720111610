"""What a training run measured, epoch by epoch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastbn.errors import ModelError


@dataclass
class Epoch:
    """One epoch: mean training loss and accuracy, the same on validation data if there were any, seconds, rate.

    seconds: time spent training, without validation.
    """

    loss: float
    accuracy: float
    seconds: float
    lr: float
    val_loss: float | None = None
    val_accuracy: float | None = None


@dataclass
class History:
    """The epochs of one run, in order."""

    epochs: list[Epoch] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, index: int) -> Epoch:
        return self.epochs[index]

    def plot(self, path: str | Path, others: Mapping[str, "History"] | None = None, *, label: str = "fastbn") -> None:
        """Draw loss and accuracy by epoch into an image file; ``others`` are drawn beside, by label.

        Needs matplotlib. Raises ModelError without it, or where ``path`` cannot be written.
        """
        from fastbn.training.plot import plot_histories

        plot_histories({label: self, **(others or {})}, path)

    def to_json(self) -> str:
        """All epochs as JSON."""
        return json.dumps([asdict(epoch) for epoch in self.epochs])

    @classmethod
    def from_json(cls, text: str) -> "History":
        """What ``to_json`` wrote. Raises ModelError for anything else."""
        try:
            entries: list[dict[str, Any]] = json.loads(text)
            return cls([Epoch(**entry) for entry in entries])
        except (TypeError, ValueError) as error:
            raise ModelError(f"History.from_json: text must be what to_json wrote, got {text[:40]!r}") from error
