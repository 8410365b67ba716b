"""Hold a chat in a real terminal and draw what it shows, for README and docs/chat.md.

    python tools/record_chat.py docs/chat.svg --keys "What is the capital of France?" --keys /bye
    python tools/record_chat.py docs --all       # all pictures of the documentation

Each of --keys is typed and sent when the prompt is free. The last screen is drawn, with the terminal's own colours.
Answers come from the model as they are; look at them before a picture is kept: a small model says what is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from xml.sax.saxutils import escape

from terminal import Terminal

CHARACTER, LINE, MARGIN = 8.43, 20, 18  # pixels at 14px type
DARK = {
    "ground": "#0d1117", "default": "#e6edf3", "dim": "#8b949e", "black": "#484f58", "red": "#ff7b72",
    "green": "#7ee787", "brown": "#d29922", "blue": "#79c0ff", "magenta": "#d2a8ff", "cyan": "#56d4dd",
    "white": "#b1bac4",
}  # fmt: skip
LIGHT = {
    "ground": "#ffffff", "default": "#1f2328", "dim": "#656d76", "black": "#24292f", "red": "#cf222e",
    "green": "#116329", "brown": "#7d4e00", "blue": "#0969da", "magenta": "#8250df", "cyan": "#1b7c83",
    "white": "#6e7781",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """keys: what is sent at each prompt. until: a text that the last screen shows; otherwise it is the next prompt."""

    keys: list[str]
    columns: int = 84
    lines: int = 20
    colours: dict[str, str] = field(default_factory=lambda: DARK)
    options: tuple[str, ...] = ()
    until: str = ""
    about: str = "A chat with edgellm in a terminal"


PICTURES = {
    "chat.svg": Picture(
        ["Write a short Python function that adds two numbers, and say in one sentence what it does.", "/stats"],
        lines=18, options=("--temp", "0.5", "--seed", "2"),
    ),
    "chat-narrow.svg": Picture(
        ["Give me three tips for a good night's sleep, as a list."], columns=40, lines=14, colours=LIGHT,
        options=("--temp", "0.5", "--seed", "1"), about="A chat in a terminal of forty columns, on a light ground",
    ),
    "chat-reading.svg": Picture(
        ["/read docs/architecture.md", "Sum this up."], lines=7, until="s left",
        about="A long prompt is being read; a line says how far, and how long it will take",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--keys", action="append", default=[])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--columns", type=int, default=84)
    parser.add_argument("--lines", type=int, default=24)
    parser.add_argument("--light", action="store_true")
    args = parser.parse_args()
    if args.all:
        for name, picture in PICTURES.items():
            (args.out / name).write_text(drawn(picture, args.model), encoding="utf-8")
        return
    colours = LIGHT if args.light else DARK
    picture = Picture(args.keys, args.columns, args.lines, colours)
    args.out.write_text(drawn(picture, args.model), encoding="utf-8")


def drawn(picture: Picture, model: str) -> str:
    """The SVG of what the terminal shows when all keys were answered."""
    command = [sys.executable, "-m", "edgellm", "run", model, *picture.options]
    with tempfile.TemporaryDirectory() as folder:  # conversations are not to be kept among those of a person
        terminal = Terminal(command, picture.columns, picture.lines, 180, XDG_DATA_HOME=folder)
        terminal.prompt()
        for number, keys in enumerate(picture.keys, 1):
            terminal.type(f"{keys}\r")
            terminal.look(0.5)
            if picture.until and number == len(picture.keys):
                terminal.wait_for(picture.until)
            else:
                terminal.prompt()
                terminal.look(1)  # the status line
        typed = " ".join(["$ edgellm run", model, *picture.options])
        picture_text = svg(terminal, picture, typed)
        terminal.kill()
    return picture_text


def svg(terminal: Terminal, picture: Picture, first: str) -> str:
    """A screen as a picture, below the command that was typed."""
    display, colours = terminal.display, picture.colours
    screen = [_spans(display.buffer[y], display.columns) for y in range(display.lines)]
    command = [[(line, "green", False, False)] for line in textwrap.wrap(first, picture.columns)]
    rows = [*command, *screen]
    width, height = picture.columns * CHARACTER + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN
    texts = []
    for y, row in enumerate(rows):
        column = 0
        for text, colour, bold, underlined in row:
            if shown := text.strip():
                x = MARGIN + (column + len(text) - len(text.lstrip())) * CHARACTER
                texts.append(_text(shown, x, MARGIN + (y + 0.75) * LINE, colours, colour, bold, underlined))
            column += len(text)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" role="img" '
        f'aria-label="{escape(picture.about)}">',
        "<style>text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}</style>",
        f'<rect width="{width:.0f}" height="{height}" rx="10" fill="{colours["ground"]}"/>',
        *texts,
        "</svg>\n",
    ])  # fmt: skip


def _text(text: str, x: float, y: float, colours: dict[str, str], colour: str, bold: bool, underlined: bool) -> str:
    style = f'fill="{colours.get(colour, colours["default"])}"'
    if bold or underlined:
        style += f' style="{"font-weight:bold;" * bold}{"text-decoration:underline" * underlined}"'
    return f'<text x="{x:.1f}" y="{y:.0f}" textLength="{len(text) * CHARACTER:.1f}" {style}>{escape(text)}</text>'


def _spans(row: dict, columns: int) -> list[tuple[str, str, bool, bool]]:
    """The texts of a row that look alike: (text, colour, bold, underlined)."""
    cells = [row[x] for x in range(columns)]
    looks = groupby(cells, key=lambda cell: (cell.fg, cell.bold, cell.underscore))
    return [("".join(cell.data for cell in alike), *look) for look, alike in looks]


if __name__ == "__main__":
    main()
