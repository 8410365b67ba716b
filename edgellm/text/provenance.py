"""Texts that know which of their characters a chat template wrote itself.

A template mixes its own text with what people, models and tools have said. Only its own may name control tokens, so
the two are told apart while it is rendered: what the template's source spells out is a `Text`, and a plain `str` is
the chat's. The functions below do what Python's string operations do and say where each character of the result
comes from. Where that cannot be known, the result is the chat's.

The result of an operation is always Python's own; only `own`, which runs beside it, is worked out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex

MOST_PIECES = 200_000  # that a text is cut into while its provenance is followed


class Text(str):
    """A text, and for each of its characters one byte in `own`: 1 where a template wrote it, 0 where the chat did."""

    __slots__ = ("own",)
    own: bytes

    def __new__(cls, text: str, own: bytes | None = None) -> Text:
        self = super().__new__(cls, text)
        self.own = bytes(len(text)) if own is None else own
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        own = self.own[key]
        return traced(super().__getitem__(key), own if isinstance(own, bytes) else bytes([own]))

    def __iter__(self) -> Iterator[str]:
        for char, own in zip(super().__iter__(), self.own, strict=True):
            yield Text(char, b"\1") if own else char


def written(text: str) -> Text:
    """A text of the template itself."""
    return Text(text, b"\1" * len(text))


def own_of(text: str) -> bytes:
    return text.own if isinstance(text, Text) else bytes(len(text))


def traced(text: str, own: bytes) -> str:
    """A text with its provenance; plain when none of it is the template's, or when the two do not fit."""
    if 1 in own and len(own) == len(text):
        return Text(text, own)
    return text if type(text) is str else str(text)


def follows(values: Iterable[Any]) -> bool:
    """Whether there is provenance to follow: a Text, and nothing that escapes what it is joined with."""
    found = False
    for value in values:
        if hasattr(value, "__html__"):  # Jinja's Markup
            return False
        found = found or isinstance(value, Text)
    return found


# A prompt on its way to tokens. Each part of it stays a Text, though all of it may be the chat's.


def has_provenance(text: str) -> bool:
    return isinstance(text, Text)


def like(text: str, other: str, n_before: int = 0) -> str:
    """`other`, which is as long as `text`, with its provenance, behind n_before characters that nobody wrote."""
    return Text(other, b"\1" * n_before + text.own) if isinstance(text, Text) else other


def cut(text: str, start: int, end: int) -> str:
    """`text[start:end]`"""
    return Text(str(text)[start:end], text.own[start:end]) if isinstance(text, Text) else text[start:end]


def changed(text: str, change: Callable[[str], str]) -> str:
    """`change(text)`, of what the template and what the chat wrote apart, so that neither becomes the other's."""
    plain = str(text)
    if not isinstance(text, Text):
        return change(plain)
    if change(plain) == plain:
        return text
    runs = [(match[0][0], change(plain[match.start() : match.end()])) for match in _RUN.finditer(text.own)]
    return Text("".join(run for _, run in runs), b"".join(bytes([own]) * len(run) for own, run in runs))


_RUN = re.compile(b"\0+|\1+")


# Operators


def add(left: str, right: str) -> str:
    return traced(left + right, own_of(left) + own_of(right))


def repeat(text: str, times: int) -> str:
    return traced(text * times, own_of(text) * times)


def percent(form: str, values: Any) -> str:
    """`form % values`"""
    return _explained(form % values, _percent_pieces, form, values)


def format_text(result: str, form: str, args: Sequence[Any], names: Mapping[str, Any]) -> str:
    """`result`, which is `form.format(*args, **names)`, with its provenance."""
    return _explained(result, _format_pieces, form, args, names)


# Methods


def join(separator: str, values: Sequence[str]) -> str:
    return traced(str(separator).join(values), own_of(separator).join(map(own_of, values)))


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    result = str(text).replace(old, new, count)
    if not old or text.count(old) > MOST_PIECES:
        return result
    return traced(result, own_of(new).join(map(own_of, split(text, old, count))))


def split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    pieces = str(text).split(sep, maxsplit)
    return _located(text, pieces) if sep is None else _laid(text, pieces, len(sep))


def rsplit(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    pieces = str(text).rsplit(sep, maxsplit)
    return _located(text, pieces) if sep is None else _laid(text, pieces, len(sep))


def splitlines(text: str, keepends: bool = False) -> list[str]:
    plain, own = str(text), own_of(text)
    at, lines = 0, []
    for line, whole in zip(plain.splitlines(keepends), plain.splitlines(True), strict=True):
        lines.append(traced(line, own[at : at + len(line)]))
        at += len(whole)
    return lines


def partition(text: str, sep: str) -> tuple[str, ...]:
    return tuple(_laid(text, str(text).partition(sep)))


def rpartition(text: str, sep: str) -> tuple[str, ...]:
    return tuple(_laid(text, str(text).rpartition(sep)))


def lstrip(text: str, chars: str | None = None) -> str:
    return text[len(text) - len(str(text).lstrip(chars)) :]


def rstrip(text: str, chars: str | None = None) -> str:
    return text[: len(str(text).rstrip(chars))]


def strip(text: str, chars: str | None = None) -> str:
    return rstrip(lstrip(text, chars), chars)


def removeprefix(text: str, prefix: str) -> str:
    return text[len(prefix) :] if text.startswith(prefix) else text


def removesuffix(text: str, suffix: str) -> str:
    return text[: len(text) - len(suffix)] if suffix and text.endswith(suffix) else text


def ljust(text: str, width: int, fill: str = " ") -> str:
    return _padded(text, str(text).ljust(width, fill), 0, fill)


def rjust(text: str, width: int, fill: str = " ") -> str:
    result = str(text).rjust(width, fill)
    return _padded(text, result, len(result) - len(text), fill)


def center(text: str, width: int, fill: str = " ") -> str:
    result = str(text).center(width, fill)
    n = len(result) - len(text)
    return _padded(text, result, n // 2 + (n & width & 1), fill)


def zfill(text: str, width: int) -> str:
    result = str(text).zfill(width)
    zeros = bytes(len(result) - len(text))
    sign = text.startswith(("+", "-"))
    own = own_of(text)
    return traced(result, own[:sign] + zeros + own[sign:])


def _changed_case(name: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        # No character becomes fewer, so if the length stays, each has become one.
        return traced(getattr(str(text), name)(), own_of(text))

    return change


# What gives texts; all other methods give numbers and answers, and are Python's own.
METHODS: dict[str, Callable[..., Any]] = {
    **{name: _changed_case(name) for name in ("capitalize", "casefold", "lower", "swapcase", "title", "upper")},
    "center": center, "join": join, "ljust": ljust, "lstrip": lstrip, "partition": partition,
    "removeprefix": removeprefix, "removesuffix": removesuffix, "replace": replace, "rjust": rjust,
    "rpartition": rpartition, "rsplit": rsplit, "rstrip": rstrip, "split": split, "splitlines": splitlines,
    "strip": strip, "zfill": zfill,
}  # fmt: skip


def _laid(text: str, pieces: Iterable[str], gap: int = 0) -> list[str]:
    """The pieces of a text that lie one behind the other, with `gap` characters between."""
    own, at, found = own_of(text), 0, []
    for piece in pieces:
        found.append(traced(piece, own[at : at + len(piece)]))
        at += len(piece) + gap
    return found


def _located(text: str, pieces: list[str]) -> list[str]:
    """The pieces of a text between which there is only white space, with which none of them begins but the first."""
    own, at, found = own_of(text), 0, []
    for piece in pieces:
        at = text.index(piece, at)
        found.append(traced(piece, own[at : at + len(piece)]))
        at += len(piece)
    return found


def _padded(text: str, result: str, n_left: int, fill: str) -> str:
    pad = own_of(fill)
    n_right = len(result) - len(text) - n_left
    return traced(result, pad * n_left + own_of(text) + pad * n_right)


# Formatting


def _explained(result: str, pieces_of: Callable[..., list[str]], *operands: Any) -> str:
    """A formatted text, if its pieces, put together again, are that text."""
    try:
        pieces = pieces_of(*operands)
    except Exception:  # a form that is not followed, such as one that looks into an object
        return str(result)
    if "".join(pieces) != result:
        return str(result)
    return join("", pieces)


_PERCENT = re.compile(r"%(\(([^()]*)\))?[-#0 +]*\d*(\.\d*)?[hlL]?([a-zA-Z%])")


def _percent_pieces(form: str, values: Any) -> list[str]:
    following = iter(values if isinstance(values, tuple) else (values,))
    at, pieces = 0, []
    for match in _PERCENT.finditer(form):
        pieces.append(form[at : match.start()])
        at = match.end()
        directive = form[match.start() : at]
        if match[4] == "%":
            pieces.append(directive[-1:])
            continue
        value = values[match[2]] if match[1] else next(following)
        if directive in ("%s", f"%({match[2]})s") and isinstance(value, str):
            pieces.append(value)
        else:
            pieces.append(str(directive) % ({match[2]: value} if match[1] else (value,)))
    return [*pieces, form[at:]]


def _format_pieces(form: str, args: Sequence[Any], names: Mapping[str, Any]) -> list[str]:
    from string import Formatter  # seldom needed

    whole = isinstance(form, Text) and 0 not in form.own
    n_fields, pieces = 0, []
    for literal, field, spec, conversion in Formatter().parse(form):
        pieces.append(written(literal) if whole else literal)
        if field is None:
            continue
        if field == "":
            field, n_fields = str(n_fields), n_fields + 1
        value = args[int(field)] if field.isdigit() else names[field]
        pieces.append(value if isinstance(value, str) and not (spec or conversion) else format(value, spec or ""))
    return pieces
