"""How `tokenizers` prepares a text for a Unigram model: the steps of a tokenizer.json, each by its name.

GGUF has keys for what SentencePiece does, and those are nearly the same. What differs are few texts, with white space
other than spaces or with accents behind letters that a table replaces, so files of our own name the steps as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from edgellm.errors import FormatError
from edgellm.text.charsmap import CharsMap
from edgellm.text.common import WHITE
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import OURS

STEPS = f"{OURS}steps"

_AT_WHITE = re.compile(f"[{WHITE}]+")
_LEFT, _RIGHT = re.compile(rf"\A[{WHITE}]+"), re.compile(rf"(?<![{WHITE}])[{WHITE}]+\Z")
_RUNS, _EACH_MARK = re.compile(" {2,}"), re.compile(f"(?={SPACE})")

_NORMALIZING: Mapping[str, Callable[[str], str]] = {
    "strip_left": lambda text: _LEFT.sub("", text),
    "strip_right": lambda text: _RIGHT.sub("", text),
    "join_spaces": lambda text: _RUNS.sub(" ", text),
    "mark_runs": lambda text: _RUNS.sub(SPACE, text),
    "mark_spaces": lambda text: re.sub(" +", SPACE, text),
    "join_white": lambda text: _AT_WHITE.sub(" ", text),
    "mark_white": lambda text: _AT_WHITE.sub(SPACE, text),
}
# Names of a Replace, by its pattern and what it writes.
OF_REPLACE = {
    (" {2,}", " "): "join_spaces", (" +", " "): "join_spaces", ("\\s+", " "): "join_white",
    (" {2,}", SPACE): "mark_runs", (" +", SPACE): "mark_spaces", ("\\s+", SPACE): "mark_white",
}  # fmt: skip
CLUSTERS = "clusters"  # the table of characters
CUT = "cut_at_white"
# Names of a Metaspace, by whether it puts a mark in front and whether it cuts before each one.
OF_METASPACE = {(True, True): "marked_words", (True, False): "marked", (False, True): "words", (False, False): "whole"}
_METASPACES = {name: how for how, name in OF_METASPACE.items()}


class Steps:
    """What some steps make of a text; FormatError for names that are none."""

    def __init__(self, names: Iterable[str], charsmap: CharsMap | None) -> None:
        self._normalizing: list[Callable[[str], str]] = []
        self._cutting: list[Callable[[list[str]], list[str]]] = []
        for name in names:
            if name == CLUSTERS and charsmap is not None:
                self._normalizing.append(charsmap.apply_to_clusters)
            elif name in _NORMALIZING:
                self._normalizing.append(_NORMALIZING[name])
            elif name == CUT:
                self._cutting.append(_at_white)
            elif name in _METASPACES:
                self._cutting.append(_metaspace(*_METASPACES[name]))
            else:
                raise FormatError(f"{STEPS} holds {name!r:.60}, which is no step that edgellm knows")

    def normalize(self, text: str) -> str:
        for step in self._normalizing:
            text = step(text)
        return text

    def cut(self, text: str) -> list[str]:
        """The words of a normalized text, none of them empty."""
        words = [text] if text else []
        for step in self._cutting:
            words = step(words)
        return words


def _at_white(words: list[str]) -> list[str]:
    return [part for word in words for part in _AT_WHITE.split(word) if part]


def _metaspace(prepends: bool, splits: bool) -> Callable[[list[str]], list[str]]:
    def step(words: list[str]) -> list[str]:
        words = [word.replace(" ", SPACE) for word in words]
        if prepends:
            words = [word if word.startswith(SPACE) else SPACE + word for word in words]
        return [part for word in words for part in _EACH_MARK.split(word) if part] if splits else words

    return step
