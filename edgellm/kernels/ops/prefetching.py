"""Asking for weights before they are needed, in the order in which they will be."""

from __future__ import annotations

from numba import njit

from edgellm.kernels.ops.shares import share_start
from edgellm.kernels.schema import LINE
from edgellm.kernels.staged import Value, Vocabulary

PAGE = 4096
PAGE_LINES = 4  # of the start of a page


def prefetch_part(v: Vocabulary, address: Value, n_bytes: int, part: int = 0, n_parts: int = 1, level: int = 2) -> None:
    """Prefetch one part of n_bytes, into a level of cache; few at a time, for a core can wait for few lines at once."""
    starts = range(0, n_bytes, LINE)
    for start in starts[len(starts) * part // n_parts : len(starts) * (part + 1) // n_parts]:
        v.prefetch(address + start, level)


def prefetch_page_starts(v: Vocabulary, address: Value, n_bytes: int) -> None:
    """Prefetch the first PAGE_LINES of each page that n_bytes are in: one for every so many bytes, whichever is due.

    Where memory is read strictly in order, the hardware sees a stream within a page and is ahead of it by itself, and
    better than by being asked for every line.
    """
    part = PAGE // PAGE_LINES
    for start in range(0, n_bytes, part):
        at = address + start
        v.prefetch((at & -PAGE) + ((at & (PAGE - 1)) / part) * LINE)


@njit(error_model="numpy")
def prefetch_address(op, chunk, thread, row):
    """The weights to prefetch while rows from `row` on are multiplied: op.prefetch_distance bytes further on.

    Beyond the end of the chunk, these are the first ones of what this thread is likely to do next: the next chunk of
    its share, or the first one of the next op. What comes in one chunk is the first thread's, and the others are ahead
    of it.
    """
    end = op.weights + min((chunk + 1) * op.chunk_rows, op.n_rows) * op.row_bytes
    address = op.weights + row * op.row_bytes + op.prefetch_distance
    if address < end:
        return address
    n_chunks = (op.n_rows + op.chunk_rows - 1) // op.chunk_rows
    if chunk + 1 < share_start(n_chunks, thread + 1, op.n_threads):
        return address  # chunks follow each other
    if thread == 0 and op.next_first != 0:
        return op.next_first + (address - end)
    return op.next_weights + share_start(op.next_chunks, thread, op.n_threads) * op.next_step + (address - end)


@njit(error_model="numpy")
def next_rows(op, chunk, thread, n_rows):
    """The rows to prefetch while the n_rows of a chunk are unpacked: what this thread is likely to unpack next.

    That is the next chunk of its share, or the first one of the next op, as if its rows were as long and as many.
    """
    n_chunks = (op.n_rows + n_rows - 1) // n_rows
    if chunk + 1 < share_start(n_chunks, thread + 1, op.n_threads):
        return op.weights + (chunk + 1) * n_rows * op.row_bytes
    return op.next_weights + share_start(n_chunks, thread, op.n_threads) * n_rows * op.row_bytes
