"""A batch: its tokens, their angles, and tasks that cover what each of them sees, once."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.graph import AddressedArray, Batch, Graph, Piece
from edgellm.graph.angles import Angles
from edgellm.graph.batch import SPLIT_TOKENS
from edgellm.graph.lowering import MAX_SPLITS
from edgellm.graph.nodes import AttentionSpec, Rotation, attention, keys_values, rope
from edgellm.kernels.records import SPAN_TOKENS

from .conftest import Same, lowered

CAPACITY = 600
WINDOWS = (None, 5, 300)
ROTATIONS = (Rotation(np.array([1.0, 0.1]), True), Rotation(np.array([0.5]), False))


@pytest.fixture(params=[1, 3])
def batch(request) -> Batch:
    """Of a graph with these windows and rotations, and so many heads that share keys."""
    g = Graph()
    x, few = g.input(request.param * 32), g.input(32)
    for window in WINDOWS:
        kv = keys_values(few, few, 2)
        g.output(attention(x, kv, 2 * request.param, AttentionSpec(1.0, window=window)))
    for rotation in ROTATIONS:
        g.output(rope(few, 2, rotation))
    return Batch(CAPACITY, lowered(g, n_threads=2))


def piece(n: int, position: int, seed: int = 0) -> Piece:
    rng = np.random.default_rng(seed)
    ids, slots = (rng.integers(0, 999, n).tolist() for _ in range(2))
    return Piece(ids, position, Same(slots), Same(AddressedArray(np.arange(40, dtype=np.int32))))


BATCHES = [
    [piece(1, 0)],
    [piece(CAPACITY, 0)],
    [piece(1, 700)],
    [piece(5, 700), piece(SPLIT_TOKENS, 510, seed=1), piece(SPLIT_TOKENS + 1, 900, seed=2)],
    [piece(40, 251, seed=1), piece(1, 255, seed=2), piece(1, 256, seed=3), piece(7, 0, seed=4), piece(1, 2000, seed=5)],
    [piece(1 + (i == 0), 255 + 2 * i, seed=i) for i in range(CAPACITY - 1)],  # more splits than there is room for
]


@pytest.mark.parametrize("pieces", BATCHES, ids=range(len(BATCHES)))
def test_everything_of_the_pieces_in_their_order(batch: Batch, pieces: list[Piece]) -> None:
    counts = batch.fill(pieces)
    n = counts["tokens"]
    assert batch.token_ids[:n].tolist() == [token for p in pieces for token in p.token_ids]
    for slots, window in zip(batch.kv_slots, batch.kept, strict=True):
        assert slots[:n].tolist() == [slot for p in pieces for slot in p.slots[window]]
    positions = np.concatenate([p.position + np.arange(len(p.token_ids)) for p in pieces])
    assert batch.positions[:n].tolist() == positions.tolist()
    for rotation, angles in zip(ROTATIONS, batch.angles, strict=True):
        of_tokens, turned = angles.table[positions], positions[:, None] * rotation.frequencies
        assert angles.address[0] == angles.table.ctypes.data
        np.testing.assert_allclose(of_tokens[:, 0], np.cos(turned), atol=1e-7)
        np.testing.assert_allclose(of_tokens[:, 1], np.sin(turned), atol=1e-7)


def test_angles_stay_what_they_are_when_there_are_more() -> None:
    """The same bits, however far positions had been asked for before."""
    rotation = Rotation(np.array([1.0, 0.1, 0.01]), True, magnitude=1.5, temperature=(0.1, 64))
    slowly, at_once = Angles(rotation), Angles(rotation)
    at_once.reach(3000)
    for n in (1, 300, 301, 2999):
        slowly.reach(n)
        known = len(slowly.table)
        assert known >= n
        assert slowly.address[0] == slowly.table.ctypes.data
        np.testing.assert_array_equal(slowly.table, at_once.table[:known])


def first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


@pytest.mark.parametrize("pieces", BATCHES, ids=range(len(BATCHES)))
def test_every_token_sees_what_it_may_once(batch: Batch, pieces: list[Piece]) -> None:
    counts = batch.fill(pieces)
    own = [(p.position + i, p.block_tables[None].address) for p in pieces for i in range(len(p.token_ids))]
    for index, window in enumerate(WINDOWS):
        slots_of: dict[int, list[int]] = {}
        covered: list[list[tuple[int, int]]] = [[] for _ in own]
        for task in batch.tasks[index][: counts[f"tasks {index}"]]:
            for i in range(task["n_tokens"]):
                token = int(task["token"]) + i
                assert own[token] == (task["position"] + i, task["block_table"])
                position = own[token][0]
                begin, end = (
                    max(int(task["kv_begin"]), first_seen(position, window)),
                    min(int(task["kv_end"]), position + 1),
                )
                if begin < end:
                    covered[token].append((begin, end))
                if task["slot"] >= 0:
                    assert task["n_tokens"] <= SPLIT_TOKENS
                    assert task["kv_begin"] % SPAN_TOKENS == 0 and task["kv_end"] - task["kv_begin"] <= SPAN_TOKENS
                    slots_of.setdefault(token, []).append(int(task["slot"]) + i)
        for (position, _), parts in zip(own, covered, strict=True):
            seen = [place for begin, end in sorted(parts) for place in range(begin, end)]
            assert seen == list(range(first_seen(position, window), position + 1))
        merges = batch.merges[index][: counts[f"merges {index}"]]
        merged = {int(m["token"]): [int(m["first_slot"] + i * m["step"]) for i in range(m["n_slots"])] for m in merges}
        assert merged == slots_of and len(merges) == len(merged)
        used = sorted(slot for slots in slots_of.values() for slot in slots)
        assert used == list(range(len(used))) and len(used) <= MAX_SPLITS


def test_selected_rows(batch: Batch) -> None:
    assert batch.select([5, 2, 2]) == {"tokens": 3}
    assert batch.rows[:3].tolist() == [5, 2, 2]
