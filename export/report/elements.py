"""What the sections of the HTML report are made of: text that stays text, tables, sections."""

from collections.abc import Sequence
from html import escape

from fastbn._tables import printable


def text(value: str) -> str:
    """``value`` as HTML, on one line, whatever it holds."""
    return escape(printable(value))


def path_text(value: str) -> str:
    """``text`` that may be broken behind a slash, as names of nodes are."""
    return text(value).replace("/", "/<wbr>")


def section(title: str, note: str, content: str) -> str:
    """A heading, a line in small print unless that is empty, and ``content``, which is HTML already."""
    said = f'<p class="note">{text(note)}</p>' if note else ""
    return f"<section><h2>{text(title)}</h2>{said}{content}</section>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] = ()) -> str:
    """Columns without any text are left out, the first cell of a row is its heading; ``marks``: classes of rows."""
    used = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    head = "".join(f'<th scope="col">{text(columns[index])}</th>' for index in used)
    lines = []
    for number, row in enumerate(rows):
        first, *others = (path_text(row[index]) for index in used)
        mark = f' class="{marks[number]}"' if marks and marks[number] else ""
        lines.append(f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>')
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
