"""Finding the tokens that stand in a text as they are, such as `<|im_end|>`, before any merging.

Follows the added tokens of `tokenizers`: leftmost first, longest among those that start there, and the flags
`lstrip`, `rstrip` and `single_word` of each.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Set
from functools import cached_property

from edgellm.text.common import WHITE, n_common
from edgellm.text.provenance import cut, has_provenance, own_of

_WINDOW = 32  # characters of a text that are compared at first
_MOST_CHARS = 64  # distinct characters beyond ASCII that are told apart where a token may start
_BEYOND_ASCII = "\x80-\U0010ffff"

_SPACES = re.compile(f"[{WHITE}]*")
# Letters of words as Unicode has them, and so `tokenizers`; Python's own differ in a few.
_WORD = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]"


class SpecialTokens:
    """Cuts a text at the occurrences of some tokens.

    ids:           the id of each token; none is empty.
    lstrip, rstrip:  ids of tokens that swallow the white space before or behind them.
    single_word:   ids of tokens that are none inside of a word.
    control:       ids of tokens that, in a prompt which a chat template made, only the template itself can write.

    There can be millions of tokens, of any length. They are kept in one sorted list, where a token that begins a text
    is found by bisection, and a small regular expression finds the places where that may be worth it.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        lstrip: Set[int] = frozenset(),
        rstrip: Set[int] = frozenset(),
        single_word: Set[int] = frozenset(),
        control: Set[int] = frozenset(),
    ) -> None:
        self._tokens = sorted(ids)
        self._ids = list(map(ids.__getitem__, self._tokens))
        self._start = _start_of(self._tokens)
        self._short = {token: index for index, token in enumerate(self._tokens) if len(token) <= 2}
        self._threes = {token[:3] for token in self._tokens if len(token) > 2}
        self._lstrip, self._rstrip, self._single_word = lstrip, rstrip, single_word
        self._control = control

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def split(self, text: str, plain: Collection[int] = ()) -> Iterator[str | int]:
        """The text in order, as stretches of plain text (never empty) and ids of the tokens between them.

        plain:  ids of tokens that are only text where they occur, with all that they hold.

        Stretches of a text with provenance have theirs.
        """
        chars = str(text)  # searched faster than a text with provenance
        own = own_of(text) if has_provenance(text) else None
        done = seen = 0
        for match in () if self._start is None else self._start.finditer(chars):
            start = match.start()
            if start < seen:
                continue  # in the last token, none begins across another
            index = self._longest_at(chars, start)
            if own is not None and index >= 0:
                index = self._longest_allowed(index, chars, own, start)
            if index < 0:
                continue
            token_id = self._ids[index]
            end = seen = start + len(self._tokens[index])
            counts = own if token_id in self._control else None  # no letter of the chat's undoes the template's token
            if token_id in plain or (token_id in self._single_word and _inside_word(chars, start, end, counts)):
                continue
            if token_id in self._lstrip:
                start = max(_before_spaces(chars, start), done)
            if token_id in self._rstrip:
                end = _behind_spaces(chars, end)
            if done < start:
                yield chars[done:start] if own is None else cut(text, done, start)
            if start < end:  # else white space that the token before has swallowed
                yield token_id
            done = end
        if done < len(text):
            yield cut(text, done, len(text))

    def _longest_at(self, text: str, at: int) -> int:
        """The longest token that the text goes on with, as its place in the sorted list; -1 if there is none.

        Of a text in sorted order, its beginnings stand before it, and so does all that begins like the longest of
        them: the last token before it is either that one or goes on from it.
        """
        if text[at : at + 3] not in self._threes:  # as at most line breaks
            index = self._short.get(text[at : at + 2], -1)
            return self._short.get(text[at], -1) if index < 0 else index
        tokens = self._tokens
        size = _WINDOW
        while True:
            ahead = text[at : at + size]
            index = bisect_right(tokens, ahead) - 1
            following = index + 1
            if len(ahead) < size or following == len(tokens) or not tokens[following].startswith(ahead):
                break
            size *= 4  # a token reaches further than what was looked at
        if index < 0 or ahead.startswith(tokens[index]):
            return index
        return self._beginning(index, n_common(ahead, tokens[index]))

    def _longest_allowed(self, index: int, text: str, own: bytes, at: int) -> int:
        """That token, or the longest that it begins with, which may stand there by the text's provenance; -1 for none.

        Over characters of the chat's there is no control token, and no other that would take characters from a
        control token of the template's.
        """
        if own.find(0, at, at + len(self._tokens[index])) < 0:
            return index
        if (control := self._written_control(index, own, at)) >= 0:
            return control
        index = self._ordinary[index]
        inner = at
        while index >= 0 and (inner := own.find(1, inner + 1, at + len(self._tokens[index]))) >= 0:
            other = self._longest_at(text, inner)
            if other >= 0 and self._written_control(other, own, inner) >= 0:
                return self._ordinary[self._beginning(index, inner - at)]
        return index

    def _written_control(self, index: int, own: bytes, at: int) -> int:
        """Of a token and all that it begins with, the longest that the template wrote, if it is control; or -1."""
        n = len(self._tokens[index])
        chats = own.find(0, at, at + n)
        index = self._beginning(index, n if chats < 0 else chats - at)
        return index if index >= 0 and self._ids[index] in self._control else -1

    @cached_property
    def _ordinary(self) -> list[int]:
        """For each token itself, or the longest that it begins with, which is no control token; -1 for none.

        One entry more, so that none (-1) has none.
        """
        found = [-1] * (len(self._tokens) + 1)
        for index, (token_id, shorter) in enumerate(zip(self._ids, self._shorter[0], strict=True)):
            found[index] = found[shorter] if token_id in self._control else index
        return found

    def _beginning(self, index: int, n: int) -> int:
        """The longest token that is the first n characters of a token, or fewer of them; -1 if there is none."""
        shorter, far = self._shorter
        while index >= 0 and len(self._tokens[index]) > n:
            jump = far[index]
            index = jump if jump >= 0 and len(self._tokens[jump]) > n else shorter[index]
        return index

    @cached_property
    def _shorter(self) -> tuple[list[int], list[int]]:
        """For each token the next shorter one that it begins with, and one far along that way; -1 for none.

        The second is a jump pointer (Myers 1983, "An applicative random-access stack"): with both, the way to any
        shorter token takes a number of steps that is logarithmic in its length.
        """
        tokens = self._tokens
        n = len(tokens)
        shorter, far = [-1] * n, [-1] * n
        if not any(map(str.startswith, tokens[1:], tokens)):
            return shorter, far
        depth = [1] * n
        way: list[int] = []  # the tokens that the last one begins with, shortest first, and itself
        for index, token in enumerate(tokens):
            while way and not token.startswith(tokens[way[-1]]):
                way.pop()
            if way:
                parent = shorter[index] = way[-1]
                depth[index] = depth[parent] + 1
                jump = far[parent]
                if jump >= 0 and far[jump] >= 0 and depth[parent] - depth[jump] == depth[jump] - depth[far[jump]]:
                    far[index] = far[jump]
                else:
                    far[index] = parent
            way.append(index)
        return shorter, far


def _start_of(tokens: list[str]) -> re.Pattern[str] | None:
    """What finds the places where a token may start, by its first two characters; it takes the first one alone.

    Few characters beyond ASCII are told apart; of many, any is taken for one.
    """
    beyond = {char for token in tokens if not token.isascii() for char in token[:2] if not char.isascii()}
    told_apart = beyond if len(beyond) <= _MOST_CHARS else set()
    seconds: dict[str, set[str]] = {}
    for start in {token[:2] for token in tokens}:
        first, *second = (re.escape(c) if c.isascii() or c in told_apart else _BEYOND_ASCII for c in start)
        seconds.setdefault(first, set()).add(second[0] if second else "")
    if not seconds:
        return None
    return re.compile("|".join(
        f"[{first}]" if "" in rest else f"[{first}](?=[{''.join(sorted(rest))}])"
        for first, rest in sorted(seconds.items())
    ), re.DOTALL)  # fmt: skip


def _before_spaces(text: str, end: int) -> int:
    """Where the white space that ends at `end` starts."""
    while end and _SPACES.fullmatch(text, end - 1, end):
        end -= 1
    return end


def _behind_spaces(text: str, start: int) -> int:
    """Where the white space that starts at `start` ends."""
    match = _SPACES.match(text, start)
    return match.end() if match else start


def _inside_word(text: str, start: int, end: int, counts: bytes | None) -> bool:
    """Whether a letter stands on one side. counts: not 0 for each character that matters; None for all."""
    sides = [at for at in (start - 1, end) if 0 <= at < len(text) and (counts is None or counts[at])]
    return any(_is_letter(text[at]) for at in sides)


def _is_letter(char: str) -> bool:
    if char.isascii():
        return char.isalnum() or char == "_"
    import regex

    return regex.match(_WORD, char) is not None
