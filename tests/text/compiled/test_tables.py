"""Tables of strings: each string with its number and rank, wherever it lies and whatever the others are."""

from __future__ import annotations

import mmap
import random

import numpy as np
import pytest

from edgellm.kernels.store import KernelStore
from edgellm.kernels.word_records import AT_ONCE, IN_LINE, MERGE_WORDS, MOST_PROBES, UNRANKED, merge_scratch_bytes
from edgellm.text.compiled.tables import Kernel, StringTable
from edgellm.text.compiled.words import kernels

from ...kernels.compiled import before_a_wall

_ANY = b"aB \0\xff\xe2\x96\x81"


class InRow:
    """Strings that lie one behind the other, each behind some bytes of its own, up to a page that cannot be read."""

    def __init__(self, strings: list[bytes], lead: int) -> None:
        self._bytes = before_a_wall(np.frombuffer(b"".join(b"x" * lead + string for string in strings), np.uint8))
        self._starts = np.cumsum([0, *(lead + len(string) for string in strings)])
        self._lead = lead

    def in_one(self) -> tuple[np.ndarray, np.ndarray, int]:
        return self._bytes, self._starts, self._lead


def some_strings(n: int) -> list[bytes]:
    """Different ones, of all lengths that are told apart, in no order."""
    chance = random.Random(7)
    return list(dict.fromkeys(bytes(chance.choices(_ANY, k=1 + i % 27)) for i in range(n)))


def place_of(text: bytes, n_places: int) -> int:
    """Where a short string is looked for in a table, by its key."""
    mask = (1 << 64) - 1
    key = len(text) << 56 | int.from_bytes(text, "little")
    return ((((key ^ key >> 32) * 0x9E3779B97F4A7C15) & mask) >> 24) & (n_places - 1)


def numbers_in(table: StringTable) -> list[int]:
    """The numbers of all strings that have a place, in order."""
    places = table._kept[2]
    return sorted((places[places[:, 0] != 0, 1] & 0xFFFFFFFF).tolist())


def found_in(table: StringTable, store: KernelStore, words: list[bytes]) -> list[int]:
    """The number of the token that each word is, by looking for it; -1 for none."""
    text = before_a_wall(np.frombuffer(b"".join(words), np.uint8))
    ends = np.cumsum(list(map(len, words)))
    ids, counts = np.zeros(len(text) * 4, np.int32), np.zeros(len(words), np.int32)
    scratch, recent = np.empty(merge_scratch_bytes(), np.uint8), np.zeros((4, 2), np.int64)
    marks = np.ones(1 << 16, np.uint8)  # each word is taken for its token
    nothing = StringTable([], True, store.function(kernels()[1]))
    values = {"ends": ends, "scratch": scratch, "recent": recent, "ids": ids, "counts": counts, "marks": marks}
    record = MERGE_WORDS.filled(
        {name: array.ctypes.data for name, array in values.items()}
        | {
            "text": text.ctypes.data,
            "n_words": len(words),
            "n_recent": len(recent),
            "tokens": table.record.ctypes.data,
            "merges": nothing.record.ctypes.data,
        }
    )
    store.function(kernels()[2])(record.ctypes.data, 0, 0)
    firsts = np.cumsum(np.maximum(counts, 0)) - np.maximum(counts, 0)
    return [int(ids[first]) if count == 1 else -1 for first, count in zip(firsts, counts, strict=True)]


@pytest.fixture
def index(store: KernelStore) -> Kernel:
    return store.function(kernels()[1])


@pytest.mark.parametrize("lead", [0, 1, 8])
@pytest.mark.parametrize("n", [1, 2, IN_LINE, AT_ONCE - 1, AT_ONCE, 5 * AT_ONCE + 3])
def test_every_string_is_found_and_no_other(store: KernelStore, index: Kernel, n: int, lead: int) -> None:
    listed, others = some_strings(2 * n + 2)[:n], some_strings(2 * n + 2)[n:]
    table = StringTable(InRow(listed, lead), False, index)
    assert table.found
    assert found_in(table, store, listed[::-1] + others) == [*range(len(listed))][::-1] + [-1] * len(others)


def test_of_equal_strings_the_last_is_found(store: KernelStore, index: Kernel) -> None:
    some = [string for string in some_strings(150) if b"\xe2" not in string]
    listed = some + some[::2]
    table = StringTable(listed, False, index)
    wanted = {string: number for number, string in enumerate(listed)}
    assert numbers_in(table) == sorted(wanted.values())
    assert found_in(table, store, some) == [wanted[string] for string in some]


def test_strings_that_want_one_line_fill_the_next_ones(store: KernelStore, index: Kernel) -> None:
    chance = random.Random(5)
    some = sorted({bytes(chance.choices(range(97, 123), k=5)) for _ in range(40_000)})
    n = 45
    n_places = 1 << (n + n // 2).bit_length()
    last = n_places - IN_LINE  # so that the first line follows
    alike = [text for text in some if place_of(text, n_places) >= last][:n]
    assert len(alike) == n and n > 2 * IN_LINE
    table = StringTable([*alike[: n - 1], "longer than a key"], False, index)
    assert table.found and len(table._kept[2]) == n_places
    assert found_in(table, store, alike) == [*range(n - 1), -1]
    assert numbers_in(table) == [*range(n)]


@pytest.mark.parametrize("n_letters", range(22))
def test_pairs_have_one_space_between_two_halves(index: Kernel, n_letters: int) -> None:
    letters = b"\x21\x1f\xa0\0\xff"
    chance = random.Random(n_letters)
    word = bytes(chance.choices(letters, k=n_letters))
    listed = [word, word + b"  ", *(word[:at] + b" " + word[at:] for at in range(n_letters + 1)), b"a b"]
    table = StringTable(InRow(listed, 0), True, index)
    assert table.found and table.n_spaces == b"".join(listed).count(b" ")
    assert numbers_in(table) == [
        i for i, pair in enumerate(listed) if pair.count(b" ") == 1 and pair.strip(b" ") == pair
    ]


def test_ranks_stand_beside_numbers(index: Kernel) -> None:
    ranks = np.array([5, -3, UNRANKED, 1 << 30], np.int32)
    for given, wanted in ((ranks, ranks.tolist()), (None, [0, 1, 2, 3])):
        table = StringTable(["a", "bc", "twelve bytes", "▁"], False, index, given)
        places = table._kept[2]
        values = places[places[:, 0] != 0, 1]
        assert dict(zip((values & 0xFFFFFFFF).tolist(), (values >> 32).tolist(), strict=True)) == dict(
            enumerate(wanted)
        )


def test_strings_that_all_want_the_same_place_have_no_table(index: Kernel) -> None:
    chance = random.Random(3)
    n = MOST_PROBES + 20
    some = list({bytes(chance.choices(range(256), k=6)) for _ in range(n * 512 * 5 // 4)})
    alike = [text for text in some if place_of(text, 512) == 5][:n]
    assert len(alike) == n
    assert StringTable(some[:n], False, index).found
    assert not StringTable(alike, False, index).found


def test_where_there_are_no_large_pages(monkeypatch: pytest.MonkeyPatch, store: KernelStore, index: Kernel) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    listed = some_strings(90)
    assert found_in(StringTable(listed, False, index), store, listed) == [*range(len(listed))]
