"""Whole texts in a batch, each of which attends to itself: nodes, their ops, and what a batch tells them."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.errors import UnsupportedError
from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program
from edgellm.graph.lowering import lower
from edgellm.graph.lowering.base import Target
from edgellm.graph.nodes import (
    AttentionSpec,
    Rotation,
    Value,
    activate,
    add_segment,
    attention,
    embed,
    keys_values,
    linear,
    rope,
)
from edgellm.graph.tuning import Tuning
from edgellm.kernels import reference, reference_encoder
from edgellm.kernels.isa import choose

from .conftest import tensor

WIDTH, N_HEADS, N_KV_HEADS = 48, 3, 1
LENGTHS = [1, 70, 5, 33]
# Sums of up to 70 float32 products of numbers near 1.
FLOAT32 = 1e-5


def attending(spec: AttentionSpec, weights: list[Tensor]) -> tuple[Graph, Value]:
    g = Graph()
    table, wq, wk, wv, segments = weights
    x = add_segment(embed(g, table), segments)
    rotation = Rotation(np.ones(8) / 7, interleaved=False)
    q, k = rope(linear(x, wq), N_HEADS, rotation), rope(linear(x, wk), N_KV_HEADS, rotation)
    kv = keys_values(k, linear(x, wv), N_KV_HEADS, cached=False)
    out = attention(q, kv, N_HEADS, spec)
    g.output(activate(k, "tanh"))  # which must not work in place of the keys
    return g, g.output(out)


@pytest.fixture
def weights() -> list[Tensor]:
    shapes = {"table": (40, WIDTH), "q": (WIDTH, WIDTH), "k": (16, WIDTH), "v": (16, WIDTH), "segments": (2, WIDTH)}
    return [tensor(name, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())]


def twin(spec: AttentionSpec, weights: list[Tensor], texts: list[list[int]], parts: list[list[int]]) -> np.ndarray:
    table, wq, wk, wv, segments = (weight.dequantize() for weight in weights)
    x = table[np.concatenate(texts)] + segments[np.concatenate(parts)]
    positions = np.concatenate([np.arange(len(text)) for text in texts])
    angles = np.multiply.outer(positions, np.ones(8) / 7)
    q = reference.rope((x @ wq.T).reshape(len(x), N_HEADS, 16), angles, False)
    k = reference.rope((x @ wk.T).reshape(len(x), N_KV_HEADS, 16), angles, False)
    v = (x @ wv.T).reshape(len(x), N_KV_HEADS, 16)
    ahead = 0 if spec.causal else None if spec.window is None else spec.window - 1
    lengths = [len(text) for text in texts]
    out = reference_encoder.text_attention(q, k, v, lengths, spec.scale, spec.window, ahead, spec.alibi)
    return out.reshape(len(x), WIDTH)


@pytest.mark.parametrize(
    "spec",
    [
        AttentionSpec(0.25, causal=False),
        AttentionSpec(0.25, causal=False, window=7),
        AttentionSpec(0.25, causal=True),
        AttentionSpec(0.25, causal=True, window=7),
        AttentionSpec(0.25, causal=False, alibi=np.float32([0.5, 0.25, 0.125])),
    ],
)
def test_texts_attend_to_themselves(store, team_of, weights: list[Tensor], spec: AttentionSpec) -> None:
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, 40, n).tolist() for n in LENGTHS]
    parts = [rng.integers(0, 2, n).tolist() for n in LENGTHS]
    g, out = attending(spec, weights)
    ops = lower(g, Target(choose(), Tuning(2)), longest=128)
    assert ops.cache_layers == [] and ops.windows == []
    store.load(ops.kernels)
    program = Program(ops, store, Batch(128, ops), team_of(2))
    program.run(program.batch.fill_texts(texts, parts))
    got = program.view(out, sum(LENGTHS)).copy()
    np.testing.assert_allclose(got, twin(spec, weights, texts, parts), atol=FLOAT32)
    first = 0
    for text, segments in zip(texts, parts, strict=True):
        program.run(program.batch.fill_texts([text], [segments]))
        assert program.view(out, len(text)).tobytes() == got[first : first + len(text)].tobytes()
        first += len(text)


def test_what_is_not_built_is_refused(weights: list[Tensor]) -> None:
    sinks = tensor("sinks", N_HEADS)
    for spec, what in ((AttentionSpec(1.0, soft_cap=30.0), "soft-capped"), (AttentionSpec(1.0, sinks=sinks), "sinks")):
        with pytest.raises(UnsupportedError, match=f"attention of whole texts with {what}"):
            lower(attending(spec, weights)[0], Target(choose(), Tuning(1)), longest=16)
