"""Finding the tokens that stand in a text as they are, such as `<|im_end|>`, before any merging."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set


class SpecialTokens:
    """Cuts a text at the occurrences of some tokens: leftmost first, longest among those that start there.

    There can be thousands of them, too many for one regular expression. So a small one finds the places
    where a token may start, by its first two characters, and a dictionary decides.

    `strip_right` names tokens that swallow the white space behind them.
    """

    def __init__(self, ids: Mapping[str, int], strip_right: Set[int] = frozenset()) -> None:
        self._ids = ids
        self._strip_right = strip_right
        lengths: dict[str, set[int]] = {}
        for token in ids:
            lengths.setdefault(token[:2], set()).add(len(token))
        for start in lengths:
            if start[:1] in lengths:
                lengths[start].add(1)
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        starts = sorted(lengths, key=len, reverse=True)
        self._start = re.compile("|".join(map(re.escape, starts))) if starts else None

    def split(self, text: str, may_be: Callable[[int, int, int], bool] | None = None) -> Iterator[str | int]:
        """The text in order, as stretches of plain text (never empty) and ids of the tokens between them.

        may_be(token_id, start, end):  whether these characters may be that token; without it, all may.
        """
        done = at = 0
        plain = str(text)  # searched faster than a text with provenance, of which the stretches are cut
        while self._start and (match := self._start.search(plain, at)):
            at = match.start()
            token_id, end = self._longest_at(plain, at, self._lengths[match[0]], may_be)
            if token_id is None:
                at += 1
                continue
            if done < at:
                yield text[done:at]
            yield token_id
            if token_id in self._strip_right:
                while end < len(text) and text[end].isspace():
                    end += 1
            done = at = end
        if done < len(text):
            yield text[done:]

    def _longest_at(
        self, text: str, at: int, lengths: list[int], may_be: Callable[[int, int, int], bool] | None
    ) -> tuple[int | None, int]:
        for length in lengths:
            token_id = self._ids.get(text[at : at + length])
            if token_id is not None and (may_be is None or may_be(token_id, at, at + length)):
                return token_id, at + length
        return None, at
