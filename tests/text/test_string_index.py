"""The index of a list of strings beside a dict of them."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.formats.gguf.strings import StringArray, locate_strings
from edgellm.text import string_index
from edgellm.text.string_index import StringIndex

# Few letters, so that strings repeat, and long ones, which differ only in the middle.
short = st.binary(max_size=9).map(lambda b: bytes(97 + byte % 2 for byte in b))
long = st.binary(max_size=4).map(lambda middle: b"the same" + middle + b"the same")
string_lists = st.lists(st.one_of(short, long, st.binary(max_size=300)), max_size=60)


def in_file(strings: list[bytes]) -> StringArray:
    """As they lie in a GGUF file, each behind its length."""
    data = memoryview(b"".join(struct.pack("<Q", len(string)) + string for string in strings))
    return StringArray(data, locate_strings(data, 0, len(strings)))


def places(strings: list[bytes]) -> dict[bytes, int]:
    return {string: i for i, string in enumerate(strings) if string}


def check(index: StringIndex, strings: list[bytes], others: list[bytes]) -> None:
    expected = places(strings)
    for string in [*strings, *others, b""]:
        assert index.get(string) == index.getter(string) == expected.get(string)
        assert (string in index) == (string in expected)
    assert index.has_repeated() == (len(expected) < sum(map(bool, strings)))
    assert [index.count(byte) for byte in (32, 97, 8)] == [b"".join(strings).count(byte) for byte in (32, 97, 8)]


@given(string_lists, string_lists)
def test_every_string_is_found_and_no_other(strings, others):
    check(StringIndex(strings), strings, others)
    check(StringIndex(in_file(strings)), strings, others)


@given(string_lists, string_lists)
def test_who_looks_up_many_gets_the_same_from_a_dict(strings, others):
    index = StringIndex(strings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(string_index, "MOST_LOOKUPS", 3)
        check(index, strings, others)
    if strings:
        assert "get" in repr(index.getter) and index.getter != index.get  # a dict's, by now


def test_a_list_made_up_of_strings_alike_takes_no_longer_than_another():
    strings = [b"the same%05dthe same" % i for i in range(2000)]
    index = StringIndex(strings)
    check(index, strings, [b"the same99999the same", b"the same"])
    check(StringIndex([*strings, strings[0]]), [*strings, strings[0]], [])
    assert index.getter != index.get


def test_texts_are_found_by_their_bytes():
    index = StringIndex(["é", "", "日本", "é" * 40])
    assert [index.get(text.encode()) for text in ("é", "日本", "é" * 40, "e")] == [0, 2, 3, None]
    assert index["日本".encode()] == 2
    with pytest.raises(KeyError):
        index[b"none"]


def test_the_hash_of_one_string_is_that_made_for_all():
    strings = [bytes([i % 251 + 1]) * i for i in range(40)]
    array, starts, lead = string_index.in_one(in_file(strings))
    assert string_index._hashes(array, starts, lead).tolist() == list(map(string_index._hash, strings))
    assert string_index._hashes(array, starts, lead).dtype == np.uint64
