"""The figures of docs/kv-cache.md: blocks and tables, what texts share, and a pass that checks guesses.

python tools/draw_kv_cache.py docs
"""

from __future__ import annotations

import argparse
from pathlib import Path

WIDTH = 742
INK, FAINT, ACCENT, SECOND = "#1f2933", "#c3ccd5", "#0b6e99", "#c2410c"
PALE, PALE_SECOND, GREY = "#d8ecf4", "#fbe3d6", "#eef1f4"
STYLE = (
    "<style>text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#1f2933}.small{fill:#52606d;font-size:11px}</style>"
)
HEAD = "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
HEAD += f"<path d='M0 0L8 4L0 8z' fill='{INK}'/></marker></defs>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("docs", type=Path)
    docs = parser.parse_args().docs
    for name, figure in {"paging": paging, "sharing": sharing, "speculation": speculation}.items():
        (docs / f"kv-cache-{name}.svg").write_text(figure(), encoding="utf-8")


def paging() -> str:
    """Two texts, their tables, and the blocks of one pool."""
    parts = [text(16, 22, "Text A: 150 tokens"), text(16, 152, "Text B: 70 tokens")]
    tables = {"A": ([5, 1, 4], 32, ACCENT, PALE, 150), "B": ([2, 6], 162, SECOND, PALE_SECOND, 70)}
    pool_left, pool_top, size, gap = 470, 32, 56, 10
    owner = {block: (color, pale) for blocks, _, color, pale, _ in tables.values() for block in blocks}
    for block in range(8):
        x, y = pool_left + block % 4 * (size + gap), pool_top + block // 4 * (size + 54)
        color, pale = owner.get(block, (FAINT, "#ffffff"))
        parts.append(box(x, y, size, size, pale, color))
        parts.append(text(x + size / 2, y + 33, str(block), anchor="middle"))
    for name, (blocks, top, color, pale, n) in tables.items():
        parts.append(text(16, top + 82, f"table of {name}", "small"))
        for i, block in enumerate(blocks):
            x, used = 16 + i * 108, min(64, n - 64 * i)
            parts.append(box(x, top, 100, 22, "#ffffff", color))
            parts.append(box(x + 1, top + 1, 98 * used / 64, 20, pale, "none"))
            parts.append(text(x + 50, top + 15, f"{64 * i} to {64 * i + used - 1}", "small", "middle"))
            parts.append(box(100 + i * 44, top + 66, 36, 24, pale, color))
            parts.append(text(118 + i * 44, top + 83, str(block), anchor="middle"))
            parts.append(line(x + 50, top + 24, 118 + i * 44, top + 64, FAINT))
    parts.append(text(pool_left, 22, "The pool: blocks of 64 tokens, in every layer"))
    parts.append(text(pool_left, 236, "0, 3 and 7 are free", "small"))
    parts.append(line(244, 110, pool_left - 12, 110, INK, arrow=True))
    parts.append(line(200, 240, pool_left - 12, 190, INK, arrow=True))
    return svg(272, parts, "Two texts, their block tables, and a pool of eight blocks")


def sharing() -> str:
    """A system prompt in two blocks, three chats behind it."""
    parts: list[str] = []

    def node(x: float, y: float, title: str, words: str, color: str = ACCENT, pale: str = PALE) -> None:
        parts.append(box(x, y, 148, 50, pale, color))
        parts.append(text(x + 74, y + 21, title, anchor="middle"))
        parts.append(text(x + 74, y + 38, words, "small", "middle"))

    def link(x: float, y: float, to_x: float, to_y: float, color: str = INK) -> None:
        parts.append(line(x + 150, y + 25, to_x - 3, to_y + 25, color, arrow=True))

    node(16, 104, "You are a helpful ...", "key 9f3a, held by 2")
    node(206, 104, "... answer briefly.", "key 41c7, held by 2")
    link(16, 104, 206, 104)
    node(396, 24, "Name three rivers.", "key b802, held by A")
    node(396, 104, "Name three lakes.", "40 tokens, held by B")
    node(396, 184, "What is a fjord?", "key 77d0, held by none", FAINT, GREY)
    for y in (24, 104, 184):
        link(206, 104, 396, y)
    node(586, 24, "The Rhine, the ...", "12 tokens, held by A")
    link(396, 24, 586, 24)
    parts.append(text(16, 92, "the beginning, computed once", "small"))
    parts.append(text(586, 92, "A alone goes on here", "small"))
    parts.append(text(396, 252, "an ended chat: known until its room is needed", "small"))
    return svg(268, parts, "Chats with the same beginning share its blocks")


def speculation() -> str:
    """Five guesses in one pass: three are right."""
    tokens = ["return", "self", ".", "width", "*", "height"]
    chosen = ["self", ".", "width", "+"]
    left, step, wide = 150, 98, 86
    rows = {"computed": 44, "chosen": 130, "kept": 216}
    parts = [text(16, y + 18, words) for words, y in
             (("one pass reads", 44), ("and each place gives", 130), ("kept", 216))]  # fmt: skip
    parts.append(text(left, 30, "known", "small"))
    parts.append(text(left + step, 30, "guessed: what came after “return” last time", "small"))
    for i, token in enumerate(tokens):
        x = left + i * step
        is_right = i == 0 or (i <= len(chosen) and chosen[i - 1] == token)
        color, pale = (ACCENT, PALE) if is_right else (SECOND, PALE_SECOND)
        parts.append(box(x, rows["computed"], wide, 28, GREY if i == 0 else pale, FAINT if i == 0 else color))
        parts.append(text(x + wide / 2, rows["computed"] + 19, token, anchor="middle"))
        if i < len(chosen):
            parts.append(line(x + wide / 2, rows["computed"] + 30, x + wide / 2, rows["chosen"] - 3, INK, arrow=True))
            parts.append(box(x, rows["chosen"], wide, 28, "#ffffff", INK))
            parts.append(text(x + wide / 2, rows["chosen"] + 19, chosen[i], anchor="middle"))
            parts.append(line(x + wide / 2, rows["chosen"] + 30, x + wide / 2, rows["kept"] - 3, INK, arrow=True))
            parts.append(box(x, rows["kept"], wide, 28, PALE, ACCENT))
            parts.append(text(x + wide / 2, rows["kept"] + 19, chosen[i], anchor="middle"))
        else:
            parts.append(text(x + wide / 2, rows["chosen"] + 19, "not asked", "small", "middle"))
    parts.append(text(left + 4 * step, rows["kept"] + 19, "“*” was guessed, “+” was chosen:", "small"))
    parts.append(text(left + 4 * step, rows["kept"] + 35, "the rest is thrown away", "small"))
    return svg(270, parts, "One pass checks five guesses; three were right, so it gives four tokens")


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='4' fill='{fill}' stroke='{stroke}' "
        "stroke-width='1.4'/>"
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    kind = f" class='{kind}'" if kind else ""
    return f"<text x='{x:g}' y='{y:g}' text-anchor='{anchor}'{kind}>{words}</text>"


def line(x: float, y: float, to_x: float, to_y: float, color: str, arrow: bool = False) -> str:
    head = " marker-end='url(#head)'" if arrow else ""
    return f"<line x1='{x:g}' y1='{y:g}' x2='{to_x:g}' y2='{to_y:g}' stroke='{color}' stroke-width='1.3'{head}/>"


def svg(height: float, parts: list[str], title: str) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:g}' width='{WIDTH}' height='{height:g}'"
    )
    ground = f"<rect width='{WIDTH}' height='{height:g}' fill='#ffffff'/>"
    return "\n".join([f"{head} role='img'>", f"<title>{title}</title>", STYLE, HEAD, ground, *parts, "</svg>", ""])


if __name__ == "__main__":
    main()
