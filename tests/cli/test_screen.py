"""What answers look like: words whole at any width, and Markdown drawn while it comes."""

from __future__ import annotations

import io
import re
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.cli import terminal
from edgellm.cli.screen import PlainView, WrappedView, view_of
from edgellm.cli.wrapping import Wrapper, wrapped

pyte = pytest.importorskip("pyte", reason="pyte shows what a terminal would show")
TEXTS = st.text(alphabet="ab c\n\t漢é*_`#-|>[]()!<&1.~\\", max_size=120)


class Output(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def drawn():
    """What the screen shows after pieces of an answer; the screen is high, so that nothing leaves it."""
    from edgellm.cli.screen import markdown, painter

    def draw(pieces: list[str], columns: int = 60, always: bool = True) -> list[str]:
        output = Output()
        patch = pytest.MonkeyPatch()
        with patch.context():
            patch.setattr(sys, "stdout", output)
            patch.setattr(markdown, "columns", lambda: columns)
            size = terminal.os.terminal_size((columns, 400))
            patch.setattr(painter.shutil, "get_terminal_size", lambda *_, **__: size)
            if always:
                patch.setattr(markdown, "_DRAWING_SHARE", 0)
                patch.setattr(markdown, "_LEAST_SECONDS", 0)
            view = markdown.MarkdownView()
            for piece in pieces:
                view.show(piece)
            view.end()
            patch.undo()
        screen = pyte.Screen(columns, 400)
        pyte.Stream(screen).feed(output.getvalue().replace("\n", "\r\n"))
        lines = [line.rstrip() for line in screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    return draw


# Wrapping.


@given(TEXTS, st.lists(st.integers(0, 120), max_size=5), st.integers(1, 30))
def test_wrapping_only_adds_line_ends_and_does_not_depend_on_pieces(text: str, cuts: list[int], columns: int) -> None:
    whole = wrapped(text, columns)
    wrapper = Wrapper(lambda: columns)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    assert "".join(map(wrapper.push, pieces)) + wrapper.finish() == whole
    assert re.sub(r"\s", "", whole) == re.sub(r"\s", "", text)


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=9), min_size=1, max_size=30), st.integers(9, 40))
def test_words_that_fit_are_never_broken(words: list[str], columns: int) -> None:
    lines = wrapped(" ".join(words), columns).split("\n")
    assert " ".join(line.strip() for line in lines).split() == words
    assert all(len(line) <= columns for line in lines)
    # No line could have taken the next word.
    for line, after in pairwise(lines):
        assert len(line.rstrip()) + 1 + len(after.split()[0]) > columns


def test_wrapping_knows_wide_and_combining_characters_and_tabs() -> None:
    assert wrapped("漢字漢字漢字", 5) == "漢字\n漢字\n漢字"
    assert wrapped("e\u0301" * 4 + " b", 6) == "e\u0301" * 4 + " b"
    assert wrapped("a\tb c", 9) == "a\tb\nc"
    assert wrapped("abcdefgh", 3) == "abc\ndef\ngh"
    assert wrapped("  indented\n    more", 30) == "  indented\n    more"


def test_a_view_for_each_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(view_of(markdown=True), PlainView)  # pytest's output is no terminal
    monkeypatch.setattr(sys, "stdout", Output())
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_of(markdown=True), WrappedView)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_of(markdown=False), WrappedView)
    assert type(view_of(markdown=True)).__name__ == "MarkdownView"
    monkeypatch.setitem(sys.modules, "rich", None)
    assert isinstance(view_of(markdown=True), WrappedView)


# Markdown.


def test_markdown_is_drawn(drawn) -> None:
    text = (
        "# Title\n\nSome **bold** `code`.\nA second line.\n\n- one\n- two\n\n1. a\n2. b\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n```python\ndef f():\n    return 1\n```\n> said\n\n[text](http://a.b) end"
    )
    lines = drawn([text])
    shown = "\n".join(lines)
    assert lines[0] == "Title" and "Some bold code.\nA second line." in shown
    assert " • one\n • two" in shown and " 1 a\n 2 b" in shown
    assert "def f():\n    return 1" in shown and "▌ said" in shown and "text (http://a.b) end" in shown
    assert not any(mark in shown for mark in ("**", "```", "|---"))


@pytest.mark.parametrize("text", [
    "<div>kept</div>", "a <b>c</b> d", "<think>\nhm\n</think>\nyes", "[name]: http://a.b", "![alt](http://a.b)",
    "&lt;", "\\*not\\*", "line one\nline two", "    indented program", "a\\\nb", "---", "***", "* * *\n",
    "<!-- note -->", "[^1]: foot", "| no | table", "1986. A year", "```\nopen", "```mermaid\nx-->y\n```", "~~gone~~",
    '[a](b "title")', '![a](b "title")', "<http://a.b>", "```python title=x.py\ny\n```",
])  # fmt: skip
def test_no_word_is_left_out(drawn, text: str) -> None:
    words = re.findall(r"[a-z0-9]+", text.replace("&lt;", ""))
    shown = " ".join(drawn([text]))
    assert [word for word in words if word not in shown] == []


@settings(max_examples=80, deadline=None)
@given(text=TEXTS, n=st.integers(1, 7), columns=st.integers(20, 60))
def test_pieces_are_drawn_as_the_whole(drawn, text: str, n: int, columns: int) -> None:
    pieces = [text[at : at + n] for at in range(0, len(text), n)]
    assert drawn(pieces, columns) == drawn([text], columns)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet='ab c\n漢é*_`#->[]()!<&1.~"\\', max_size=80))
def test_every_letter_is_drawn(drawn, text: str) -> None:
    shown = "".join(drawn([text]))
    for letter in "abc漢é":
        assert shown.count(letter) >= text.count(letter), (letter, shown)


def test_a_model_cannot_steer_the_terminal(drawn) -> None:
    assert r"red \x1b[31m \x9b \x0d \x07" in drawn(["red \x1b[31m \x9b \r \x07"])[0]


def test_a_line_is_never_wider_than_the_terminal(drawn) -> None:
    text = (
        "word " * 50 + "\n\n" + "x" * 90 + "\n\n| " + "cell " * 20 + "| b |\n|---|---|\n| 1 | 2 |\n\n```\n" + "y" * 99
    )
    assert max(map(len, drawn([text], 40))) <= 39
    assert sum(line.count("word") for line in drawn([text], 40)) == 50


def test_what_has_left_the_screen_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.cli.screen import painter

    output = Output()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(painter.shutil, "get_terminal_size", lambda *_, **__: terminal.os.terminal_size((20, 5)))
    drawing = painter.Painter()
    for n in range(1, 40):
        drawing.show([f"line {i}" for i in range(n)])
    drawing.show(["changed", *(f"line {i}" for i in range(1, 39)), "end"])
    ups = [int(n) for n in re.findall(r"\x1b\[(\d+)A", output.getvalue())]
    assert all(up < 5 for up in ups)
    assert output.getvalue().endswith("end")
