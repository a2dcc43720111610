"""A progress bar on stderr for a person at a terminal; silence for anyone else."""

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """A bar over the stages of a calibration and their batches, shown only if ``wanted`` and stderr is a terminal."""

    def __init__(self, wanted: bool, stages: int, batches: int) -> None:
        self._bar: Any = None
        if not wanted or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("stage {task.fields[stage]}, {task.fields[norms]} batch norms"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("batches"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._stages = stages
        self._task = self._bar.add_task("calibrate", total=stages * batches, stage="", norms=0)

    def begin(self, number: int, norms: int) -> None:
        """Stage ``number``, from 0, begins; it has so many batch norms."""
        if self._bar is not None:
            self._bar.update(self._task, stage=f"{number + 1}/{self._stages}", norms=norms)

    def advance(self) -> None:
        """One more batch is done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
