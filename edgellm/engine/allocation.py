"""How much memory a model's KV cache gets."""

from __future__ import annotations

from contextlib import suppress

from edgellm.engine.block_table import blocks_for
from edgellm.engine.kv_cache import KVCache, blocks_of_batch, blocks_of_text
from edgellm.engine.states import StateShape
from edgellm.errors import MemoryLimitError
from edgellm.graph.cache_memory import CacheLayer
from edgellm.machine import available_memory, total_memory

MOST_OF_MEMORY = 0.9  # for one context: more would leave nothing for the weights
DEFAULT_CONTEXTS = 8  # full ones that the cache has room for
DEFAULT_OF_AVAILABLE = 0.25  # of the memory that is free now, at most


def allocate_cache(
    layers: list[CacheLayer], state_bytes: list[int], n_ctx: int, n_batch: int, cache_bytes: int | None
) -> KVCache:
    """A cache of so many bytes; by default, of a part of the memory that is there, for several full contexts at most.

    state_bytes:  of each recurrent layer, for one text. The system gives the memory as it is first used.

    Raises MemoryLimitError when one context of n_ctx tokens does not fit.
    """
    blocks = {layer.window: blocks_of_text(layer.window, n_ctx, n_batch) for layer in layers}
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
        f"a context of {n_ctx} tokens needs a KV cache of {(cache_bytes or one) / 1e9:.1f} GB; this process may have "
        f"{memory / 1e9:.1f} GB, and not all of it may be free: choose a smaller n_ctx",
        parameter="n_ctx",
    )
