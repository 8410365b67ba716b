r"""One form for regular expressions that cut text alike, so that two of them can be compared.

The same rule is written in many ways: `\p{L}` or `[\p{L}]`, `\n` or a line break, `[!-/]` or its members one by
one. Classes become sets here; everything else must be written alike.
"""

from __future__ import annotations

import re

# One item of a pattern outside of classes, longest first.
_ITEM = re.compile(
    r"(?P<group>\(\?(?:[a-z]*:|[=!]|<[=!])|[()|])|(?P<repeat>(?:[*+?]|\{\d*,?\d*\})[+?]?)|(?P<class>\[)"
    r"|(?P<kind>\\[pP]\{\w+\}|\\[sSdDwW])|(?P<char>\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\.|.)",
    re.DOTALL,
)
_MEMBER = re.compile(r"\\[pP]\{\w+\}|\\[sSdDwW]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\.|.", re.DOTALL)
_CONTROL = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}
_ANY_KIND = re.compile(r"\\(?:[pP]\{|[sSdDwW])")
_NO_CHAR = re.compile(r"[A-Za-z0-9]")  # what a backslash makes of these is not known here

_LONGEST = 5000  # characters that are looked at; no rule has a tenth

Form = tuple[object, ...]


def form_of(pattern: str) -> Form:
    """The pattern in the form that is compared; one that cannot be read is only like itself."""
    try:
        return tuple(_items(pattern)) if len(pattern) <= _LONGEST else ("as written", pattern)
    except ValueError:
        return ("as written", pattern)


def _items(pattern: str) -> list[object]:
    items: list[object] = []
    at = 0
    while at < len(pattern):
        match = _ITEM.match(pattern, at)
        if match is None:
            raise ValueError
        at = match.end()
        if match["class"]:
            members, at = _class(pattern, at)
            items.append(members)
        elif match["kind"]:
            items.append((False, frozenset([match[0]]), ()))
        elif match["char"]:
            code = ord(_char(match[0]))
            items.append((False, frozenset(), ((code, code),)) if match[0] != "." else ".")
        else:
            items.append("(" if match[0] == "(?:" else match[0])  # what a group remembers does not matter here
    return items


def _class(pattern: str, at: int) -> tuple[object, int]:
    """The members of the class that begins at `at`, and where it ends: (negated, kinds, ranges of characters)."""
    negated = pattern.startswith("^", at)
    at += negated
    kinds: set[str] = set()
    ranges: list[tuple[int, int]] = []
    start = at
    while not pattern.startswith("]", at) or at == start:
        match = _MEMBER.match(pattern, at)
        if match is None or match[0] == "[" or pattern.startswith("&&", at):
            raise ValueError
        at = match.end()
        if _ANY_KIND.match(match[0]):
            kinds.add(match[0])
            continue
        low = high = ord(_char(match[0]))
        if pattern.startswith("-", at) and not pattern.startswith("-]", at):
            match = _MEMBER.match(pattern, at + 1)
            if match is None or _ANY_KIND.match(match[0]):
                raise ValueError
            at, high = match.end(), ord(_char(match[0]))
        ranges.append((low, high))
    return (negated, frozenset(kinds), _joined(ranges)), at + 1


def _char(written: str) -> str:
    if len(written) == 1:
        return written
    if len(written) > 2:
        return chr(int(written[2:], 16))
    if written[1] in _CONTROL:
        return _CONTROL[written[1]]
    if _NO_CHAR.match(written[1]):
        raise ValueError
    return written[1]


def _joined(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The ranges in order, with those that touch put together."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return tuple(joined)
