"""Attention of one or a few tokens over a deep cache, by its type: CPU time of a thread for as many layers as memory
must give anew.

    python tools/bench_attention.py [--depth 4096] [--types f16,q8_0,q4_0] [-r 6]

The time of a thread hardly depends on what else the machine does; types take turns, and the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from edgellm.kernels import records
from edgellm.kernels.isa import choose
from edgellm.kernels.kv_types import CACHE_TYPES, CacheType, ChannelKeys, IntegerKV
from edgellm.kernels.records import KV_BLOCK, SPAN_TOKENS
from edgellm.kernels.registry import find
from edgellm.kernels.store import KernelStore

# head_dim, key-value heads, query heads of each, tokens at once, layers
SHAPES = {
    "SmolLM2-135M": (64, 3, 3, 1, 30),
    "the same, 8 tokens": (64, 3, 3, 8, 30),
    "Gemma 3 270M, a global layer": (256, 1, 4, 1, 18),
    "Qwen2.5-1.5B": (128, 2, 6, 1, 28),
}


class Work:
    """A pass of attention over all layers."""

    def __init__(self, store: KernelStore, kind: CacheType, shape: tuple[int, ...], depth: int) -> None:
        head_dim, n_kv_heads, group, n_tokens, n_layers = shape
        kernel = find("attention", kind)
        store.load([kernel])
        self._function = store.function(kernel)
        n_blocks, block_bytes = depth // KV_BLOCK, kind.block_bytes(n_kv_heads, head_dim, head_dim)
        self._caches = [_filled(kind, n_blocks, block_bytes, n_kv_heads, head_dim, i) for i in range(n_layers)]
        table, own = np.arange(n_blocks, dtype=np.int32), np.zeros(n_blocks, np.int32)
        recent = kind.recent or kind
        recent_bytes = recent.block_bytes(n_kv_heads, head_dim, head_dim)
        q = np.random.default_rng(0).standard_normal((n_tokens, n_kv_heads * group * head_dim)).astype(np.float32)
        begins = range(0, depth, SPAN_TOKENS)
        tasks = records.ATTENTION_TASK.new(len(begins))
        for i, begin in enumerate(begins):
            end = min(begin + SPAN_TOKENS, depth)
            tasks[i] = (0, n_tokens, depth - n_tokens, begin, end, table.ctypes.data, own.ctypes.data, i * n_tokens)
        partial = np.zeros(len(begins) * n_tokens * n_kv_heads * group * (head_dim + 2), np.float32)
        scratch = np.zeros(records.attention_scratch_bytes(n_tokens * group, head_dim, head_dim), np.uint8)
        self._n_chunks = len(begins) * n_kv_heads
        count = np.array([self._n_chunks])
        fields = {
            "q": q, "tasks": tasks, "partial": partial, "scratch": scratch, "chunk_count": count, "n_threads": 1,
            "chunk_heads": 1,
            "q_stride": q.shape[1], "n_kv_heads": n_kv_heads, "group": group, "key_dim": head_dim,
            "value_dim": head_dim, "scale": head_dim**-0.5, "window": 1 << 40, "block_bytes": block_bytes,
            "key_bytes": kind.keys.head_bytes(head_dim), "value_bytes": kind.values.head_bytes(head_dim),
            "scratch_bytes": scratch.nbytes, "recent": _filled(recent, 1, recent_bytes, n_kv_heads, head_dim, 0),
            "recent_block_bytes": recent_bytes, "recent_key_bytes": recent.keys.head_bytes(head_dim),
            "recent_value_bytes": recent.values.head_bytes(head_dim),
        }  # fmt: skip
        self._held = (table, own, fields)
        self._records = [_record(fields | {"cache": cache}) for cache in self._caches]

    def seconds(self) -> float:
        started = time.thread_time()
        for record in self._records:
            for chunk in range(self._n_chunks):
                self._function(record.ctypes.data, chunk, 0)
        return time.thread_time() - started


def _filled(kind: CacheType, n_blocks: int, block_bytes: int, n_kv_heads: int, head_dim: int, seed: int) -> np.ndarray:
    """A cache of numbers that are neither large nor so small that they are slow."""
    cache = np.random.default_rng(seed).integers(0, 60, (n_blocks, block_bytes), dtype=np.uint8)
    n_key_bytes = n_kv_heads * kind.keys.head_bytes(head_dim)
    for part, half in zip(kind, (cache[:, :n_key_bytes], cache[:, n_key_bytes:]), strict=True):
        if isinstance(part, IntegerKV | ChannelKeys):
            heads = half.reshape(n_blocks, n_kv_heads, -1)
            heads[..., KV_BLOCK * head_dim * part.number_bits // 8 :].view(np.float16)[...] = 0.01
    return cache


def _record(fields: dict[str, Any]) -> np.ndarray:
    record = records.ATTENTION.new()
    for name, content in fields.items():
        record[name] = content.ctypes.data if isinstance(content, np.ndarray) else content
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    parser.add_argument("-r", "--rounds", type=int, default=6)
    args = parser.parse_args()
    store = KernelStore(choose())
    for name, shape in SHAPES.items():
        work = {kind: Work(store, CACHE_TYPES[kind], shape, args.depth) for kind in args.types.split(",")}
        rounds = [{kind: one.seconds() for kind, one in work.items()} for _ in range(args.rounds)]
        best = {kind: min(found[kind] for found in rounds) for kind in work}
        first = next(iter(best.values()))
        print(f"{name:30}", ", ".join(f"{k} {1e3 * t:.2f} ms ({first / t:.2f} x)" for k, t in best.items()), flush=True)


if __name__ == "__main__":
    main()
