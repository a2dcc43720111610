"""Charts as inline SVG; colours come from the classes ``before`` and ``after`` of the page around them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import ClassVar, Self

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


def errors_by_layer(title: str, points: Sequence[Point], allowed: float | None = None) -> str:
    """Errors on a logarithmic axis, a column for each point: circles before, diamonds after.

    Errors of zero lie on the lowest line; those that are not finite, on the uppermost. Each mark names its site when
    pointed at. allowed: a dashed line.
    """
    values = [value for point in points for value in (point.before, point.after) if value is not None]
    axis = _Axis.of(values + ([allowed] if allowed else []))
    size = 5 if len(points) <= 60 else 3.5 if len(points) <= 200 else 2.5
    marks, said = axis.lines(), []
    if allowed:
        y = axis.y(allowed)
        marks.append(f'<line class="allowed" x1="{axis.left}" x2="{axis.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        said.append(f"allowed: {allowed:.0e}")
    for kind in KINDS:
        column = [(index, getattr(point, kind)) for index, point in enumerate(points)]
        measured = [(index, value) for index, value in column if value is not None]
        for index, value in measured:
            x = axis.left + (axis.right - axis.left) * (index + 0.5) / len(points)
            marks.append(_mark(kind, x, axis.y(value), size, f"{points[index].label}, {kind}: {value:.2e}"))
        if measured:
            said.append(f"largest {kind}: {max(value for _, value in measured):.1e}")
    middle, low = (axis.left + axis.right) / 2, axis.bottom + 28
    marks.append(f'<text x="{middle:.0f}" y="{low}" text-anchor="middle">batch norms, in graph order</text>')
    return _svg(title, "; ".join(said), axis.bottom + 40, marks)


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis over the decades from ``low`` to ``high``; with ``zero``, 0 stands in place of ``low``."""

    low: int
    high: int
    zero: bool
    left: ClassVar = 70
    right: ClassVar = WIDTH - 20
    top: ClassVar = 12
    bottom: ClassVar = 300

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        decades = [math.log10(value) for value in values if math.isfinite(value) and value > 0] or [-8.0, -6.0]
        zero = 0 in values
        low = math.floor(min(decades)) - zero
        return cls(low, max(math.ceil(max(decades)), low + 2), zero)

    def y(self, value: float) -> float:
        if not math.isfinite(value):
            return self.top
        return self._height(math.log10(value) if value else self.low)

    def lines(self) -> list[str]:
        decades = range(self.low + self.zero, self.high + 1, math.ceil((self.high - self.low) / 8))
        ticks = [(self._height(decade), f"1e{decade}") for decade in decades]
        if self.zero:
            ticks.append((self.bottom, "0"))
        return [
            f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{self.left - 10}" y="{y + 5:.1f}" text-anchor="end">{text}</text>'
            for y, text in ticks
        ]

    def _height(self, decade: float) -> float:
        return self.bottom - (self.bottom - self.top) * (decade - self.low) / (self.high - self.low)


def _mark(kind: str, x: float, y: float, size: float, label: str) -> str:
    said = f"<title>{escape(label)}</title>"
    if kind == "before":
        return f'<circle class="mark before" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{said}</circle>'
    path = f"M{x:.1f} {y - size:.1f}l{size} {size}l-{size} {size}l-{size} -{size}z"
    return f'<path class="mark after" d="{path}">{said}</path>'


def _svg(title: str, said: str, height: float, marks: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(f"{title}. {said}")}">'
    return "\n".join(['<div class="wide">', head, *marks, "</svg></div>"])
