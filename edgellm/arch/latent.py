"""Multi-head latent attention (DeepSeek-AI, 2024): keys and values of all heads are made of one short vector a token.

The cache holds that vector and one turned key, as a single head. What would make each head's keys of it is applied to
the queries instead, and what would make its values, to what attention found: so no token's keys and values are made.
Files of before April 2025 hold both in one matrix (`attn_kv_b`); of those, they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.arch.config import Keys, ModelConfig
from edgellm.arch.parts import project
from edgellm.arch.weights import Weights
from edgellm.errors import FormatError
from edgellm.graph.nodes import AttentionSpec, Rotation, Value, attention, keys_values, rms_norm, rope
from edgellm.graph.nodes.experts import expert_linear
from edgellm.graph.nodes.heads import join_heads, slice_heads

EPSILON = 1e-6


@dataclass(frozen=True)
class Latent:
    """Widths of latent attention.

    q_rank:             of what queries are made of; 0: they are made at once.
    kv_rank:            of the vector that is kept.
    n_plain, n_turned:  dimensions of a head of queries and keys that are not turned, and those behind them that are.
    value_dim:          of a head of values.
    """

    q_rank: int
    kv_rank: int
    n_plain: int
    n_turned: int
    value_dim: int


def latent_of(metadata: Mapping[str, Any]) -> Latent:
    """The widths that a file's metadata give. Raises FormatError naming a key that cannot be."""
    keys = Keys(metadata)
    n_turned = keys.count("rope.dimension_count", most=1 << 14)
    key_dim = keys.count("attention.key_length_mla", keys.count("attention.key_length"), most=1 << 14)
    value_dim = keys.count("attention.value_length_mla", keys.count("attention.value_length"), most=1 << 14)
    if key_dim <= n_turned:
        raise FormatError(
            f"{keys.architecture}.rope.dimension_count is {n_turned}; expected less than a head's {key_dim} dimensions"
        )
    q_rank, kv_rank = (keys.count(f"attention.{part}_lora_rank", default, least=0, most=1 << 16)
                       for part, default in (("q", 0), ("kv", None)))  # fmt: skip
    return Latent(q_rank, kv_rank, key_dim - n_turned, n_turned, value_dim)


def latent_attention(w: Weights, c: ModelConfig, x: Value, rotation: Rotation) -> Value:
    """What attention adds, with its projections."""
    m, n = c.latent, c.n_heads
    assert m is not None
    plain, turned = _queries(w, c, x, rotation)
    kv = project(w, x, "attn_kv_a_mqa", m.kv_rank + m.n_turned)
    latent = _normalize(w, slice_heads(kv, 1, 0, m.kv_rank), "attn_kv_a_norm")
    key = rope(slice_heads(kv, 1, m.kv_rank, m.n_turned), 1, rotation)
    spec = AttentionSpec(c.attention_scale)
    if w.has("attn_kv_b"):
        both = project(w, latent, "attn_kv_b", n * (m.n_plain + m.value_dim))
        keys = join_heads(slice_heads(both, n, 0, m.n_plain), key, n, 1)
        values = slice_heads(both, n, m.n_plain, m.value_dim)
        queries = join_heads(plain, turned, n)
        heads = attention(queries, keys_values(keys, values, n), n, spec, name=w.named("kqv_out"))
    else:
        queries = join_heads(expert_linear(plain, w.take("attn_k_b", n, m.kv_rank, m.n_plain)), turned, n)
        found = attention(queries, keys_values(join_heads(latent, key, 1), latent, 1), n, spec)
        heads = expert_linear(found, w.take("attn_v_b", n, m.value_dim, m.kv_rank), name=w.named("kqv_out"))
    return project(w, heads, "attn_output", c.n_embd, "attn_out")


def _normalize(w: Weights, x: Value, name: str) -> Value:
    """These norms have an epsilon of their own in all models, whatever the others have."""
    return rms_norm(x, w.take(name, x.width), EPSILON, name=w.named(name))


def _queries(w: Weights, c: ModelConfig, x: Value, rotation: Rotation) -> tuple[Value, Value]:
    """Of every head, the dimensions that are not turned, and those that are."""
    m, n = c.latent, c.n_heads
    assert m is not None
    key_dim = m.n_plain + m.n_turned
    if m.q_rank:
        q = project(w, _normalize(w, project(w, x, "attn_q_a", m.q_rank), "attn_q_a_norm"), "attn_q_b", n * key_dim)
    else:
        q = project(w, x, "attn_q", n * key_dim)
    return slice_heads(q, n, 0, m.n_plain), rope(slice_heads(q, n, m.n_plain, m.n_turned), n, rotation)
