"""What nodes mean, in NumPy and nearly float64: every value of a graph, for one text from its first token on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.graph.nodes import (
    GLU,
    Add,
    AddBias,
    AmongZeros,
    Attention,
    Columns,
    Embed,
    EmbedPosition,
    Graph,
    KeysValues,
    LayerNorm,
    Linear,
    Maxima,
    Node,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)
from edgellm.graph.nodes.experts import AddExpertBias, ExpertLinear, Gate, Route, SumExperts
from edgellm.graph.nodes.heads import JoinHeads, SliceHeads
from edgellm.graph.nodes.streams import AddMixed, AddToColumns, KeepLarge, MatchSize
from edgellm.kernels import reference, reference_experts, reference_streams


@dataclass(frozen=True)
class Text:
    """token_ids: what is embedded; rows: which of them `select_rows` takes."""

    token_ids: np.ndarray
    rows: np.ndarray


def evaluate(graph: Graph, text: Text, inputs: Mapping[Value, np.ndarray] | None = None) -> dict[Value, Any]:
    """float32 [n_tokens, width] of every value; of a cache, its keys and values."""
    values: dict[Value, Any] = dict(inputs or {})
    for node in graph.nodes:
        made = graph.all_made_by(node)
        if made[0] not in values:
            found = _TWINS[type(node)](node, text, *(values[needed] for needed in node.inputs))
            values |= zip(made, (found,) if len(made) == 1 else found, strict=True)
    return values


def _rope(node: Rope, text: Text, x: np.ndarray) -> np.ndarray:
    angles = np.multiply.outer(np.arange(len(x)), node.rotation.frequencies)
    return reference.rope(_heads(x, node.n_heads), angles, node.rotation.interleaved).reshape(x.shape)


def _attention(node: Attention, text: Text, q: np.ndarray, kv: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    group = node.n_heads // node.source.n_heads
    keys, values = (np.repeat(_heads(part, node.source.n_heads).astype(np.float64), group, axis=1) for part in kv)
    spec = node.spec
    scores = spec.scale * np.einsum("thd,shd->hts", _heads(q, node.n_heads), keys)
    if spec.soft_cap is not None:
        scores = spec.soft_cap * np.tanh(scores / spec.soft_cap)
    distance = np.subtract.outer(np.arange(len(q)), np.arange(len(q)))
    if spec.alibi is not None:
        scores -= spec.alibi[:, None, None] * distance
    seen = (distance >= 0) & (distance < (spec.window or len(q)))
    scores = np.where(seen, scores, -np.inf)
    if spec.sinks is not None:
        sinks = np.broadcast_to(spec.sinks.dequantize()[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, sinks], axis=2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    found = np.einsum("hts,shd->thd", weights[:, :, : len(q)], values)
    return found.reshape(len(q), node.width).astype(np.float32)


def _route(node: Route, text: Text, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bias = None if node.bias is None else node.bias.dequantize()
    scales = None if node.scales is None else node.scales.dequantize()
    return reference_experts.route(logits, bias, scales=scales, **node.routing._asdict())


def _expert_linear(node: ExpertLinear, text: Text, x: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
    n_experts, n_out, n_in = node.weight.shape
    if chosen is None:
        chosen = np.tile(np.arange(n_experts), (len(x), 1))
    raw = node.weight.raw.reshape(n_experts, n_out, -1)
    return reference_experts.experts_f32(raw, node.weight.format, x.reshape(-1, n_in), chosen)


def _join_heads(node: JoinHeads, text: Text, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    more = np.broadcast_to(_heads(b, node.b_heads), (len(b), node.n_heads, b.shape[1] // node.b_heads))
    return np.concatenate([_heads(a, node.n_heads), more], -1).reshape(len(a), -1)


def _slice_heads(node: SliceHeads, text: Text, x: np.ndarray) -> np.ndarray:
    return _heads(x, node.n_heads)[..., node.start : node.start + node.size].reshape(len(x), -1)


def _heads(x: np.ndarray, n_heads: int) -> np.ndarray:
    return x.reshape(len(x), n_heads, -1)


_TWINS: dict[type[Node], Any] = {
    Embed: lambda node, text: reference.embed(text.token_ids, node.weight.raw, node.weight.format, node.scale),
    RMSNorm: lambda node, text, x: reference.rms_norm(x, node.weight.dequantize(), node.epsilon, node.n_heads),
    Linear: lambda node, text, x: reference.linear_f32(node.weight.raw, node.weight.format, x),
    LayerNorm: lambda node, text, x: reference.layer_norm(
        x, node.weight.dequantize(), node.bias.dequantize() if node.bias else 0, node.epsilon, node.n_heads
    ),
    EmbedPosition: lambda node, text: node.weight.dequantize()[: len(text.token_ids)],
    Scale: lambda node, text, x: x * np.float32(node.factor),
    SoftCap: lambda node, text, x: reference.soft_cap(x, node.cap),
    Columns: lambda node, text, x: reference.columns(x, node.first, node.n_cols),
    AmongZeros: lambda node, text, x: reference.columns(x, 0, x.shape[1], node.first, node.n_cols),
    AddMixed: lambda node, text, x, y, by: reference_streams.add_mixed(x, y, by, node.n_cols, node.plus),
    AddToColumns: lambda node, text, x, y: reference_streams.add_to_columns(
        x, y, node.first, (x.shape[1] - node.first) // y.shape[1]
    ),
    MatchSize: lambda node, text, x, like: reference_streams.match_size(x, like, node.least),
    KeepLarge: lambda node, text, x: reference_streams.keep_large(x, node.deviations),
    Add: lambda node, text, a, b: reference.add(a, b),
    AddBias: lambda node, text, x: reference.add_bias(x, node.bias.dequantize()),
    GLU: lambda node, text, gate, up: reference.glu(gate, up, node.activation),
    Rope: _rope,
    KeysValues: lambda node, text, keys, values: (keys, values),
    Attention: _attention,
    SelectRows: lambda node, text, x: reference.select_rows(x, text.rows),
    Maxima: lambda node, text, x: reference.maxima(x),
    Route: _route,
    ExpertLinear: _expert_linear,
    AddExpertBias: lambda node, text, x, c: reference_experts.add_expert_bias(x, node.bias.dequantize(), c.astype(int)),
    SumExperts: lambda node, text, x, weights: reference_experts.sum_experts(x, weights),
    Gate: lambda node, text, x, by: reference_experts.gate(x, by),
    SliceHeads: _slice_heads,
    JoinHeads: _join_heads,
}
