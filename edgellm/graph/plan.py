"""The memory plan: every buffer gets a place in one arena, and places are used again as soon as they are free."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from edgellm.graph.ops import Buffer, Fixed, Op

ALIGN = 64

Places = list[tuple[object, int, int]]  # what memory, from where, to where


def n_bytes(buffer: Buffer, n_tokens: int) -> int:
    size = buffer.n_bytes if isinstance(buffer, Fixed) else buffer.token_bytes * n_tokens
    return -(-size // ALIGN) * ALIGN


def plan(
    ops: Sequence[Op], outputs: Sequence[Buffer], n_tokens: int, outside: Collection[Buffer] = ()
) -> tuple[dict[Buffer, int], int]:
    """Offsets of all buffers in an arena for `n_tokens`, and the arena's size in bytes.

    A buffer lives from the op that first writes it to the last that touches it; outputs live to the end. Those
    that are outside have memory of their own.
    First fit, in the order in which buffers are born.
    """
    lives: dict[Buffer, list[int]] = {}
    for index, op in enumerate(ops):
        for buffer in (*op.writes, *op.reads):
            if isinstance(buffer, Buffer) and buffer not in outside:
                lives.setdefault(buffer, [index, index])[1] = index
    for buffer in outputs:
        lives[buffer][1] = len(ops)

    offsets: dict[Buffer, int] = {}
    alive: list[tuple[int, int, int]] = []  # (offset, end, last op)
    total = 0
    for buffer, (born, dies) in sorted(lives.items(), key=lambda item: item[1][0]):
        alive = sorted(place for place in alive if place[2] >= born)
        size, offset = n_bytes(buffer, n_tokens), 0
        for start, end, _ in alive:
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[buffer] = offset
        alive.append((offset, offset + size, dies))
        total = max(total, offset + size)
    return offsets, total


def dependencies(ops: Sequence[Op], offsets: dict[Buffer, int], n_tokens: int) -> list[int]:
    """For each op, how many of the ops before it must be done first: all up to the last that it conflicts with.

    Two ops conflict when one writes memory that the other touches, be it a value one needs from the other or
    a place in the arena that is used again.
    """

    def places(buffers: Sequence[object]) -> Places:
        return [
            ("arena", offsets[b], offsets[b] + n_bytes(b, n_tokens)) if b in offsets else (b, 0, 1) for b in buffers
        ]

    def overlap(some: Places, others: Places) -> bool:
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in some for b in others)

    touched = [(places(op.reads), places(op.writes)) for op in ops]
    result = []
    for index, (reads, writes) in enumerate(touched):
        before = index
        while before > 0:
            earlier_reads, earlier_writes = touched[before - 1]
            if overlap(earlier_writes, reads + writes) or overlap(earlier_reads, writes):
                break
            before -= 1
        result.append(before)
    return result
