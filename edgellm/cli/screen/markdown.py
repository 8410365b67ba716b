"""An answer as Markdown while it comes.

Its blocks (paragraphs, lists, tables, programs) are drawn one after the other. Only the last is still open; it is
parsed and drawn anew when more of it has come, and what is above it is never touched again.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from rich import markdown as rich_markdown
from rich import syntax
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import MarkdownIt, Token
from rich.rule import Rule
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.text import Text
from rich.theme import Theme

from edgellm.cli.screen.painter import Painter
from edgellm.cli.terminal import columns, harmless

_DRAWING_SHARE = 20  # drawing takes a twentieth of the time at most, the rest is the model's
_LEAST_SECONDS = 1 / 30  # between two drawings
_MOST_COLOURED = 20_000  # characters of a program: more are shown without colours

# The terminal's own colours, on its own background: they are meant to be read there, whether it is light or dark.
_THEME = Theme(
    {
        "markdown.h1": "bold underline", "markdown.h2": "bold", "markdown.h3": "bold", "markdown.h4": "bold",
        "markdown.h5": "bold", "markdown.h6": "bold", "markdown.h7": "bold",
        "markdown.code": "cyan", "markdown.code_block": "none", "markdown.block_quote": "italic",
        "markdown.item.bullet": "cyan", "markdown.item.number": "cyan", "markdown.hr": "dim",
        "markdown.link": "underline", "markdown.link_url": "blue", "markdown.table.border": "dim",
        "markdown.table.header": "bold", "markdown.kbd": "bold",
    }
)  # fmt: skip


def _program_colours() -> ANSISyntaxTheme:
    colours: dict[Any, str] = {
        syntax.Comment: "dim italic", syntax.String: "green", syntax.Number: "cyan",
        syntax.Keyword: "magenta", syntax.Operator.Word: "magenta", syntax.Name.Decorator: "yellow",
        syntax.Name.Function: "blue", syntax.Name.Class: "blue bold", syntax.Name.Tag: "blue",
        syntax.Generic.Deleted: "red", syntax.Generic.Inserted: "green",
    }  # fmt: skip
    return ANSISyntaxTheme({kind: Style.parse(words) for kind, words in colours.items()})


class MarkdownView:
    """Draws answers; see `View`."""

    def __init__(self) -> None:
        self._parser = _parser()
        self._painter = Painter()
        self._open = ""  # the text of the last block
        self._is_first = True  # no block of this answer is above
        self._next_drawing = 0.0

    def show(self, piece: str) -> None:
        self._open += harmless(piece)
        now = time.monotonic()
        if now >= self._next_drawing:
            self._draw()
            taken = time.monotonic() - now
            self._next_drawing = now + taken + max(_LEAST_SECONDS, _DRAWING_SHARE * taken)

    def end(self) -> None:
        self._draw()
        self._painter.keep()
        if self._is_first and not self._open.strip():
            sys.stdout.write("\n")
        self._open, self._is_first, self._next_drawing = "", True, 0.0
        sys.stdout.flush()

    def _draw(self) -> None:
        blocks = list(_blocks(self._parser.parse(self._open)))
        lines = self._open.split("\n")
        for this, after in itertools.pairwise(blocks):
            self._paint(this)
            self._painter.keep()
            self._is_first = False
            self._open = "\n".join(lines[_line_of(after) :])
        if blocks:
            self._paint(blocks[-1])

    def _paint(self, block: list[Token]) -> None:
        above = [] if self._is_first else [""]
        self._painter.show(above + _drawn(block))


def _parser() -> MarkdownIt:
    """Of CommonMark with tables. What it would leave out when drawn (HTML, definitions of links) stays text."""
    options = {"html": False, "linkify": False, "typographer": False}
    return MarkdownIt("commonmark", options).enable(["strikethrough", "table"]).disable("reference")


def _blocks(tokens: list[Token]) -> Iterator[list[Token]]:
    """The tokens of one block after the other."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _line_of(block: list[Token]) -> int:
    return block[0].map[0] if block[0].map else 0


def _drawn(block: list[Token]) -> list[str]:
    """The lines of a block, for a terminal of this width."""
    console = Console(
        file=sys.stdout, force_terminal=True, width=max(columns() - 1, 10), theme=_THEME, highlight=False,
        no_color=bool(os.environ.get("NO_COLOR")), legacy_windows=False,
    )  # fmt: skip
    with console.capture() as capture:
        console.print(_Markdown(block), end="")
    lines = [line.rstrip(" ") for line in capture.get().split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines


class _Heading(rich_markdown.Heading):
    LEVEL_ALIGN: ClassVar[dict[str, Any]] = {}  # none is centred


class _Program(rich_markdown.CodeBlock):
    """A program, below the name of its language."""

    @classmethod
    def create(cls, markdown: rich_markdown.Markdown, token: Token) -> _Program:
        program = cls((token.info or "").partition(" ")[0] or "text", markdown.code_theme)
        program.info = token.info or ""
        return program

    info = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        if self.info.strip():
            yield Text(self.info.strip(), style="dim")
        language = self.lexer_name if len(code) <= _MOST_COLOURED else "text"
        yield Syntax(code, language, theme=_program_colours(), word_wrap=True, background_color="default")


class _Rule(rich_markdown.HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="markdown.hr", characters="─")


class _Markdown(rich_markdown.Markdown):
    """Blocks that are parsed already. Line ends stay, as in poems; links and pictures are shown with their address."""

    elements: ClassVar[dict[str, Any]] = rich_markdown.Markdown.elements | {
        "heading_open": _Heading, "fence": _Program, "code_block": _Program, "hr": _Rule,
    }  # fmt: skip

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = tokens
        for token in tokens:
            _made_plain(token)


def _made_plain(token: Token) -> None:
    """What would be left out when it is drawn becomes text."""
    for child in token.children or ():
        address = str(child.attrs.get("href", child.attrs.get("src", "")))
        if title := child.attrs.pop("title", ""):
            address = f'{address} "{title}"'
        if child.type == "softbreak":
            child.type = "hardbreak"
        elif child.type == "link_open":
            child.attrs["href"] = address
        elif child.type == "image":
            child.type, child.tag, child.content, child.children = "text", "", f"![{child.content}]({address})", None
