"""Finding strings character by character, against looking for each of them at every place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgellm.text.strings import StringFinder

few_letters = st.text("ab", min_size=1, max_size=6)


@given(st.lists(few_letters, max_size=6), st.text("abc", max_size=40))
def test_every_string_is_found_where_it_ends(strings, text) -> None:
    finder, node = StringFinder(strings), 0
    for end in range(1, len(text) + 1):
        node = finder.next(node, text[end - 1])
        ended = [string for string in strings if text[:end].endswith(string)]
        assert finder.found(node) == max(ended, key=len, default=None)


@given(st.lists(few_letters, max_size=6), st.text("abc", max_size=40))
def test_depth_is_the_longest_end_that_may_go_on(strings, text) -> None:
    finder, node = StringFinder(strings), 0
    for character in text:
        node = finder.next(node, character)
    beginnings = {string[:n] for string in strings for n in range(len(string) + 1)}
    assert finder.depth(node) == max(
        (n for n in range(len(text) + 1) if text[len(text) - n :] in beginnings), default=0
    )


def test_a_long_string_of_one_letter() -> None:
    finder, node = StringFinder(["a" * 100_000]), 0
    for character in "a" * 99_999 + "b" + "a" * 100_000:
        node = finder.next(node, character)
    assert finder.found(node) == "a" * 100_000
