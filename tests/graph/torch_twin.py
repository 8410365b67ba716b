"""What nodes mean, in torch and float64, so that autograd tells the gradients that backward passes should find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgellm.formats.tensor import Tensor
from edgellm.graph.nodes import (
    GLU,
    Activate,
    Add,
    AddBias,
    Attention,
    Columns,
    Embed,
    EmbedPosition,
    Graph,
    KeysValues,
    LayerNorm,
    Linear,
    Node,
    ReplaceRows,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    SoftCap,
    Value,
)
from edgellm.graph.nodes.dropout import Dropout
from edgellm.graph.nodes.experts import AddExpertBias, ExpertLinear, Gate, Route, SumExperts
from edgellm.graph.nodes.heads import SliceHeads
from edgellm.graph.nodes.low_rank import AddScaled, MultiplyColumns, Narrow, Widen
from edgellm.kernels import reference_rows

# Which row of its table each row takes that `ReplaceRows` replaces, in a batch of 13 tokens.
PLACES = np.array([1, 2, 0, 0, 0, 4, 1, 2, 3, 0, 0, 0, 2], np.float32)


class Twin:
    """Every value of a graph, for documents that stand one behind the other, from weights and inputs as leaves."""

    def __init__(
        self, graph: Graph, lengths: Sequence[int], token_ids: np.ndarray, inputs: Mapping[Value, np.ndarray]
    ) -> None:
        self.lengths, self.token_ids = list(lengths), torch.from_numpy(np.asarray(token_ids)).long()
        self.weights: dict[Tensor, torch.Tensor] = {}
        self.values: dict[Value, Any] = {
            value: torch.tensor(rows, dtype=torch.float64, requires_grad=True) for value, rows in inputs.items()
        }
        for node in graph.nodes:
            made = graph.all_made_by(node)
            if made[0] not in self.values:
                found = _TWINS[type(node)](self, node, *(self.values[x] for x in node.inputs))
                self.values |= zip(made, (found,) if len(made) == 1 else found, strict=True)

    def weight(self, weight: Tensor) -> torch.Tensor:
        if weight not in self.weights:
            numbers = torch.tensor(weight.dequantize(), dtype=torch.float64, requires_grad=True)
            self.weights[weight] = numbers
        return self.weights[weight]

    @property
    def positions(self) -> torch.Tensor:
        return torch.cat([torch.arange(n) for n in self.lengths])


def _rms_norm(twin: Twin, node: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    heads = x.reshape(len(x), node.n_heads, -1)
    scale = torch.rsqrt((heads * heads).mean(-1, keepdim=True) + node.epsilon)
    return (heads * scale * twin.weight(node.weight)).reshape(x.shape)


def _layer_norm(twin: Twin, node: LayerNorm, x: torch.Tensor) -> torch.Tensor:
    heads = x.reshape(len(x), node.n_heads, -1)
    normed = torch.nn.functional.layer_norm(heads, heads.shape[-1:], eps=node.epsilon) * twin.weight(node.weight)
    return (normed if node.bias is None else normed + twin.weight(node.bias)).reshape(x.shape)


_ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_erf": torch.nn.functional.gelu,
    "relu": torch.relu,
    "relu_squared": lambda x: torch.relu(x) ** 2,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "linear": lambda x: x,
}


def _glu(twin: Twin, node: GLU, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if node.activation == "clamped_swiglu":
        near = gate.clamp(max=7)
        return near * torch.sigmoid(1.702 * near) * (up.clamp(-7, 7) + 1)
    return _ACTIVATIONS[node.activation](gate) * up


def _route(twin: Twin, node: Route, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r = node.routing
    scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "logits": logits}[r.scoring]
    choice = scores if node.bias is None else scores + twin.weight(node.bias)
    chosen = choice.topk(r.n_used, -1).indices
    weights = scores.gather(-1, chosen)
    weights = weights.softmax(-1) if r.scoring == "logits" else weights
    weights = weights / weights.sum(-1, keepdim=True) if r.normalize else weights
    by = 1.0 if node.scales is None else torch.from_numpy(node.scales.dequantize()).double()[chosen]
    return chosen, weights * r.scale * by


def _expert_linear(twin: Twin, node: ExpertLinear, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    weights = twin.weight(node.weight)[chosen]
    parts = x.reshape(len(x), -1, weights.shape[-1]).expand(-1, weights.shape[1], -1)
    return torch.einsum("tsoi,tsi->tso", weights, parts).reshape(len(x), -1)


def _slice_heads(twin: Twin, node: SliceHeads, x: torch.Tensor) -> torch.Tensor:
    heads = x.reshape(len(x), node.n_heads, -1)
    return heads[..., node.start : node.start + node.size].reshape(len(x), -1)


def _gate(twin: Twin, node: Gate, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(by)


def _rope(twin: Twin, node: Rope, x: torch.Tensor) -> torch.Tensor:
    frequencies = torch.tensor(node.rotation.frequencies, dtype=torch.float64)
    angles = torch.outer(twin.positions.double(), frequencies)[:, None] * (-1 if node.inverse else 1)
    heads = x.reshape(len(x), node.n_heads, -1)
    n = len(frequencies)
    rotated, rest = heads[..., : 2 * n], heads[..., 2 * n :]
    if node.rotation.interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
    else:
        a, b = rotated[..., :n], rotated[..., n:]
    turned = a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()
    turned = tuple(node.rotation.magnitude * part for part in turned)
    pairs = torch.stack(turned, -1).flatten(-2) if node.rotation.interleaved else torch.cat(turned, -1)
    return torch.cat([pairs, rest], -1).reshape(x.shape)


def _attention(twin: Twin, node: Attention, q: torch.Tensor, kv: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    found, start = [], 0
    n_kv_heads = node.source.n_heads
    for length in twin.lengths:
        rows = slice(start, start + length)
        queries = q[rows].reshape(length, node.n_heads, -1).transpose(0, 1)
        keys, values = (
            part[rows].reshape(length, n_kv_heads, -1).transpose(0, 1).repeat_interleave(node.n_heads // n_kv_heads, 0)
            for part in kv
        )
        distance = torch.arange(length)[:, None] - torch.arange(length)
        unseen = (distance < 0) | (distance >= (node.spec.window or length))
        scores, spec = node.spec.scale * queries @ keys.transpose(1, 2), node.spec
        if spec.soft_cap is not None:
            scores = spec.soft_cap * torch.tanh(scores / spec.soft_cap)
        if spec.alibi is not None:
            scores = scores - distance * torch.from_numpy(spec.alibi).double()[:, None, None]
        scores = scores.masked_fill(unseen, -torch.inf)
        if spec.sinks is not None:
            sinks = torch.from_numpy(spec.sinks.dequantize()).double()[:, None, None]
            scores = torch.cat([scores, sinks.expand(-1, length, 1)], -1)
        weights = scores.softmax(-1)[..., :length]
        found.append((weights @ values).transpose(0, 1).reshape(length, -1))
        start += length
    return torch.cat(found)


def _dropout(twin: Twin, node: Dropout, x: torch.Tensor) -> torch.Tensor:
    seed, is_on = node.chance.state.tolist()
    ones = np.ones(tuple(x.shape), np.float32)
    return x * torch.from_numpy(reference_rows.dropout(ones, node.chance.p, seed)).double() if is_on else x


def _replace_rows(twin: Twin, node: ReplaceRows, x: torch.Tensor) -> torch.Tensor:
    assert node.table is not None
    places = torch.from_numpy(PLACES).long()
    return torch.where(places[:, None] > 0, twin.weight(node.table)[(places - 1).clamp(0)], x)


_TWINS: dict[type[Node], Any] = {
    Embed: lambda twin, node: twin.weight(node.weight)[twin.token_ids] * node.scale,
    RMSNorm: _rms_norm,
    Linear: lambda twin, node, x: x @ twin.weight(node.weight).T,
    Dropout: _dropout,
    MultiplyColumns: lambda twin, node, x: x * twin.weight(node.weight),
    Narrow: lambda twin, node, x: node.scale * x @ twin.weight(node.weight).T,
    AddScaled: lambda twin, node, y, x: y + node.scale * x,
    Widen: lambda twin, node, y, h: y + node.scale * h @ twin.weight(node.weight),
    Add: lambda twin, node, a, b: a + b,
    AddBias: lambda twin, node, x: x + twin.weight(node.bias),
    GLU: _glu,
    Scale: lambda twin, node, x: node.factor * x,
    Columns: lambda twin, node, x: x[:, node.first : node.first + node.n_cols],
    Activate: lambda twin, node, x: _ACTIVATIONS[node.activation](x),
    LayerNorm: _layer_norm,
    SoftCap: lambda twin, node, x: node.cap * torch.tanh(x / node.cap),
    EmbedPosition: lambda twin, node: twin.weight(node.weight)[twin.positions],
    Route: _route,
    ExpertLinear: _expert_linear,
    AddExpertBias: lambda twin, node, x, chosen: x + twin.weight(node.bias)[chosen].reshape(x.shape),
    SumExperts: lambda twin, node, x, by: (x.reshape(*by.shape, -1) * by[..., None]).sum(1),
    Gate: _gate,
    SliceHeads: _slice_heads,
    ReplaceRows: _replace_rows,
    Rope: _rope,
    KeysValues: lambda twin, node, keys, values: (keys, values),
    Attention: _attention,
    SelectRows: lambda twin, node, x: x,
}
