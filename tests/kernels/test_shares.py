"""Shares of an op's chunks: all chunks are somebody's, neighbours follow each other, and threads have as many."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edgellm.kernels.ops.shares import share_size, share_start


@given(st.integers(0, 1 << 20), st.integers(1, 64))
def test_every_chunk_is_in_one_share(n_chunks: int, n_threads: int) -> None:
    starts = [share_start.py_func(n_chunks, thread, n_threads) for thread in range(n_threads + 1)]
    sizes = [share_size.py_func(n_chunks, thread, n_threads) for thread in range(n_threads)]
    assert (starts[0], starts[-1]) == (0, n_chunks)
    assert sizes == [end - start for start, end in pairwise(starts)]
    assert max(sizes) - min(sizes) <= 1
