from __future__ import annotations

import struct
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.errors import FormatError
from edgellm.formats.gguf import strings
from edgellm.formats.gguf.strings import StringArray, locate_strings

from .build import string

ordinary = st.text(max_size=12).map(str.encode)
# What breaks the quick chain: empty strings, zeros at the ends or alone, lengths of 255, 256 and more.
awkward = st.sampled_from([b"", b"\0", b"\0" * 7, b"\0" * 8, b"\0" * 20, b"a\0", b"\0a"])
awkward |= st.sampled_from([b"x" * 255, b"x" * 256, b"y" * 700, struct.pack("<Q", 3), b"\x03" + b"\0" * 7 + b"abc"])


def located(items: list[bytes], before: bytes = b"", after: bytes = b"") -> StringArray:
    data = memoryview(before + b"".join(map(string, items)) + after)
    starts = locate_strings(data, len(before), len(items))
    assert starts[-1] == len(data) - len(after)
    return StringArray(data, starts)


@settings(max_examples=300, deadline=None)
@given(
    items=st.lists(ordinary | awkward, max_size=60),
    window=st.sampled_from([16, 64, 300, 1 << 16]),
    after=st.sampled_from([b"", b"\0" * 40, b"\5" + b"\0" * 30]),
)
def test_strings_are_found_wherever_they_lie(items, window, after):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings, "WINDOW", window)
        array = located(items, b"before", after)
    assert array.as_bytes() == items
    assert len(array) == len(items)
    assert [array[i].encode() for i in range(len(items))] == items
    assert [text.encode() for text in array] == items
    row, starts, lead = array.in_one()
    assert [row[start + lead : end].tobytes() for start, end in pairwise(starts.tolist())] == items
    copy = array.copy()
    assert copy.as_bytes() == items and [copy[i].encode() for i in range(len(items))] == items


def test_it_is_a_sequence_of_str():
    texts = ["a", "ß", "日本", "d"]
    array = located([text.encode() for text in texts])
    assert list(array) == texts and "ß" in array and "x" not in array
    assert (array[1], array[-1], array[np.int64(2)], array[1:3]) == ("ß", "d", "日本", ["ß", "日本"])
    with pytest.raises(IndexError):
        array[4]
    assert repr(array) == "<StringArray of 4>"


def test_bytes_that_are_not_utf8_are_refused_when_decoded():
    array = located([b"good", b"\xff\xfe", b"good"])
    assert array[0] == "good"
    assert array.as_bytes()[1] == b"\xff\xfe"
    with pytest.raises(FormatError, match="string 1 of an array is not UTF-8"):
        array[1]
    with pytest.raises(FormatError, match="string 1 of an array is not UTF-8"):
        list(array)


@pytest.mark.parametrize("cut", range(1, 20))
def test_cut_off(cut):
    data = b"".join(map(string, [b"one", b"two", b"three"]))[:-cut]
    with pytest.raises(FormatError, match="cut off"):
        locate_strings(memoryview(data), 0, 3)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**64 - 8, 10**6])
def test_wrong_length(length):
    data = string(b"a" * 50) + struct.pack("<Q", length) + bytes(100)
    with pytest.raises(FormatError, match="length is wrong"):
        locate_strings(memoryview(data), 0, 5)


@pytest.mark.parametrize("item", ["token{}", "{}" + "x" * 300, ""], ids=["short", "long", "empty"])
def test_a_quarter_million_strings_are_found_quickly(item):
    data = memoryview(b"".join(string(item.format(i)) for i in range(1 << 18)))
    start = time.process_time()
    locate_strings(data, 0, 1 << 18)
    # 5 ms for short strings, 50 ms step by step; a busy machine takes some times that.
    assert time.process_time() - start < (0.2 if item == "token{}" else 1)
