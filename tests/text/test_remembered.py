"""What is remembered is not encoded twice, and does not grow without end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.text import remembered as module
from edgellm.text.remembered import Remembered


class Recorder:
    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, texts):
        self.seen.append(texts)
        return [(text, [len(text), *map(ord, text)]) for text in reversed(texts)]


def test_each_new_text_is_encoded_once():
    known, encode = Remembered(), Recorder()
    assert known.joined([["b", ""], [], ["b", "a"]], encode) == [[1, 98, 0], [], [1, 98, 1, 97]]
    assert known.joined([["a"], ["c", "b"]], encode) == [[1, 97], [1, 99, 1, 98]]
    assert known.joined([["a", "b", "c"]], encode) == [[1, 97, 1, 98, 1, 99]]
    assert known.joined([], encode) == []
    assert encode.seen == [["b", "", "a"], ["c"]]


def test_long_texts_are_not_kept():
    known, encode = Remembered(), Recorder()
    long = "x" * (module.MOST_CHARS + 1)
    for _ in range(2):
        assert [len(ids) for ids in known.joined([["y", long], ["y"]], encode)] == [len(long) + 3, 2]
    assert encode.seen == [["y", long], [long]]


@given(st.lists(st.lists(st.text("abcdef", max_size=2), max_size=30), max_size=6), st.integers(1, 9))
def test_any_number_of_texts_in_little_room(lists, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_REMEMBERED", room)
        known, encode = Remembered(), Recorder()
        for texts in lists:
            expected = [[len(text), *map(ord, text)] for text in texts]
            assert known.joined([[text] for text in texts], encode) == expected
            assert len(known._known) <= room
