"""The memory plan and the dependencies of random programs."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgellm.graph.ops import Chunks, Fixed, Op, Quantized, Rows, Table
from edgellm.graph.plan import ALIGN, dependencies, n_bytes, plan
from edgellm.kernels.records import ADD
from edgellm.kernels.registry import find

N_TOKENS = 3


@st.composite
def programs(draw) -> tuple[list[Op], list[Rows]]:
    """Ops that read some of what there is, and write something new or, in place, something old."""
    buffers: list = [Table("cache 0")]
    ops = []
    for _ in range(draw(st.integers(1, 25))):
        reads = draw(st.lists(st.sampled_from(buffers), max_size=3, unique=True))
        width = draw(st.integers(1, 6)) * 32
        new = draw(st.sampled_from([Rows(width), Quantized(width), Fixed(width), None]))
        writes = [draw(st.sampled_from(buffers))] if new is None else [new]
        ops.append(Op(find("add"), ADD, {}, Chunks("tokens"), reads, writes))
        buffers += [new] if new else []
    values = [buffer for buffer in buffers if isinstance(buffer, Rows)]
    return ops, draw(st.lists(st.sampled_from(values), unique=True)) if values else []


@given(programs())
@settings(deadline=None)
def test_buffers_that_live_together_lie_apart(program) -> None:
    ops, outputs = program
    offsets, total = plan(ops, outputs, N_TOKENS)
    lives: dict[object, list[int]] = {}
    for index, op in enumerate(ops):
        for buffer in op.reads + op.writes:
            lives.setdefault(buffer, []).append(index)
    for buffer in outputs:
        lives[buffer].append(len(ops))
    places = [
        (offsets[b], offsets[b] + n_bytes(b, N_TOKENS), min(uses), max(uses))
        for b, uses in lives.items()
        if not isinstance(b, Table)
    ]
    for i, (start, end, born, died) in enumerate(places):
        assert start % ALIGN == 0 and 0 <= start <= end <= total
        for other_start, other_end, other_born, other_died in places[:i]:
            assert end <= other_start or other_end <= start or died < other_born or other_died < born


@given(programs(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_order_that_dependencies_allow_gives_every_op_its_inputs(program, chance: random.Random) -> None:
    """Ops stamp their number on what they write, and look for the right stamps on what they read."""
    ops, outputs = program
    offsets, total = plan(ops, outputs, N_TOKENS)
    depends = dependencies(ops, offsets, N_TOKENS)
    arena, tables = np.full(total // ALIGN, -1), {}

    def memory(buffer):
        if isinstance(buffer, Table):
            return tables.setdefault(buffer, np.full(1, -1))
        start = offsets[buffer] // ALIGN
        return arena[start : start + n_bytes(buffer, N_TOKENS) // ALIGN]

    def writer_before(index: int, buffer) -> int:
        return max((i for i in range(index) if buffer in ops[i].writes), default=-1)

    waiting, done = set(range(len(ops))), 0  # so many ops, from the first on, are done
    while waiting:
        index = chance.choice(sorted(i for i in waiting if depends[i] <= done))
        for buffer in ops[index].reads:
            stamp = writer_before(index, buffer)
            assert stamp == -1 or (memory(buffer) == stamp).all()
        for buffer in ops[index].writes:
            memory(buffer)[:] = index
        waiting.remove(index)
        done = min(waiting, default=len(ops))
    for buffer in outputs:
        assert (memory(buffer) == writer_before(len(ops), buffer)).all()


def test_places_are_used_again() -> None:
    """A long chain needs room for two links."""
    chain = [Rows(16) for _ in range(50)]
    ops = [Op(find("add"), ADD, {}, Chunks("tokens"), [a], [b]) for a, b in pairwise(chain)]
    assert plan(ops, [], N_TOKENS)[1] == 2 * n_bytes(chain[0], N_TOKENS)


def test_ops_that_share_nothing_do_not_wait() -> None:
    a, b, c, d = (Rows(16) for _ in range(4))
    ops = [Op(find("add"), ADD, {}, Chunks("tokens"), [], [value]) for value in (a, b, c)]
    ops.append(Op(find("add"), ADD, {}, Chunks("tokens"), [b], [d]))
    offsets, _ = plan(ops, [a, b, c, d], N_TOKENS)
    assert dependencies(ops, offsets, N_TOKENS) == [0, 0, 0, 2]
