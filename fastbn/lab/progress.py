"""The bar of an experiment, on stderr for a person at a terminal; silence for anyone else."""

import sys
from types import TracebackType
from typing import Any, Self


class Bar:
    """A bar over the steps of an experiment, shown only if ``wanted`` and stderr is a terminal."""

    def __init__(self, title: str, wanted: bool = True) -> None:
        self._bar: Any = None
        if not wanted or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[part]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=None, part="")

    def expect(self, steps: int) -> None:
        """Say how many steps there will be in all."""
        if self._bar is not None:
            self._bar.update(self._task, total=steps)

    def begin(self, part: str) -> None:
        """Name what is going on."""
        if self._bar is not None:
            self._bar.update(self._task, part=part)

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
