"""The figures of docs/quantization.md: what formats make of a few weights, and what each loses of many.

    python tools/draw_quantization.py docs

Both are computed here, from weights that were never quantized before.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from edgellm.quants import FORMATS
from edgellm.quants.floats import FloatFormat

WIDTH, MARGIN = 742, 46
LETTER = 7.6  # of a label, in pixels, at most
BESIDE = 12  # pixels up or down from its point, at most, where a label needs no line to it
INK, FAINT, ACCENT, SECOND = "#1f2933", "#c3ccd5", "#0b6e99", "#c2410c"
STYLE = "<style>text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2933}"
STYLE += ".small{fill:#52606d;paint-order:stroke;stroke:#f8fafc;stroke-width:4px}</style>"

# What the first figure shows, and in which words.
PANELS = {
    "Q4_0": "one scale: 16 levels around zero",
    "Q4_1": "a scale and a minimum: 16 levels where the weights are",
    "IQ4_NL": "one scale, 16 uneven levels: close together where most weights are",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path)
    docs = parser.parse_args().docs
    (docs / "quantization-block.svg").write_text(block_figure(), encoding="utf-8")
    (docs / "quantization-loss.svg").write_text(loss_figure(losses()), encoding="utf-8")


def block_figure() -> str:
    """One group of 32 weights, and the levels that three formats of 4 bits lay over it."""
    x = np.random.default_rng(11).standard_normal(32).astype(np.float32) * 0.04 + 0.03
    height, gap = 230, 40
    parts = []
    for row, (name, words) in enumerate(PANELS.items()):
        top = 24 + row * (height + gap)
        parts += _panel(name, words, x, top, height)
    return _svg(24 + len(PANELS) * (height + gap), parts, "Thirty-two weights, and the levels of three 4-bit formats")


def _panel(name: str, words: str, x: np.ndarray, top: float, height: float) -> list[str]:
    fmt = FORMATS[name]
    raw = fmt.quantize(x)
    rounded = fmt.dequantize(raw)
    span = 1.15 * float(np.abs(x).max())

    def y_of(value: float) -> float:
        return top + 14 + (height - 14) * (0.5 - value / (2 * span))

    error = math.sqrt(float(np.square(rounded - x).mean()) / float(np.square(x).mean()))
    title = f"{name}: {words}. Error {100 * error:.1f} % of the weights' size"
    parts = [f'<text x="{MARGIN}" y="{top}">{title}</text>']
    for level in _levels(name, raw):
        if abs(level) <= span:
            y = y_of(level)
            parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
    for i, (weight, level) in enumerate(zip(x, rounded, strict=True)):
        cx = MARGIN + 14 + i * (WIDTH - MARGIN - 40) / 31
        parts.append(
            f'<line x1="{cx:.1f}" x2="{cx:.1f}" y1="{y_of(weight):.1f}" y2="{y_of(level):.1f}" stroke="{SECOND}" '
            'stroke-width="4"/>'
        )
        parts.append(f'<circle cx="{cx:.1f}" cy="{y_of(weight):.1f}" r="2.2" fill="{ACCENT}"/>')
    parts.append(f'<text class="small" x="4" y="{y_of(0) + 4:.1f}">0</text>')
    return parts


def _levels(name: str, raw: np.ndarray) -> list[float]:
    """All numbers that a block with these scales could hold: every byte of its 4-bit part in turn."""
    fmt = FORMATS[name]
    blocks = np.repeat(raw.reshape(1, -1), 16, axis=0).view(fmt.layout)[:, 0]
    blocks["qs"] = (np.arange(16, dtype=np.uint8) * 17)[:, None]
    return sorted({float(value) for value in fmt.decode(blocks)[:, 0]})


def losses() -> list[tuple[str, float, float]]:
    """(type, bits per weight, error in percent of the weights' size) of each type, of weights with a normal spread."""
    x = np.random.default_rng(11).standard_normal(256 * 1024).astype(np.float32).reshape(64, -1)
    found = []
    for name, fmt in FORMATS.items():
        if isinstance(fmt, FloatFormat):
            continue
        rounded = np.stack([fmt.dequantize(fmt.quantize(row)) for row in x])
        error = math.sqrt(float(np.square(rounded - x).mean()) / float(np.square(x).mean()))
        found.append((name, 8 * fmt.row_bytes(x.shape[1]) / x.shape[1], 100 * error))
    return sorted(found, key=lambda point: point[1])


def loss_figure(points: list[tuple[str, float, float]]) -> str:
    """Error over size, the first on a logarithmic axis."""
    height = 400
    left, right = math.floor(min(p[1] for p in points)), math.ceil(max(p[1] for p in points))
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50) if tick >= min(p[2] for p in points) / 2]
    bottom, top = math.log10(ticks[0]), math.log10(ticks[-1])

    def place(size: float, error: float) -> tuple[float, float]:
        return (
            MARGIN + 20 + (WIDTH - MARGIN - 70) * (size - left) / (right - left),
            24 + (height - 76) * (top - math.log10(error)) / (top - bottom),
        )

    parts = []
    for tick in ticks:
        x, y = place(left, tick)
        parts.append(f'<line x1="{x:.0f}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text class="small" x="6" y="{y + 4:.1f}">{tick:g} %</text>')
    for whole in range(left, right + 1):
        x, y = place(whole, ticks[0])
        parts.append(f'<text class="small" x="{x - 3:.1f}" y="{y + 18:.1f}">{whole}</text>')
    places = [place(size, error) for _, size, error in points]
    for (name, _, _), (x, y), (left_end, baseline) in zip(points, places, labels(points, places), strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ACCENT}"/>')
        if abs(baseline - 4 - y) > BESIDE:  # which point it belongs to would not be seen
            near = min(max(x, left_end), left_end + LETTER * len(name))
            end = baseline + 2 if baseline < y else baseline - 10
            parts.append(f'<path d="M{x:.1f} {y:.1f}L{near:.1f} {end:.1f}" stroke="{ACCENT}" stroke-width="0.8"/>')
        parts.append(f'<text class="small" x="{left_end:.1f}" y="{baseline:.1f}">{name}</text>')
    axes = "bits per weight; up: root mean square error, in percent of the weights' size"
    parts.append(f'<text x="{MARGIN + 20}" y="{height - 8}">{axes}</text>')
    return _svg(height, parts, "Error and size of the types")


Box = tuple[float, float, float, float]  # left, top, right, bottom


def labels(points: list[tuple[str, float, float]], places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where the name of each point begins, beside it and over no other name or point.

    Raises ValueError when there is no such place; the figure then needs more room.
    """
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    found = []
    for (name, _, _), (x, y) in zip(points, places, strict=True):
        width = LETTER * len(name)
        sides = (x + 8, x - 8 - width, x - width / 2)
        starts = [(side, y + shift) for shift in (4, -6, 14, -18, 26, -30, 38) for side in sides]
        free = [start for start in starts if not any(map(_overlap, [box_of(*start, width)] * len(taken), taken))]
        if not free:
            raise ValueError(f"no room for {name}")
        found.append(free[0])
        taken.append(box_of(*free[0], width))
    return found


def box_of(x: float, baseline: float, width: float) -> Box:
    """The place that a name takes."""
    return x, baseline - 10, x + width, baseline + 3


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _svg(height: float, parts: list[str], label: str) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    background = f'<rect {size} rx="8" fill="#f8fafc"/>'
    return "\n".join([head, STYLE, background, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
