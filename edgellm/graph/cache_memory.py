"""Where the blocks of the KV cache lie in memory.

Layers that keep as many tokens lie together: block by block, and within a block layer by layer. So a text takes few
pages of memory, and large ones where the system has them (`transparent_hugepage` on Linux). A core knows the
places of so many pages at a time; where it has to look a place up, it waits as long as for the memory itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from edgellm.graph.ops import Table
from edgellm.kernels.kv_types import F16_CACHE, CacheType
from edgellm.machine.large_pages import on_large_pages


def cache_table(layer: int) -> Table:
    """Where the first block of a layer is."""
    return Table(f"cache {layer}")


def block_step(layer: int) -> Table:
    """From one block of a layer to its next, in bytes."""
    return Table(f"block step {layer}")


class CacheLayer(NamedTuple):
    """The keys and values that a layer keeps for a token; window: of how many, None is of all."""

    n_kv_heads: int
    key_dim: int
    value_dim: int
    kv_type: CacheType = F16_CACHE
    window: int | None = None

    @property
    def block_bytes(self) -> int:
        return self.kv_type.block_bytes(self.n_kv_heads, self.key_dim, self.value_dim)


class CacheMemory:
    """Memory for the blocks of all layers.

    n_blocks:   of layers, by their windows.
    of_window:  uint8 [n_blocks, bytes of all these layers]. of_layer: uint8 [n_blocks, block_bytes], a view of it.

    The system gives a page as it is first written.
    """

    def __init__(self, layers: Sequence[CacheLayer], n_blocks: Mapping[int | None, int]) -> None:
        self.of_window: dict[int | None, np.ndarray] = {}
        self.of_layer: list[np.ndarray] = []
        ends = dict.fromkeys(n_blocks, 0)
        for window, n in n_blocks.items():
            n_bytes = sum(layer.block_bytes for layer in layers if layer.window == window)
            self.of_window[window] = on_large_pages(n * n_bytes).reshape(n, n_bytes)
        for layer in layers:
            start = ends[layer.window]
            ends[layer.window] = end = start + layer.block_bytes
            self.of_layer.append(self.of_window[layer.window][:, start:end])

    def tables(self) -> dict[str, int]:
        """Where layers are, by the names that programs have for that."""
        addresses = {cache_table(i).name: memory.ctypes.data for i, memory in enumerate(self.of_layer)}
        return addresses | {block_step(i).name: memory.strides[0] for i, memory in enumerate(self.of_layer)}

    def clear(self) -> None:
        self.of_window.clear()
        self.of_layer.clear()
