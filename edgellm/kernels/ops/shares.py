"""Which chunks of an op are whose: every thread has a share of neighbours, from which it takes one after the other.

A core's hardware prefetcher goes on behind the last row that was read. With neighbours, what it brings is mostly its
own thread's next work; otherwise it takes lines from the core that is just writing them.
"""

from __future__ import annotations

from numba import njit


@njit(error_model="numpy")
def share_size(n_chunks, thread, n_threads):
    """How many chunks a thread has: as many as the others, or one more."""
    each = n_chunks // n_threads
    return each + (1 if thread < n_chunks - each * n_threads else 0)


@njit(error_model="numpy")
def share_start(n_chunks, thread, n_threads):
    """The first chunk of a thread's share; of thread n_threads, the number of chunks."""
    each = n_chunks // n_threads
    return thread * each + min(thread, n_chunks - each * n_threads)
