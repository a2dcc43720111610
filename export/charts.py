"""Charts as inline SVG; colours come from the classes ``before`` and ``after`` of the page around them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 900
LEFT, RIGHT, THICK = 190, 260, 22  # bars: room for their labels and for their figures; a bar and the gap below it
KINDS = ("before", "after")


@dataclass(frozen=True)
class Group:
    """Bars of one quantity, before and after; ``after`` may be missing. ``text`` writes a value with its unit."""

    label: str
    before: float
    after: float | None
    text: Callable[[float], str]


def bars(title: str, groups: Sequence[Group], *, shared: bool) -> str:
    """Horizontal bars, two for each group, their values in figures beside them.

    shared: one scale for all groups; otherwise each group has its own.
    """
    largest = [max(group.before, group.after or 0) for group in groups]
    marks, said, y = [], [], 8
    for group, own in zip(groups, largest, strict=True):
        scale = max(largest) if shared else own
        marks.append(f'<text x="{LEFT - 14}" y="{y + THICK}" text-anchor="end">{escape(group.label)}</text>')
        for kind, value in (("before", group.before), ("after", group.after)):
            if value is None:
                continue
            note = f"{kind} {group.text(value)}"
            if kind == "after" and group.before:
                note += f" ({value / group.before - 1:+.1%})"
            length = max(1.0, (WIDTH - LEFT - RIGHT) * value / scale) if scale else 1.0
            marks.append(f'<rect class="bar {kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{THICK - 4}"/>')
            marks.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + THICK - 8}">{escape(note)}</text>')
            said.append(f"{group.label} {note}")
            y += THICK
        y += THICK
    return _svg(title, "; ".join(said), y - THICK + 8, marks)


@dataclass(frozen=True)
class Point:
    """The errors at one site, where they were measured."""

    label: str
    before: float | None
    after: float | None


def errors_by_layer(title: str, points: Sequence[Point]) -> str:
    """Errors on a logarithmic axis, a column for each point: circles before, diamonds after.

    Errors of zero lie on the lowest line; those that are not finite, on the uppermost. Each mark names its site when
    pointed at.
    """
    values = [v for p in points for v in (p.before, p.after) if v is not None and math.isfinite(v) and v > 0]
    zero = any(v == 0 for p in points for v in (p.before, p.after))
    low = (math.floor(math.log10(min(values))) if values else -8) - zero
    axis = _Axis(low, max(math.ceil(math.log10(max(values))) if values else -6, low + 2))
    size = 5 if len(points) <= 60 else 3.5 if len(points) <= 200 else 2.5
    marks = axis.lines(zero)
    for index, point in enumerate(points):
        x = axis.left + (WIDTH - axis.left - 20) * (index + 0.5) / len(points)
        for kind, value in (("before", point.before), ("after", point.after)):
            if value is not None:
                marks.append(_mark(kind, x, axis.y(value), size, f"{point.label}, {kind}: {value:.2e}"))
    middle = (axis.left + WIDTH - 20) / 2
    marks.append(
        f'<text x="{middle:.0f}" y="{axis.bottom + 28}" text-anchor="middle">batch norms, in graph order</text>'
    )
    worst = {
        kind: max((getattr(p, kind) for p in points if getattr(p, kind) is not None), default=None) for kind in KINDS
    }
    said = "; ".join(f"largest error {kind}: {value:.1e}" for kind, value in worst.items() if value is not None)
    return _svg(title, said, axis.bottom + 40, marks)


class _Axis:
    left, top, bottom = 70, 12, 300

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def y(self, value: float) -> float:
        if value == 0:
            return self.bottom
        if not math.isfinite(value):
            return self.top
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.bottom - (self.bottom - self.top) * share

    def lines(self, zero: bool) -> list[str]:
        step = math.ceil((self.high - self.low) / 8)
        decades = range(self.low + 1 if zero else self.low, self.high + 1, step)
        ticks = [(self.y(10.0**decade), f"1e{decade}") for decade in decades]
        if zero:
            ticks.append((self.bottom, "0"))
        return [
            f'<line class="grid" x1="{self.left}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{self.left - 10}" y="{y + 5:.1f}" text-anchor="end">{text}</text>'
            for y, text in ticks
        ]


def _mark(kind: str, x: float, y: float, size: float, label: str) -> str:
    said = f"<title>{escape(label)}</title>"
    if kind == "before":
        return f'<circle class="mark before" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{said}</circle>'
    path = f"M{x:.1f} {y - size:.1f}l{size} {size}l-{size} {size}l-{size} -{size}z"
    return f'<path class="mark after" d="{path}">{said}</path>'


def _svg(title: str, said: str, height: float, marks: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(f"{title}. {said}")}">'
    return "\n".join(['<div class="wide">', head, *marks, "</svg></div>"])
