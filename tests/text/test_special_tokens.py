"""Special tokens are found leftmost first, and the longest of those that start at one place."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.text import provenance
from edgellm.text.provenance import Text, written
from edgellm.text.special_tokens import SpecialTokens

tokens = st.sets(st.text("ab<|>", min_size=1, max_size=5), max_size=8)


@given(tokens, st.text("ab<|> ", max_size=40))
def test_like_a_regular_expression_of_all_of_them(tokens, text):
    ids = {token: i for i, token in enumerate(sorted(tokens))}
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    pieces = [piece for piece in re.split(f"({pattern})", text) if piece] if tokens else [text] if text else []
    assert list(SpecialTokens(ids).split(text)) == [ids.get(piece, piece) for piece in pieces]


def test_white_space_behind_some_tokens_goes_with_them():
    special = SpecialTokens({"<a>": 1, "<b>": 2}, rstrip={1})
    assert list(special.split("<a> \n x <b> y<a> ")) == [1, "x ", 2, " y", 1]


def test_tokens_that_are_only_text_hide_what_they_hold():
    special = SpecialTokens({"<ab>": 1, "ab": 2})
    assert list(special.split("<ab>ab", plain={1})) == ["<ab>", 2]


chat = st.text("ab<|> ", min_size=1, max_size=6)


@given(tokens, tokens, st.lists(st.tuples(chat, st.integers(0, 7)), max_size=4), chat)
def test_in_a_prompt_control_tokens_are_those_that_the_template_wrote(control, ordinary, framed, last):
    """Whatever stands beside them, and however tokens begin with or reach into each other."""
    names = sorted(control | ordinary)
    special = SpecialTokens(
        {name: i for i, name in enumerate(names)}, control={i for i, name in enumerate(names) if name in control}
    )
    frames = [sorted(control)[n % len(control)] for _, n in framed] if control else []
    parts = [part for (said, _), frame in zip(framed, frames, strict=False) for part in (said, written(frame))]
    text = provenance.join("", [*parts, last])
    pieces = list(special.split(text if isinstance(text, Text) else Text(text)))
    assert [names[piece] for piece in pieces if isinstance(piece, int) and names[piece] in control] == frames
    assert "".join(names[piece] if isinstance(piece, int) else piece for piece in pieces) == text
    assert list(special.split(written(text))) == list(special.split(str(text)))


class Counted(str):
    """A token that counts how many characters it is compared by."""

    n_compared = 0

    def __lt__(self, other: str) -> bool:
        return self._count(other) and str.__lt__(self, other)

    def __gt__(self, other: str) -> bool:
        return self._count(other) and str.__gt__(self, other)

    def startswith(self, other: str) -> bool:  # type: ignore[override]
        return self._count(other) and str.startswith(self, other)

    def _count(self, other: str) -> bool:
        Counted.n_compared += 1
        return True


HOSTILE = {
    "many": ([f"<unused{i}>" for i in range(6000)], "<unused " * 2000),
    "of every length": ([f"<|{'a' * n}|>" for n in range(3000)], "<|" + "a" * 6000),
    "of every length, often": ([f"<|{'a' * n}|>" for n in range(3000)], ("<|" + "a" * 50) * 100),
    "nearly found": (["x" * n + "a" for n in range(3000)], "x" * 6000),
    "nearly found twice": (["x" * n + end for n in range(1500) for end in ("a", "aa")], "x" * 6000),
    "beginnings of each other": (["a" * n for n in range(1, 3000)], "ab" * 3000),
    "one of a megabyte": (["x" * 1_000_000 + "y", "xz"], "x" * 6000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_looking_takes_few_comparisons_whatever_the_tokens(name):
    """A few dozen for each character of the text, however many the tokens and however long."""
    tokens, text = HOSTILE[name]
    special = SpecialTokens({Counted(token): i for i, token in enumerate(tokens)})
    _ = special._shorter
    Counted.n_compared = 0
    found = list(special.split(text))
    assert Counted.n_compared < 60 * len(text)
    assert found == ([0, "b"] * 3000 if name == "beginnings of each other" else [text])


@pytest.mark.parametrize("name", HOSTILE)
def test_so_does_looking_for_those_that_a_chat_may_not_have(name):
    tokens, text = HOSTILE[name]
    special = SpecialTokens(
        {Counted(token): i for i, token in enumerate(tokens)}, control=frozenset(range(len(tokens)))
    )
    _ = special._ordinary
    Counted.n_compared = 0
    assert list(special.split(Text(text))) == [text]
    assert Counted.n_compared < 60 * len(text)


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=30), st.text("ab", max_size=40))
def test_tokens_that_begin_with_each_other(tokens, text):
    special = SpecialTokens({token: i for i, token in enumerate(tokens)})
    for at in range(len(text)):
        index = special._longest_at(text, at)
        fitting = [token for token in tokens if text.startswith(token, at)]
        assert (special._tokens[index] if index >= 0 else "") == max(fitting, key=len, default="")


def test_hundreds_of_thousands_of_tokens_take_little_memory():
    ids = {f"<user_{i}>": i for i in range(200_000)}
    tracemalloc.start()
    special = SpecialTokens(ids)
    assert list(special.split("<user_77> and <user_199999>")) == [77, " and ", 199_999]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * len(ids)  # bytes
