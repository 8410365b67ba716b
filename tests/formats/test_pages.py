"""Ranges of mapped files, and that what is released is out of memory and there again when it is read."""

from __future__ import annotations

import itertools
import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgellm.formats.mapped import map_file
from edgellm.formats.pages import mapped_ranges, release_pages

SIZE = 6 << 20


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "bytes"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


@given(
    spans=st.lists(st.tuples(st.integers(0, 3999), st.integers(1, 200)), max_size=8),
    n_others=st.integers(0, 2),
)
def test_ranges_are_what_arrays_fill(path: Path, spans: list[tuple[int, int]], n_others: int) -> None:
    data = map_file(path, "bytes")
    arrays = [data[begin : begin + n] for begin, n in spans] + [np.zeros(9, np.uint8)] * n_others
    found = [_span(part, data) for part in mapped_ranges(arrays, most_between=100)]
    filled = {at for begin, n in spans for at in range(begin, begin + n)}
    covered = [at for begin, end in found for at in range(begin, end)]
    assert covered == sorted(set(covered)) and filled <= set(covered)
    between = sorted(filled)
    assert set(covered) - filled == {
        at for left, right in itertools.pairwise(between) if right - left <= 101 for at in range(left + 1, right)
    }
    assert all(right[0] - left[1] > 100 for left, right in itertools.pairwise(found))


def test_two_files_are_two_mapped_ranges(path: Path) -> None:
    one, two = map_file(path, "bytes"), map_file(path, "bytes")
    found = mapped_ranges([one[:100], two[50:200], one[100:300]])
    assert sorted((_span(p, one), _span(p, two)) for p in found) == sorted(
        (_span(p, one), _span(p, two)) for p in (one[:300], two[50:200])
    )


@pytest.mark.skipif(sys.platform != "linux", reason="how much of a mapping is in memory is read from /proc")
def test_released_pages_leave_memory_and_come_back(path: Path) -> None:
    data = map_file(path, "bytes")
    total = int(data.sum(dtype=np.int64))
    assert _in_memory(data) == SIZE
    (whole,) = mapped_ranges([data[100 : SIZE // 2], data[SIZE // 2 :]])
    release_pages(whole)
    assert _in_memory(data) <= mmap.PAGESIZE  # the first page is not released as a whole
    assert int(data.sum(dtype=np.int64)) == total


def test_what_is_no_file_stays_as_it_is() -> None:
    """Memory that was mapped without a file would be zeros after it."""
    numbers = np.arange(100000, dtype=np.uint32)
    for array in (numbers.view(np.uint8), np.frombuffer(mmap.mmap(-1, numbers.nbytes), np.uint8)):
        array[:] = numbers.view(np.uint8)
        release_pages(array)
        assert not mapped_ranges([array])
        np.testing.assert_array_equal(array.view(np.uint32), numbers)


def _span(part: np.ndarray, data: np.ndarray) -> tuple[int, int]:
    begin = part.ctypes.data - data.ctypes.data
    return begin, begin + part.nbytes


def _in_memory(data: np.ndarray) -> int:
    """Bytes of the mapping that starts where these do."""
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{data.ctypes.data:x}-.*?^Rss: +(\d+) kB", text, re.M | re.S)
    assert found is not None
    return int(found[1]) << 10
