"""Tables for people: rich's at a terminal, plain aligned lines anywhere else, so that they can be grepped."""

import sys
from collections.abc import Collection, Sequence
from typing import TextIO

Row = Sequence[str]
FOLDABLE = 1.6  # a table of so many times the terminal's width can still be read when its cells are folded


def printable(text: str) -> str:
    """``text`` on one line: whatever a terminal would obey rather than show, as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_line(text: str, file: TextIO | None = None) -> None:
    """One line, never wrapped; what the stream's encoding lacks appears as an escape."""
    file = file or sys.stdout
    encoding = file.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=file)


def print_table(
    columns: Sequence[str], rows: Sequence[Row], file: TextIO | None = None, *, marked: Collection[int] = ()
) -> None:
    """``rows`` under ``columns``, columns without any text left out; the rows numbered in ``marked`` stand out.

    At a terminal that is wide enough for it to look like one, long cells are folded to its width; elsewhere every row
    is one indented line and nothing stands out.
    """
    file = file or sys.stdout
    used = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    head = [columns[index] for index in used]
    body = [[printable(row[index]) for index in used] for row in rows]
    if file.isatty() and _print_rich(head, body, file, marked):
        return
    widths = [max(map(len, cells)) for cells in zip(head, *body, strict=True)]
    for row in (head, *body):
        cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line(f"  {cells}".rstrip(), file)


def _print_rich(head: Row, body: Sequence[Row], file: TextIO, marked: Collection[int]) -> bool:
    """Whether it was printed: not where it is far too wide for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=SIMPLE_HEAD, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    for number, row in enumerate(body):
        table.add_row(*row, style="yellow" if number in marked else None)
    console = Console(file=file, markup=False, emoji=False, highlight=False)
    if console.measure(table, options=console.options.update(max_width=100_000)).maximum > FOLDABLE * console.width:
        return False
    console.print(table)
    return True
