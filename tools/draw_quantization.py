"""The figures of docs/quantization.md: what formats make of a few weights, and what their files lose.

    python tools/draw_quantization.py docs

The second figure shows the table in docs/quantization.md, so draw again when that was measured again.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import numpy as np

from edgellm.quants import FORMATS

WIDTH, MARGIN = 742, 46
INK, FAINT, ACCENT, SECOND = "#1f2933", "#c3ccd5", "#0b6e99", "#c2410c"
STYLE = "<style>text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2933}.small{fill:#52606d}</style>"

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
    points = measured_points((docs / "quantization.md").read_text(encoding="utf-8"))
    (docs / "quantization-loss.svg").write_text(loss_figure(points), encoding="utf-8")


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


def measured_points(text: str) -> list[tuple[str, float, float]]:
    """(type, bits per weight, mean divergence) from the table of losses."""
    table = text[text.index("| mean KL divergence | llama.cpp's |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| [\d.]+ \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    return [(name, float(bits), float(loss)) for name, bits, loss in rows if float(loss) > 0]


def loss_figure(points: list[tuple[str, float, float]]) -> str:
    """Divergence over size, the first on a logarithmic axis."""
    height = 330
    bits, losses = [p[1] for p in points], [math.log10(p[2]) for p in points]
    left, right = math.floor(min(bits)), math.ceil(max(bits))
    bottom, top = math.floor(min(losses)), math.ceil(max(losses))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            MARGIN + 20 + (WIDTH - MARGIN - 70) * (x - left) / (right - left),
            24 + (height - 60) * (top - y) / (top - bottom),
        )

    parts = []
    for power in range(bottom, top + 1):
        x, y = place(left, power)
        parts.append(f'<line x1="{x:.0f}" x2="{WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(f'<text class="small" x="6" y="{y + 4:.1f}">{10.0**power:g}</text>')
    for whole in range(left, right + 1):
        x, y = place(whole, bottom)
        parts.append(f'<text class="small" x="{x - 3:.1f}" y="{y + 18:.1f}">{whole}</text>')
    for name, size, loss in points:
        x, y = place(size, math.log10(loss))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{ACCENT}"/>')
        parts.append(f'<text class="small" x="{x + 7:.1f}" y="{y - 5:.1f}">{name}</text>')
    axes = "bits per weight; up: mean KL divergence from the original"
    parts.append(f'<text x="{MARGIN + 20}" y="{height - 4}">{axes}</text>')
    return _svg(height, parts, "Loss and size of the types")


def _svg(height: float, parts: list[str], label: str) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">'
    background = f'<rect {size} rx="8" fill="#f8fafc"/>'
    return "\n".join([head, STYLE, background, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
