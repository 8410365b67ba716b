"""Attention token by token, with the row ops around it: where that is done, and that it changes no bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.graph import AddressedArray, Batch, Graph, Piece
from edgellm.graph.cache_memory import CacheMemory
from edgellm.graph.nodes import AttentionSpec, Rotation, attention, keys_values, linear, rms_norm, rope
from edgellm.graph.ops import BY_TOKEN, TOGETHER
from edgellm.kernels.kv_types import CACHE_TYPES
from edgellm.kernels.records import KV_BLOCK

from .conftest import Same, lowered, program_of, rows_for, tensor

pytestmark = pytest.mark.usefixtures("no_amx")

HEAD_DIM, N_HEADS, N_KV_HEADS = 32, 4, 2
WIDTH, KV_WIDTH = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
TURNED = Rotation(np.geomspace(1, 1e-3, HEAD_DIM // 2), True)
SPECS = {
    "plain": AttentionSpec(HEAD_DIM**-0.5),
    "window": AttentionSpec(HEAD_DIM**-0.5, window=70),
    "sinks": AttentionSpec(HEAD_DIM**-0.5, sinks=tensor("sinks", N_HEADS)),
    "capped": AttentionSpec(HEAD_DIM**-0.5, soft_cap=20.0),
}
DEPTHS = (0, 31, 32, 300, 63, 64, 130, 511)


def graph_of(spec: AttentionSpec) -> Graph:
    """From queries, keys and values to what a linear makes of attention."""
    g = Graph()
    q, k, v = g.input(WIDTH), g.input(KV_WIDTH), g.input(KV_WIDTH)
    q = rope(rms_norm(q, tensor("norm", HEAD_DIM), 1e-5, N_HEADS), N_HEADS, TURNED)
    kv = keys_values(rope(k, N_KV_HEADS, TURNED), v, N_KV_HEADS)
    g.output(linear(attention(q, kv, N_HEADS, spec), tensor("o", WIDTH, WIDTH, format_name="Q8_0")))
    return g


def piece(n: int, position: int, table: np.ndarray) -> Piece:
    places = position + np.arange(n)
    slots = table[places // KV_BLOCK] * KV_BLOCK + places % KV_BLOCK
    return Piece(list(range(n)), position, Same(slots), Same(AddressedArray(table)))


def test_all_from_keys_to_the_next_linears_input_is_one_op() -> None:
    ops = lowered(graph_of(SPECS["plain"]))
    names = [op.name_of(op.kernel) for op in ops.steps]
    before = "rms_norm + rope + rope + kv_append.f16"
    assert names == [
        f"{before} + attention.f16 + quantize", before, "attention.f16", "attention_merge", "quantize",
        "linear_prefill.Q8_0",
    ]  # fmt: skip
    assert [op.chunks.count for op in ops.steps] == [BY_TOKEN, TOGETHER, "tasks 0", "merges 0", TOGETHER, "tokens"]


def test_attention_alone_where_no_row_op_is_beside_it() -> None:
    g = Graph()
    q, k = g.input(WIDTH), g.input(KV_WIDTH)
    kv = keys_values(k, k, N_KV_HEADS)
    w = tensor("w", WIDTH, WIDTH)
    g.output(linear(attention(linear(q, w), kv, N_HEADS, SPECS["plain"]), w))
    names = [op.name_of(op.kernel) for op in lowered(g).steps]
    assert names[-4:] == ["attention.f16", "attention.f16", "attention_merge", "linear_f32.F32"]


@pytest.mark.parametrize(
    ("n_threads", "pieces", "by_token"),
    [
        (1, [(1, 900)], True),
        (2, [(1, 900)], False),  # the other thread would have nothing to do
        (2, [(1, 900), (1, 600)], False),
        (2, [(1, 900), (1, 890)], True),
        (2, [(1, 500), (1, 100), (1, 398)], True),
        (2, [(1, 900), (1, 20), (1, 30)], False),  # nor here, while the first text is computed
        (2, [(2, 0), (1, 0)], False),  # a token needs the keys of the one before
        (3, [(1, 50)] * 3, True),
    ],
)
def test_where_every_thread_has_enough_to_do(n_threads: int, pieces: list[tuple[int, int]], by_token: bool) -> None:
    batch = Batch(16, lowered(graph_of(SPECS["plain"]), n_threads))
    table = np.arange(20, dtype=np.int32)
    counts = batch.fill([piece(n, position, table) for n, position in pieces])
    n_tokens = sum(n for n, _ in pieces)
    assert counts[BY_TOKEN] == (n_tokens if by_token else 0)
    assert counts[TOGETHER] == (0 if by_token else n_tokens)
    assert (counts["tasks 0"] == 0) == by_token


@pytest.mark.parametrize("kind", ["f16", "f32", "q8_0", "q4_0", "f16:q8_0"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_same_bits_as_all_tokens_together(store, team_of, monkeypatch, spec, kind: str) -> None:
    g = graph_of(spec)
    ops = lowered(g, 2, kv_type=CACHE_TYPES[kind])
    n_blocks = [-(-(depth + 1) // KV_BLOCK) for depth in DEPTHS]
    cache = CacheMemory(ops.cache_layers, dict.fromkeys(ops.kept, sum(n_blocks)))
    tables = np.split(np.random.default_rng(1).permutation(sum(n_blocks)).astype(np.int32), np.cumsum(n_blocks)[:-1])
    rng = np.random.default_rng(2)
    rows = {value: rows_for(value, 512) for value in g.inputs}
    program = program_of(ops, store, team_of(2), 512, rows, cache.tables())
    (out,) = g.outputs

    def run(pieces: list[Piece]) -> np.ndarray:
        counts = program.batch.fill(pieces)
        program.run(counts)
        return program.view(out, counts["tokens"]).copy()

    for table, depth in zip(tables, DEPTHS, strict=True):
        for memory in rows.values():
            memory[...] = rng.standard_normal(memory.shape)
        if depth:
            run([piece(depth, 0, table)])
    for memory in rows.values():
        memory[...] = rng.standard_normal(memory.shape)
    pieces = [piece(1, depth, table) for table, depth in zip(tables, DEPTHS, strict=True)]
    assert program.batch.fill(pieces)[BY_TOKEN] == len(pieces)
    by_token = run(pieces)
    monkeypatch.setattr(Batch, "_is_by_token", lambda *_: False)
    together = run(pieces)
    assert np.isfinite(together).all() and together.std() > 0.1
    np.testing.assert_array_equal(by_token, together)
