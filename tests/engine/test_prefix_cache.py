"""The prefix cache: the longest beginning is found, what was used least recently gives way."""

from __future__ import annotations

from edgellm.engine.kv_cache import KVCache
from edgellm.engine.prefix_cache import PrefixCache
from edgellm.kernels.records import KV_BLOCK

from .test_kv_cache import grow, new_cache, written


def kept(prefixes: PrefixCache, cache: KVCache, n: int, first: int = 0) -> None:
    text = cache.sequence()
    grow(text, n, first)
    prefixes.keep(text)


def ids(n: int, first: int = 0) -> list[int]:
    return [(first + i) % 251 for i in range(n)]


def n_known(prefixes: PrefixCache, n: int, first: int = 0) -> int:
    found = prefixes.longest(ids(n, first))
    n_found = len(found)
    found.release()
    return n_found


def test_what_was_used_least_recently_gives_way_first() -> None:
    cache = new_cache(6)
    prefixes = PrefixCache(cache)
    for first in (1, 2, 3):
        kept(prefixes, cache, 2 * KV_BLOCK, first)
    assert n_known(prefixes, 200, 1) == 2 * KV_BLOCK  # which uses it
    assert cache.n_free_blocks == 6
    other = cache.sequence()
    grow(other, 2 * KV_BLOCK, 100)
    assert [n_known(prefixes, 200, first) for first in (1, 2, 3)] == [128, 0, 128]


def test_the_end_of_a_text_gives_way_before_its_beginning() -> None:
    cache = new_cache(6)
    prefixes = PrefixCache(cache)
    kept(prefixes, cache, 5 * KV_BLOCK + 5)
    prefixes.release_waiting()
    for n, known in ((1, 5), (2, 4), (3, 3)):  # of six blocks
        other = cache.sequence()
        grow(other, n * KV_BLOCK, 100)
        assert n_known(prefixes, 400) == known * KV_BLOCK
        other.release()


def test_any_number_of_texts_is_known() -> None:
    cache = new_cache(300)
    prefixes = PrefixCache(cache)
    for first in range(200):
        kept(prefixes, cache, 10 + first % 50, first)
    assert [n_known(prefixes, 100, first) for first in range(200)] == [10 + first % 50 for first in range(200)]
    prefixes.clear()
    assert n_known(prefixes, 100, 7) == 0 and cache.n_free_blocks == cache.n_blocks


def test_the_longest_beginning_is_found_among_kept_and_live_texts() -> None:
    cache = new_cache()
    prefixes = PrefixCache(cache)
    for n in (5, 70, 40):
        kept(prefixes, cache, n)
    assert n_known(prefixes, 60) == 60  # of the 70
    whole = prefixes.longest(ids(100))
    assert len(whole) == 70
    grow(whole, 20)
    assert len(prefixes.longest(ids(100), live=[whole])) == 90
    assert n_known(prefixes, 60, 7) == 0


def test_who_writes_on_from_the_middle_keeps_what_was_known() -> None:
    cache = new_cache()
    prefixes = PrefixCache(cache)
    text = cache.sequence()
    grow(text, 100)
    text.remember(whole_blocks=False)
    text.trim(30)
    grow(text, 40, first=9)
    assert n_known(prefixes, 100) == 100  # there was room for both
    text.release()


def test_where_there_is_no_room_for_both_the_new_is_known() -> None:
    cache = new_cache(1)
    prefixes = PrefixCache(cache)
    text = cache.sequence()
    grow(text, 60)
    text.remember(whole_blocks=False)
    text.trim(30)
    grow(text, 20, first=9)
    text.remember(whole_blocks=False)
    assert n_known(prefixes, 60) == 30
    assert len(prefixes.longest(text.tokens)) == 50


def test_the_only_text_of_a_full_cache_can_go_on_from_its_middle() -> None:
    cache = new_cache(1)
    prefixes = PrefixCache(cache)
    kept(prefixes, cache, 50)
    again = prefixes.longest(ids(30))
    grow(again, 34, first=9)
    assert written(again) == again.tokens
