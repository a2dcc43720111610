"""A progress bar on stderr for a person at a terminal; silence for anyone else."""

import sys
from types import TracebackType
from typing import Any, Self

from fastbn.training.history import Epoch


class Progress:
    """A bar over epochs and their batches, shown only if ``wanted`` and stderr is a terminal."""

    def __init__(self, wanted: bool, epochs: int, batches: int, done: int = 0) -> None:
        self._bar: Any = None
        if not wanted or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._epochs = epochs
        self._number = done + 1
        self._batches = batches
        self._task = self._bar.add_task("train", total=batches, epoch=self._title(), loss=float("nan"))

    def _title(self) -> str:
        return f"{min(self._number, self._epochs)}/{self._epochs}"

    def advance(self, loss: float) -> None:
        """One more batch is done; ``loss`` is the mean so far."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, loss=loss)

    def finish_epoch(self, epoch: Epoch) -> None:
        """Print the epoch's figures above the bar, and start the bar anew."""
        if self._bar is None:
            return
        self._bar.console.print(f"epoch {self._title()}  {epoch_line(epoch)}", highlight=False)
        self._number += 1
        self._bar.reset(self._task, total=self._batches, epoch=self._title(), loss=epoch.loss)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def epoch_line(epoch: Epoch) -> str:
    """An epoch's figures in one line."""
    line = f"loss {epoch.loss:.4f}  accuracy {epoch.accuracy:.4f}"
    if epoch.val_loss is not None and epoch.val_accuracy is not None:
        line += f"  test loss {epoch.val_loss:.4f}  test accuracy {epoch.val_accuracy:.4f}"
    return f"{line}  lr {epoch.lr:.4g}  {epoch.seconds:.1f} s"
