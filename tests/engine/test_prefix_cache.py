"""The prefix cache: the longest beginning is found, the oldest text gives way."""

from __future__ import annotations

from edgellm.engine.kv_cache import KVCache
from edgellm.engine.prefix_cache import MOST_KEPT, PrefixCache
from edgellm.kernels.records import KV_BLOCK

from .test_kv_cache import grow, new_cache, written


def kept(prefixes: PrefixCache, cache: KVCache, n: int, first: int = 0) -> None:
    text = cache.sequence()
    grow(text, n, first)
    prefixes.keep(text)


def test_the_oldest_gives_way_first() -> None:
    cache, prefixes = new_cache(6), PrefixCache()
    for first in (1, 2, 3):
        kept(prefixes, cache, 2 * KV_BLOCK, first)
    assert cache.n_free_blocks == 0 and prefixes.evict()
    assert prefixes.longest([1, 2]) is None
    assert len(prefixes.longest([2, 3]) or []) == 2


def test_no_more_are_kept_than_agreed() -> None:
    cache, prefixes = new_cache(50), PrefixCache()
    for first in range(MOST_KEPT + 5):
        kept(prefixes, cache, 10, first)
    prefixes.longest([250])
    assert cache.n_blocks - cache.n_free_blocks == MOST_KEPT
    prefixes.clear()
    assert cache.n_free_blocks == cache.n_blocks and not prefixes.evict()


def test_the_longest_beginning_is_found_among_kept_and_live_texts() -> None:
    cache, prefixes = new_cache(), PrefixCache()
    for n in (5, 70, 40):
        kept(prefixes, cache, n)
    ids = [i % 251 for i in range(60)]
    assert prefixes.longest(ids).tokens == ids  # a fork of the 70, which stays
    assert prefixes.longest(ids).tokens == ids
    whole = prefixes.longest([i % 251 for i in range(100)])
    assert len(whole) == 70  # the sequence itself, which now is the caller's
    assert len(prefixes.longest(ids)) == 40
    assert prefixes.longest(ids, live=[whole]).tokens == ids
    assert prefixes.longest([7, *ids]) is None


def test_the_only_text_of_a_full_cache_can_go_on_from_its_middle() -> None:
    cache, prefixes = new_cache(1), PrefixCache()
    kept(prefixes, cache, 50)
    again = prefixes.longest(list(range(30)))
    assert prefixes.evict()  # now the block is not shared
    grow(again, 34, first=9)
    assert written(again) == again.tokens
