"""A progress bar on stderr for a person at a terminal; silence for anyone else."""

import sys
from types import TracebackType
from typing import Any, Self


class Bar:
    """A bar over steps with a text before and behind it, shown only if ``wanted`` and stderr is a terminal."""

    def __init__(self, before: str, behind: str = "", steps: int | None = None, *, wanted: bool = True) -> None:
        self._bar: Any = None
        if not wanted or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[behind]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(before, total=steps, behind=behind)

    def expect(self, steps: int) -> None:
        """Say how many steps there will be in all."""
        if self._bar is not None:
            self._bar.update(self._task, total=steps)

    def say(self, before: str | None = None, behind: str | None = None) -> None:
        """Change the texts that are given."""
        if self._bar is not None:
            fields = {} if behind is None else {"behind": behind}
            self._bar.update(self._task, description=before, **fields)

    def advance(self, steps: int = 1) -> None:
        """So many more steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)

    def restart(self, line: str) -> None:
        """Print ``line`` above the bar, which begins anew."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
            self._bar.reset(self._task)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
