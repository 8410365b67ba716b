"""How much memory a model's KV cache gets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from edgellm.engine.block_table import KEPT_BEHIND, blocks_for
from edgellm.engine.kv_cache import KVCache
from edgellm.engine.states import StateShape
from edgellm.errors import MemoryLimitError, size_text
from edgellm.graph.cache_memory import CacheLayer
from edgellm.kernels.kv_types import RECENT
from edgellm.machine import available_memory, total_memory

MOST_OF_MEMORY = 0.9  # for one context: more would leave nothing for the weights
DEFAULT_CONTEXTS = 8  # full ones that the cache has room for
DEFAULT_OF_AVAILABLE = 0.25  # of the memory that is free now, at most
RECENT_BLOCKS = 3  # of a text, that are not full: the last one, the one before it for who takes back some, and the next


def allocate_cache(
    layers: list[CacheLayer], state_bytes: list[int], n_ctx: int, n_batch: int, cache_bytes: int | None
) -> KVCache:
    """A cache of so many bytes; by default, of a part of the memory that is there, for several full contexts at most.

    state_bytes:  of each recurrent layer, for one text. The system gives the memory as it is first used.

    Raises MemoryLimitError when one context of n_ctx tokens does not fit.
    """
    windows = {layer.window for layer in layers} or {None}  # a model of recurrent layers alone counts its tokens still
    blocks = {window: blocks_of_text(window, n_ctx, n_batch) for window in windows}
    beside = {window: blocks_of_batch(window, n_batch) for window in blocks}
    states = StateShape.beside(state_bytes, sum(layer.block_bytes for layer in layers))
    n_slots = states.slots_for(blocks_for(n_ctx))
    one = sum((blocks[layer.window] + beside[layer.window]) * layer.block_bytes for layer in layers)
    one += n_slots * states.slot_bytes
    if cache_bytes is not None and cache_bytes < one:
        raise MemoryLimitError(
            f"cache_bytes is {cache_bytes}, and a context of {n_ctx} tokens needs {one}; "
            "choose a larger cache or a smaller n_ctx",
            parameter="cache_bytes",
        )
    usual = max(one, min(DEFAULT_CONTEXTS * one, int(DEFAULT_OF_AVAILABLE * available_memory())))
    memory = total_memory()
    for n_bytes in (cache_bytes,) if cache_bytes is not None else (usual, one):
        if n_bytes <= MOST_OF_MEMORY * memory:
            with suppress(MemoryError):  # there may be less than the machine has
                of_window = {window: n * n_bytes // one + beside[window] for window, n in blocks.items()}
                return KVCache(layers, of_window, states, n_slots * n_bytes // one)
    raise MemoryLimitError(
        f"a context of {n_ctx} tokens needs a KV cache of {size_text(cache_bytes or one)}; this process may have "
        f"{size_text(memory)}, and not all of it may be free: choose a smaller n_ctx",
        parameter="n_ctx",
    )


def blocks_of_text(window: int | None, n_ctx: int, n_batch: int) -> int:
    """Blocks that a pool should have for every text of n_ctx tokens that the cache has room for.

    A window slides over no more than a batch at a time. The pool has twice what it takes for that: texts that are
    shorter than the window are more than those of n_ctx tokens. So it is with blocks that are not full.
    """
    whole = blocks_for(n_ctx) + 1
    if window == RECENT:
        return min(whole, 2 * RECENT_BLOCKS)
    return whole if window is None else min(whole, 2 * (blocks_for(window + KEPT_BEHIND + n_batch) + 1))


def blocks_of_batch(window: int | None, n_batch: int) -> int:
    """Blocks that a pool should have beside, for the texts of one batch."""
    return blocks_for(n_batch) if window == RECENT else 0


def bytes_of_texts(layers: Sequence[tuple[CacheLayer, int]], n_texts: int, n_tokens: int, n_batch: int) -> int:
    """What so many texts of n_tokens each take at most at a time, of layers with so many blocks each.

    What a window leaves behind is kept for other texts while there are free blocks, so it counts. Blocks that are full
    are kept in one place only.
    """
    whole = n_texts * blocks_for(n_tokens)
    recent = min(whole, n_texts * RECENT_BLOCKS + blocks_for(n_batch))
    taken = ((layer, min(n_blocks, recent if layer.window == RECENT else whole)) for layer, n_blocks in layers)
    return sum(n_blocks * layer.block_bytes for layer, n_blocks in taken)
