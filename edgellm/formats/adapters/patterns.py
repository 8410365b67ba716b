"""Regular expressions in the settings of an adapter, matched as PEFT matches them, where that takes little time.

A file may be hostile, and a pattern may take for ever. What may repeat is a single character or class, and few of
these: then the time is a small power of a name's length, and names are those of a model's modules.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from edgellm.errors import FormatError, UnsupportedError, shown

_MOST_KEY, _MOST_TARGETS = 200, 2000  # characters: of a key that names modules, and of a pattern for all of them
_MOST_REPEATED = 3  # parts of a key that may match any number of characters
_MOST_REPEATED_OF_TARGETS = 5  # of a pattern, which is looked at once for each module
_WORDS = re.compile(r"[\w.^$\\|()*+?\[\]{},:-]*")
_REPEATED = re.compile(r"(?<!\\)(?:[*+]|\?(?!:)|\{\d*,?\d*\})\??")
# A group that repeats, a reference to one, a group that is more than a group, and long counts.
_SLOW = re.compile(r"\)[*+?{]|\\\d|\(\?(?!:)|\{[\d,]*\d{3}")


def check_key(file: str, key: str) -> None:
    """Raise UnsupportedError for a key of rank_pattern or alpha_pattern that could take for ever, FormatError for one
    that is no regular expression.
    """
    if not _is_quick(key, _MOST_KEY, _MOST_REPEATED):
        raise UnsupportedError(f"{file} has the pattern {shown(key)}; edgellm reads names and simple patterns")
    try:
        re.compile(rf"(.*\.)?({key})$")
    except re.error as problem:
        raise FormatError(f"{file}: {shown(key)} is no regular expression: {problem}") from None


def fitting(keys: Iterable[str], module: str) -> list[str]:
    """The keys that fit the end of a module's name, in their order: the first of them counts."""
    return [key for key in keys if re.match(rf"(.*\.)?({key})$", module)]


def is_quick(pattern: str) -> bool:
    """Whether a pattern for whole names can be compared with all of a model's."""
    return _is_quick(pattern, _MOST_TARGETS, _MOST_REPEATED_OF_TARGETS)


@functools.lru_cache(4096)
def fits_whole(pattern: str, name: str) -> bool:
    """Whether a pattern that is quick and right fits all of a name."""
    return re.fullmatch(pattern, name) is not None


def _is_quick(pattern: str, most: int, most_repeated: int) -> bool:
    if len(pattern) > most or not _WORDS.fullmatch(pattern) or _SLOW.search(pattern):
        return False
    return len(_REPEATED.findall(pattern)) <= most_repeated
