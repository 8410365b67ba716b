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
    Graph,
    KeysValues,
    Linear,
    Node,
    ReplaceRows,
    RMSNorm,
    Rope,
    Scale,
    SelectRows,
    Value,
)
from edgellm.graph.nodes.dropout import Dropout
from edgellm.graph.nodes.low_rank import MultiplyColumns, Narrow, Widen
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
            value = graph.made_by(node)
            if value not in self.values:
                self.values[value] = _TWINS[type(node)](self, node, *(self.values[x] for x in node.inputs))

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


def _glu(twin: Twin, node: GLU, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    if node.activation == "silu":
        return torch.nn.functional.silu(gate) * up
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


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
        scores = (node.spec.scale * queries @ keys.transpose(1, 2)).masked_fill(unseen, -torch.inf)
        found.append((scores.softmax(-1) @ values).transpose(0, 1).reshape(length, -1))
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


def _activate(twin: Twin, node: Activate, x: torch.Tensor) -> torch.Tensor:
    if node.activation == "gelu":
        return torch.nn.functional.gelu(x, approximate="tanh")
    return torch.relu(x) if node.activation == "relu" else torch.nn.functional.silu(x)


_TWINS: dict[type[Node], Any] = {
    Embed: lambda twin, node: twin.weight(node.weight)[twin.token_ids] * node.scale,
    RMSNorm: _rms_norm,
    Linear: lambda twin, node, x: x @ twin.weight(node.weight).T,
    Dropout: _dropout,
    MultiplyColumns: lambda twin, node, x: x * twin.weight(node.weight),
    Narrow: lambda twin, node, x: node.scale * x @ twin.weight(node.weight).T,
    Widen: lambda twin, node, y, h: y + node.scale * h @ twin.weight(node.weight),
    Add: lambda twin, node, a, b: a + b,
    AddBias: lambda twin, node, x: x + twin.weight(node.bias),
    GLU: _glu,
    Scale: lambda twin, node, x: node.factor * x,
    Columns: lambda twin, node, x: x[:, node.first : node.first + node.n_cols],
    Activate: _activate,
    ReplaceRows: _replace_rows,
    Rope: _rope,
    KeysValues: lambda twin, node, keys, values: (keys, values),
    Attention: _attention,
    SelectRows: lambda twin, node, x: x,
}
