"""What a training run measured, epoch by epoch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fastbn.errors import ArgumentError, ModelError


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

        if others and label in others:
            raise ArgumentError(f"History.plot: label must differ from those of others, got {label!r} twice")
        plot_histories({label: self, **(others or {})}, path)

    def to_json(self) -> str:
        """All epochs as JSON."""
        return json.dumps([asdict(epoch) for epoch in self.epochs])

    @classmethod
    def from_json(cls, text: str) -> "History":
        """What ``to_json`` wrote. Raises ModelError for anything else."""
        try:
            epochs = [Epoch(**entry) for entry in json.loads(text)]
            for epoch in epochs:
                if not all(value is None or type(value) in (int, float) for value in asdict(epoch).values()):
                    raise TypeError(f"figures {epoch}")
            if not text.lstrip().startswith("["):
                raise TypeError("no list")
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"History.from_json: text must be what to_json wrote, got {str(text)[:40]!r}") from error
        return cls(epochs)
