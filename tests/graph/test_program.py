"""A small transformer layer as a program: the same bits from any number of threads, batches and single tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.graph import AddressedArray, Graph, Piece, Team, Tuning
from edgellm.graph import program as program_module
from edgellm.graph.cache_memory import CacheMemory
from edgellm.graph.nodes import (
    AttentionSpec,
    Rotation,
    add,
    attention,
    embed,
    glu,
    keys_values,
    linear,
    rms_norm,
    rope,
)
from edgellm.graph.ops import Chunks
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.store import KernelStore

from .conftest import Same, lowered, program_of, rows_for, tensor

N_EMBD, N_HEADS, N_KV_HEADS, HEAD_DIM, N_FF, N_VOCAB = 96, 4, 2, 32, 160, 300
CAPACITY = 32  # tokens times heads of a group fit into one attention task
EPSILON = 1e-5


class Layer:
    """Everything of one layer and its head, and how a batch of one sequence runs through it."""

    def __init__(self, store: KernelStore, team: Team, activations: str) -> None:
        kv_width, q_width = N_KV_HEADS * HEAD_DIM, N_HEADS * HEAD_DIM
        shapes = {
            "embd": (N_VOCAB, N_EMBD),
            "q": (q_width, N_EMBD),
            "k": (kv_width, N_EMBD),
            "v": (kv_width, N_EMBD),
            "o": (N_EMBD, q_width),
            "gate": (N_FF, N_EMBD),
            "up": (N_FF, N_EMBD),
            "down": (N_EMBD, N_FF),
        }
        kinds = {"v": "Q8_0", "gate": "F16", "down": "Q5_0"}
        w = {
            name: tensor(name, *shape, format_name=kinds.get(name, "Q4_1"), seed=seed)
            for seed, (name, shape) in enumerate(shapes.items())
        }
        norm = tensor("norm", N_EMBD)
        rotation = Rotation(10000.0 ** -(np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM), interleaved=False)

        g = Graph()
        x = embed(g, w["embd"])
        h = rms_norm(x, norm, EPSILON)
        q, k = (rope(linear(h, w[name]), n, rotation) for name, n in (("q", N_HEADS), ("k", N_KV_HEADS)))
        kv = keys_values(k, linear(h, w["v"]), N_KV_HEADS)
        h = attention(q, kv, N_HEADS, AttentionSpec(HEAD_DIM**-0.5))
        x = add(x, linear(h, w["o"]))
        h = rms_norm(x, norm, EPSILON)
        h = glu(linear(h, w["gate"]), linear(h, w["up"]), "silu")
        self.hidden = g.output(add(x, linear(h, w["down"])))

        self.block_table = np.array([2, 0, 3, 1], np.int32)
        ops = lowered(g, team.n_threads, activations=activations)
        self.cache = CacheMemory(ops.cache_layers, {None: 4})
        self.program = program_of(ops, store, team, CAPACITY, tables=self.cache.tables())

    def run(self, ids: np.ndarray, start: int) -> np.ndarray:
        """float32 [n_tokens, N_EMBD] for the tokens at positions from `start` on."""
        positions = np.arange(start, start + len(ids))
        slots = self.block_table[positions // KV_BLOCK] * KV_BLOCK + positions % KV_BLOCK
        self.program.run(
            self.program.batch.fill([Piece(ids, start, Same(slots), Same(AddressedArray(self.block_table)))])
        )
        return self.program.view(self.hidden, len(ids)).copy()

    def run_in_parts(self, ids: np.ndarray, sizes: list[int]) -> np.ndarray:
        ends = np.cumsum(sizes)
        return np.concatenate(
            [self.run(ids[end - size : end], end - size) for size, end in zip(sizes, ends, strict=True)]
        )


IDS = np.random.default_rng(9).integers(0, N_VOCAB, 100)
PARTS = [32, 1, 30, Tuning(1).small_batch, Tuning(1).small_batch + 1, 17, 1, 12]


@pytest.fixture(scope="module", params=["int8", "f32"])
def activations(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def expected(store: KernelStore, activations: str) -> bytes:
    """What one thread makes of it, one token at a time."""
    team = Team(store, 1, 64)
    result = Layer(store, team, activations).run_in_parts(IDS, [1] * len(IDS))
    team.close()
    assert np.isfinite(result).all() and result.std() > 0.1
    return result.tobytes()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_any_team_gives_the_same_bits(store, team_of, n_threads: int, activations: str, expected: bytes) -> None:
    layer = Layer(store, team_of(n_threads), activations)
    for _ in range(15):
        assert layer.run_in_parts(IDS, PARTS).tobytes() == expected


def test_an_input_from_elsewhere_and_an_output_that_stays(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Intermediate values can be read after a run, and are not overwritten by later ops."""
    rng = np.random.default_rng(5)
    g = Graph()
    source = g.input(48)
    first = g.output(add(source, source), "twice")
    last = g.output(add(add(first, first), first), "six times")
    rows = rows_for(source, 16)
    program = program_of(lowered(g, 2), store, team_of(2), inputs={source: rows})
    for n_tokens in (16, 1, 7):
        rows[...] = rng.standard_normal(rows.shape)
        program.run({"tokens": n_tokens})
        np.testing.assert_array_equal(program.view(first, n_tokens), 2 * rows[:n_tokens])
        np.testing.assert_allclose(program.view(last, n_tokens), 6 * rows[:n_tokens], rtol=1e-6)


def test_what_one_thread_reads_alone_only_that_one_prefetches(
    store: KernelStore, team_of: Callable[[int], Team]
) -> None:
    """A matrix of a single chunk is the first thread's; the others are ahead, at the next one that all share."""
    g = Graph()
    source = g.input(64)
    weights = [tensor(name, n_rows, 64, format_name="F32") for name, n_rows in (("a", 512), ("b", 8), ("c", 512))]
    for weight in weights:
        g.output(linear(source, weight))
    program = program_of(lowered(g, 2), store, team_of(2), inputs={source: rows_for(source, 16)})
    a, b, c = (weight.address for weight in weights)
    steps = {int(record["weights"][0]): index for index, record in enumerate(program._records)}
    words = [program.ops[steps[at]] for at in (a, b, c)]
    assert [(int(word["prefetch"]), int(word["prefetch_first"])) for word in words] == [(a, 0), (c, b), (c, 0)]
    records = [program._records[steps[at]] for at in (a, b)]
    assert [(int(record["next_weights"][0]), int(record["next_first"][0])) for record in records] == [(c, b), (c, 0)]
    # By the number of chunks, every thread finds where its share begins.
    program.run({"tokens": 1})
    n_chunks = int(program.n_chunks[steps[c]])
    assert n_chunks > 2
    assert {int(word["prefetch_chunks"]) for word in words[1:]} == {int(records[0]["next_chunks"][0])} == {n_chunks}


def test_a_batch_of_too_many_chunks_is_refused(store: KernelStore, team_of: Callable[[int], Team], monkeypatch) -> None:
    """A share has so many bits for its chunks."""
    g = Graph()
    source = g.input(64)
    g.output(linear(source, tensor("w", 1000, 64, format_name="Q8_0")))
    program = program_of(lowered(g, 2), store, team_of(2), inputs={source: rows_for(source, 16)})
    monkeypatch.setattr(program_module, "MOST_CHUNKS", 10)
    with pytest.raises(UsageError, match="a batch of 16 tokens is too large for one run: choose a smaller n_batch"):
        program.run({"tokens": 16})


def test_ctrl_c_while_a_run_is_prepared(store: KernelStore, team_of: Callable[[int], Team], monkeypatch) -> None:
    """The next run does not take what was half written for what it needs."""
    g = Graph()
    source = g.input(64)
    out = g.output(linear(source, tensor("w", 1000, 64, format_name="Q8_0")))
    rows = rows_for(source, 16)
    rows[...] = np.random.default_rng(8).standard_normal(rows.shape)
    program = program_of(lowered(g, 2), store, team_of(2), inputs={source: rows})
    program.run({"tokens": 1})
    expected = program.view(out, 1).copy()

    def interrupt(*_) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chunks, "of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            program.run({"tokens": 16})
    program.view(out, 1)[...] = 0
    program.run({"tokens": 1})
    np.testing.assert_array_equal(program.view(out, 1), expected)
