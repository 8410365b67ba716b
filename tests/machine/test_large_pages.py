"""Memory on large pages: zeros of any size, from a boundary on."""

from __future__ import annotations

import mmap

import pytest

from edgellm.machine.large_pages import LARGE_PAGE, LINE, on_large_pages


@pytest.mark.parametrize("n_bytes", [1, 100, LARGE_PAGE - 1, LARGE_PAGE, 3 * LARGE_PAGE + 5])
def test_zeros_that_can_be_written(n_bytes: int) -> None:
    memory = on_large_pages(n_bytes)
    assert memory.shape == (n_bytes,) and memory.dtype == "uint8" and not memory.any()
    is_large = n_bytes >= LARGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
    assert memory.ctypes.data % (LARGE_PAGE if is_large else LINE) == 0
    memory[...] = 7
    assert not on_large_pages(n_bytes).any()


def test_more_than_there_is() -> None:
    with pytest.raises(MemoryError):
        on_large_pages(1 << 60)
