"""A run's losses as a picture: an SVG file that suits light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

WIDTH, HEIGHT = 742, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 58, 46  # margins
MOST_POINTS = 600  # of a line; more would be drawn over each other
SMOOTHED_PART = 0.04  # of all steps: so many weigh most in a point of the smoothed line

Point: TypeAlias = tuple[float, float]

# The colours on light pages, and on dark ones. Without variables, which few viewers but browsers know.
_COLOURS = {
    ".paper{fill:": ("#f8fafc", "#11171e"),
    ".grid{stroke:": ("#dde3ea", "#2b3642"),
    "text{fill:": ("#52606d", "#9aa7b4"),
    ".title{fill:": ("#1f2933", "#e6edf3"),
    ".batch{stroke:": ("#a9c7d8", "#2f566b"),
    ".line{stroke:": ("#0b6e99", "#5cc3ef"),
    ".other{stroke:": ("#c2410c", "#ff9a5c"),
    "circle{fill:": ("#c2410c", "#ff9a5c"),
}
_LIGHT, _DARK = ("".join(f"{what}{colours[i]}}}" for what, colours in _COLOURS.items()) for i in (0, 1))
_STYLE = (
    "text{font:12px system-ui,'DejaVu Sans',sans-serif}.title{font-size:14px}path{fill:none;stroke-linejoin:round}"
    f".line,.other{{stroke-width:2}}\n{_LIGHT}\n@media (prefers-color-scheme:dark){{{_DARK}}}"
)


def loss_curve(entries: Iterable[Mapping[str, Any]], title: str) -> str:
    """The SVG of a log's entries: the loss of every batch, the same smoothed, and the validation loss.

    Numbers that are none are left out. Without any number there are axes alone.
    """
    entries = list(entries)
    losses, validations = _points(entries, "loss"), _points(entries, "validation_loss")
    axes = _Axes([*losses, *validations])
    parts = [f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>', *axes.drawn()]
    if losses:
        smoothed = _smoothed(losses)
        parts += [_path("batch", axes, _thinned(losses)), _path("line", axes, _thinned(smoothed))]
        parts += _legend(0, "batch", "batches") + _legend(100, "line", f"smoothed, at the end {smoothed[-1][1]:.3f}")
    if validations:
        best = min(value for _, value in validations)
        parts += [_path("other", axes, validations), *(_dot(axes, point) for point in validations)]
        parts += _legend(320, "other", f"validation, at best {best:.3f}")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    paper = f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
    body = "\n".join([f'{head} role="img" aria-label="{escape(title)}">', f"<style>{_STYLE}</style>", paper, *parts])
    return f"{body}\n</svg>\n"


class _Axes:
    """Where numbers lie in the picture, with round numbers along both axes."""

    def __init__(self, points: Sequence[Point]) -> None:
        steps, values = ([point[i] for point in points] or [0.0, 1.0] for i in (0, 1))
        self.steps = round_numbers(0, max(steps), 8, least=1)
        self.values = round_numbers(min(values), max(values), 6)
        self.last = max(max(steps), self.steps[-1] * 1e-9, 1)

    def x(self, step: float) -> float:
        return LEFT + step / self.last * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values[0], self.values[-1]
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def drawn(self) -> list[str]:
        parts = []
        for value in self.values:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>')
        for step in self.steps:
            if step <= self.last:
                at = f'x="{self.x(step):.1f}" y="{HEIGHT - BOTTOM + 18}"'
                parts.append(f'<text {at} text-anchor="middle">{_label(step)}</text>')
        middle = (TOP + HEIGHT - BOTTOM) / 2
        parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>')
        turned = f'transform="rotate(-90 14 {middle})"'
        parts.append(f'<text x="14" y="{middle}" text-anchor="middle" {turned}>loss, nats per token</text>')
        return parts


def round_numbers(low: float, high: float, most: int, least: float = 0.0) -> list[float]:
    """At most about so many round numbers from `low` or below it to `high` or above, at steps of 1, 2 or 5 times 10^n.

    least:  of a step between them.
    """
    span = max(high - low, abs(high) * 1e-6, least, 1e-12)
    size = 10 ** math.floor(math.log10(span / most))
    step = max(least, next(size * factor for factor in (1, 2, 5, 10) if size * factor * most >= span * (1 - 1e-9)))
    first = math.floor(low / step + 1e-9)
    last = max(first + 1, math.ceil(high / step - 1e-9))
    return [n * step for n in range(first, last + 1)]


def _label(number: float) -> str:
    if abs(number) >= 1e6 or 0 < abs(number) < 1e-4:
        return f"{number:.4g}"
    return f"{number:.10f}".rstrip("0").rstrip(".")


def _points(entries: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    found: list[tuple[Any, Any]] = [(entry.get("step"), entry.get(name)) for entry in entries]
    return [(float(x), float(y)) for x, y in found if _is_number(x) and _is_number(y)]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Means in which what lies further back counts less and less; the first ones are not drawn towards 0."""
    keep = 1 - 1 / max(1.0, SMOOTHED_PART * len(points))
    total = weight = 0.0
    found = []
    for step, loss in points:
        total, weight = keep * total + loss, keep * weight + 1
        found.append((step, total / weight))
    return found


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Of many points the lowest and the highest of every stretch, so that no peak is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    length = math.ceil(2 * len(points) / MOST_POINTS)
    found: list[Point] = []
    for begin in range(0, len(points), length):
        part = points[begin : begin + length]
        found += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return found


def _path(kind: str, axes: _Axes, points: Iterable[Point]) -> str:
    places = " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in points)
    return f'<path class="{kind}" d="M{places}"/>'


def _dot(axes: _Axes, point: Point) -> str:
    return f'<circle cx="{axes.x(point[0]):.1f}" cy="{axes.y(point[1]):.1f}" r="3"/>'


def _legend(x: float, kind: str, text: str) -> list[str]:
    x += LEFT
    return [f'<path class="{kind}" d="M{x},40 {x + 22},40"/>', f'<text x="{x + 28}" y="44">{text}</text>']
