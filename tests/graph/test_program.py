"""A small transformer layer as a program: the same bits from any number of threads, batches and single tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Team, Tuning
from edgellm.graph.builder import Rope
from edgellm.graph.ops import Chunks
from edgellm.graph.program import aligned, kernels_of
from edgellm.kernels import reference
from edgellm.kernels.isa import choose
from edgellm.kernels.records import KV_BLOCK
from edgellm.kernels.store import KernelStore
from edgellm.quants import FORMATS

N_EMBD, N_HEADS, N_KV_HEADS, HEAD_DIM, N_FF, N_VOCAB = 96, 4, 2, 32, 160, 300
CAPACITY = 32  # tokens times heads of a group fit into one attention task
EPSILON = 1e-5


def tensor(name: str, n_out: int, n_in: int, rng: np.random.Generator, kind: str) -> Tensor:
    fmt = FORMATS[kind]
    return Tensor(name, (n_out, n_in), fmt, fmt.quantize(rng.standard_normal((n_out, n_in), np.float32) / n_in**0.5))


class Layer:
    """Everything of one layer and its head, and how a batch of one sequence runs through it."""

    def __init__(self, store: KernelStore, team: Team) -> None:
        rng = np.random.default_rng(4)
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
        w = {name: tensor(name, *shape, rng, kinds.get(name, "Q4_1")) for name, shape in shapes.items()}
        one = np.ones(N_EMBD, np.float32)
        norm = Tensor("norm", (N_EMBD,), FORMATS["F32"], one.view(np.uint8))
        rope = Rope(10000.0 ** -(np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM), interleaved=False)

        g = Graph(choose(), Tuning(team.n_threads))
        x = g.embed(w["embd"])
        h = g.rms_norm(x, norm, EPSILON)
        q, k = (g.rope(g.linear(h, w[name]), n, rope) for name, n in (("q", N_HEADS), ("k", N_KV_HEADS)))
        h = g.attention(q, k, g.linear(h, w["v"]), N_HEADS, N_KV_HEADS, HEAD_DIM**-0.5)
        x = g.add(x, g.linear(h, w["o"]))
        h = g.rms_norm(x, norm, EPSILON)
        h = g.glu(g.linear(h, w["gate"]), g.linear(h, w["up"]), "silu")
        self.hidden = g.output(g.add(x, g.linear(h, w["down"])))

        self.weights = [*w.values(), norm]  # programs hold their addresses
        self.cache = reference.new_cache(4, N_KV_HEADS, HEAD_DIM)[0].base
        self.block_table = np.array([2, 0, 3, 1], np.int32)
        store.load(kernels_of(g))
        self.batch = Batch(CAPACITY, g.ropes, g.windows)
        self.program = Program(g, store, self.batch, team, {"cache 0": self.cache.ctypes.data})

    def run(self, ids: np.ndarray, start: int) -> np.ndarray:
        """float32 [n_tokens, N_EMBD] for the tokens at positions from `start` on."""
        n, batch = len(ids), self.batch
        positions = np.arange(start, start + n)
        batch.token_ids[:n] = ids
        batch.kv_slots[:n] = self.block_table[positions // KV_BLOCK] * KV_BLOCK + positions % KV_BLOCK
        batch.turn(positions)
        batch.tasks[0][0] = (0, n, start, 0, start + n, self.block_table.ctypes.data, -1)
        self.program.run({"tokens": n, "tasks 0": 1, "merges 0": 0})
        return self.program.view(self.hidden, n).copy()

    def run_in_parts(self, ids: np.ndarray, sizes: list[int]) -> np.ndarray:
        ends = np.cumsum(sizes)
        return np.concatenate(
            [self.run(ids[end - size : end], end - size) for size, end in zip(sizes, ends, strict=True)]
        )


IDS = np.random.default_rng(9).integers(0, N_VOCAB, 100)
PARTS = [32, 1, 30, Tuning(1).few_tokens, Tuning(1).few_tokens + 1, 17, 1, 12]


@pytest.fixture(scope="module")
def expected(store: KernelStore) -> bytes:
    """What one thread makes of it, one token at a time."""
    team = Team(store, 1, 64)
    result = Layer(store, team).run_in_parts(IDS, [1] * len(IDS))
    team.close()
    assert np.isfinite(result).all() and result.std() > 0.1
    return result.tobytes()


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_any_team_gives_the_same_bits(store, team_of: Callable[[int], Team], n_threads: int, expected: bytes) -> None:
    layer = Layer(store, team_of(n_threads))
    for _ in range(25):
        assert layer.run_in_parts(IDS, PARTS).tobytes() == expected


def test_an_input_from_elsewhere_and_an_output_that_stays(store: KernelStore, team_of: Callable[[int], Team]) -> None:
    """Intermediate values can be read after a run, and are not overwritten by later ops."""
    rng = np.random.default_rng(5)
    g = Graph(choose(), Tuning(2))
    source = g.input(48)
    first = g.output(g.add(source, source), "twice")
    last = g.output(g.add(g.add(first, first), first), "six times")
    store.load(kernels_of(g))
    rows = aligned(16 * source.token_bytes).view(np.float32).reshape(16, 48)
    program = Program(g, store, Batch(16, [], []), team_of(2), inputs={source: rows.ctypes.data})
    for n_tokens in (16, 1, 7):
        rows[...] = rng.standard_normal(rows.shape)
        program.run({"tokens": n_tokens})
        np.testing.assert_array_equal(program.view(first, n_tokens), 2 * rows[:n_tokens])
        np.testing.assert_allclose(program.view(last, n_tokens), 6 * rows[:n_tokens], rtol=1e-6)


def test_ctrl_c_while_a_run_is_prepared(store: KernelStore, team_of: Callable[[int], Team], monkeypatch) -> None:
    """The next run does not take what was half written for what it needs."""
    rng = np.random.default_rng(8)
    g = Graph(choose(), Tuning(2))
    source = g.input(64)
    weight = tensor("w", 1000, 64, rng, "Q8_0")
    out = g.output(g.linear(source, weight))
    store.load(kernels_of(g))
    rows = aligned(16 * source.token_bytes).view(np.float32).reshape(16, 64)
    rows[...] = rng.standard_normal(rows.shape)
    program = Program(g, store, Batch(16, [], []), team_of(2), inputs={source: rows.ctypes.data})
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


def test_activations_are_quantized_once_for_all_that_read_them() -> None:
    rng = np.random.default_rng(6)
    g = Graph(choose(), Tuning(1))
    x = g.input(64)
    for name in "abc":
        g.linear(x, tensor(name, 32, 64, rng, "Q8_0"))
    assert [op.kernel.op for op in g.ops] == ["quantize", "linear_prefill", "linear_prefill", "linear_prefill"]
