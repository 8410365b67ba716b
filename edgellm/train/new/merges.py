"""Learning the merges of byte-level BPE (Sennrich et al., 2016; Radford et al., 2019) from the words of a text.

The pair of neighbours that stands most often in all words is joined into a new token, again and again. Counts are kept
up to date: a merge looks only at the words that have its pair. Of pairs that stand equally often, the one whose halves
were made first is joined; that is the order of `tokenizers`, so that the merges are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise, starmap

from edgellm.text.bpe import CHAR_OF_BYTE
from edgellm.text.pretokenizers import PreTokenizer

ALPHABET = sorted(CHAR_OF_BYTE)  # the tokens that there are before any merge, in their order
LEAST_COUNT = 2  # of a pair: what stands once teaches nothing
LONGEST_WORD = 256  # bytes that are looked at together
_SYMBOL = {char: n for n, char in enumerate(ALPHABET)}
_OF_BYTE = [_SYMBOL[char] for char in CHAR_OF_BYTE]

Merge = tuple[str, str]


def count_words(texts: Iterable[str], rule: PreTokenizer) -> Counter[str]:
    """How often each word stands in some texts, cut as `rule` says."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(rule.split(rule.normalize(text)))
    return counts


def learn_merges(
    counts: Mapping[str, int], n_tokens: int, progress: Callable[[int, int], None] | None = None
) -> tuple[list[str], list[Merge]]:
    """Tokens, the 256 bytes first, and the merges that make them, best first; both in GPT-2's spelling of bytes.

    counts:    of words.
    n_tokens:  to be made, the bytes among them; fewer are when no pair stands LEAST_COUNT times any more.
    progress:  (tokens done, tokens in all).

    A word of more than LONGEST_WORD bytes is counted in pieces: a text without any space is no word.
    """
    words, times = _words(counts)
    pairs: Counter[int] = Counter()
    places: dict[int, set[int]] = {}  # the words that have, or had, a pair
    for n, (word, count) in enumerate(zip(words, times, strict=True)):
        for pair in starmap(_pair, pairwise(word)):
            pairs[pair] += count
            places.setdefault(pair, set()).add(n)
    waiting = [(-count, pair) for pair, count in pairs.items()]  # a count may have become smaller since
    heapify(waiting)
    tokens = list(ALPHABET)
    merges: dict[Merge, None] = {}
    ids = {token: n for n, token in enumerate(tokens)}
    while len(tokens) < n_tokens and waiting:
        count, pair = heappop(waiting)
        now = pairs[pair]
        if now < LEAST_COUNT:
            continue
        if -count != now:
            heappush(waiting, (-now, pair))
            continue
        left, right = pair >> 32, pair & 0xFFFFFFFF
        made = tokens[left] + tokens[right]
        merges.setdefault((tokens[left], tokens[right]))
        joined = ids.setdefault(made, len(tokens))
        if joined == len(tokens):  # else another merge makes it too
            tokens.append(made)
        fresh: set[int] = set()
        for n in places.pop(pair):
            for changed, by in _join(words[n], left, right, joined):
                pairs[changed] += by * times[n]
                if by > 0:
                    places.setdefault(changed, set()).add(n)
                    fresh.add(changed)
        for new in fresh:
            heappush(waiting, (-pairs[new], new))
        if progress:
            progress(len(tokens), n_tokens)
    return tokens, list(merges)


def _words(counts: Mapping[str, int]) -> tuple[list[list[int]], list[int]]:
    """Each word, or piece of one, as symbols, and how often it stands."""
    pieces: Counter[bytes] = Counter()
    for word, count in counts.items():
        raw = word.encode()
        for start in range(0, len(raw), LONGEST_WORD):
            pieces[raw[start : start + LONGEST_WORD]] += count
    return [[_OF_BYTE[byte] for byte in piece] for piece in pieces], list(pieces.values())


def _pair(left: int, right: int) -> int:
    """A pair as one number; numbers are in the order of the left halves, and then of the right ones."""
    return left << 32 | right


def _join(word: list[int], left: int, right: int, joined: int) -> list[tuple[int, int]]:
    """Join `left right` wherever it stands in a word, from the left; tells which pairs there are more or fewer of."""
    changes: list[tuple[int, int]] = []
    pair = _pair(left, right)
    at = -1
    while left in word[at + 1 : -1]:
        at = word.index(left, at + 1)
        if word[at + 1] != right:
            continue
        word[at : at + 2] = [joined]
        changes.append((pair, -1))
        if at > 0:
            changes += [(_pair(word[at - 1], left), -1), (_pair(word[at - 1], joined), 1)]
        if at + 1 < len(word):
            changes += [(_pair(right, word[at + 1]), -1), (_pair(joined, word[at + 1]), 1)]
    return changes
