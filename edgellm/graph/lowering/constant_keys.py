"""What all keys of a layer have in common: what a bias adds to each.

Softmax does not notice a vector that is added to every key: it adds the same to all scores of a query. So a cache of
integers stores keys without it, and has its steps for what differs. The keys of Qwen 2.5 need that: the biases of its
first layers are ten to a hundred times as large as all else in a key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgellm.graph.nodes import AddBias, Attention, KeysValues, ReplaceRows, Rope, Value
from edgellm.graph.nodes.low_rank import AddScaled, Choose, Widen
from edgellm.graph.nodes.scaled import Columns
from edgellm.kernels.kv_types import IntegerKV, KVType

N_POSITIONS = 4096  # over which turned keys have their mean: of other texts it is as good as most of them are long


def constant_keys(node: KeysValues, attentions: list[Attention], kind: KVType) -> NDArray[np.float32] | None:
    """float32 [width of the keys], to be taken off every key; None where there is nothing, or where it would matter.

    attentions:  all that look at these keys and values.
    """
    if not isinstance(kind, IntegerKV) or any(a.spec.soft_cap or a.spec.sinks is not None for a in attentions):
        return None  # floats lose nothing to it; caps and sinks do notice what is added to all scores
    found = _constant_part(node.keys)
    if found is None or not np.isfinite(found).all():
        return None
    return found.astype(np.float32)


def _constant_part(value: Value) -> NDArray[np.float64] | None:
    """float64 [width], the mean over many positions of what is in a value whatever the token is.

    With adapters, that of the model's own: rows that have them share batches with others, and so what is taken off.
    """
    node = value.node
    if isinstance(node, Choose | ReplaceRows):
        return _constant_part(node.x)
    if isinstance(node, Widen | AddScaled):
        return _constant_part(node.y)
    if isinstance(node, AddBias):
        return node.bias.dequantize().reshape(-1).astype(np.float64)
    if isinstance(node, Columns):
        found = _constant_part(node.x)
        return None if found is None else found[node.first : node.first + node.n_cols]
    if isinstance(node, Rope):
        found = _constant_part(node.x)
        return None if found is None else _turned(found.reshape(node.n_heads, -1), node).reshape(-1)
    return None


def _turned(heads: NDArray[np.float64], node: Rope) -> NDArray[np.float64]:
    """The mean of heads [n_heads, head_dim] turned to each position: slow pairs keep their numbers, quick ones none."""
    frequencies = node.rotation.frequencies
    mean = node.rotation.magnitude * _mean_turns(frequencies)
    n_pairs = len(frequencies)
    if node.rotation.interleaved:
        a, b = slice(0, 2 * n_pairs, 2), slice(1, 2 * n_pairs, 2)
    else:
        a, b = slice(0, n_pairs), slice(n_pairs, 2 * n_pairs)
    pairs = (heads[:, a] + 1j * heads[:, b]) * mean
    result = heads.copy()
    result[:, a], result[:, b] = pairs.real, pairs.imag
    return result


def _mean_turns(frequencies: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The mean of exp(i * position * frequency) over N_POSITIONS positions: a geometric series."""
    turns = np.exp(1j * frequencies)
    far = np.abs(turns - 1) > 1e-9
    series = (np.exp(1j * N_POSITIONS * frequencies) - 1) / np.where(far, turns - 1, 1)
    return np.where(far, series / N_POSITIONS, 1)
