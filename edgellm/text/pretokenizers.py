r"""Pre-tokenizers: how a text is cut into words before the byte-pair merges of a GPT-2 style tokenizer.

`tokenizer.ggml.pre` names the rule. A rule is a row of patterns: each cuts what the one before left, into its
matches and the stretches between them. A word never merges with its neighbour, so a wrong rule gives wrong
ids without any other sign; a name that is not in the table is therefore refused, never guessed.

The patterns are those of the models' own tokenizer files. They speak of Unicode classes (`\p{L}`), which need
the `regex` package, and importing it takes as long as reading a vocabulary. Most prompts are plain ASCII,
where the same classes are a handful of ranges that the standard library can match; so only a text beyond
ASCII pays for `regex`. Classes stand in brackets everywhere, which keeps that exchange a plain substitution.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edgellm.errors import UnsupportedError

_DIGIT = r"[\p{N}]"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}]+|[\p{N}]"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|[\p{N}]"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|[\p{N}]|", r"|[\p{N}]{1,3}|")

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|[\p{N}]| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"
    r"|[\p{N}]{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One rule of the table.

    patterns:       each cuts the words that the one before left.
    nfc:            the text is first brought into Unicode's composed form.
    ignore_merges:  a word that is a token is taken whole, whatever the merges would make of it.
    add_bos:        `add_special` puts the bos token first, unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def split(self, text: str) -> list[str]:
        """The words of a text, in order; joined, they are the text (in composed form if `nfc`)."""
        ascii_only = text.isascii()
        if self.nfc and not ascii_only:
            from unicodedata import normalize

            text = normalize("NFC", text)
        words = [text]
        for cut in self._ascii_cuts if ascii_only else self._unicode_cuts:
            words = [piece for word in words for piece in cut(word) if piece]
        return words

    @cached_property
    def _ascii_cuts(self) -> list[Callable[[str], list[Any]]]:
        patterns = [re.sub(r"\\p\{(\w+)\}", lambda match: _ASCII[match[1]], p) for p in self.patterns]
        return [re.compile(f"({pattern})", re.ASCII).split for pattern in patterns]

    @cached_property
    def _unicode_cuts(self) -> list[Callable[[str], list[Any]]]:
        import regex

        return [regex.compile(f"({pattern})").split for pattern in self.patterns]


# The members of each Unicode class among the ASCII characters, as they are written between brackets.
_ASCII = {
    "L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9",
    "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<->\^`|~",
}  # fmt: skip

_gpt2 = PreTokenizer((_GPT2,))
_gpt2_nfc = PreTokenizer((_GPT2,), nfc=True)
_digits_gpt2 = PreTokenizer((_DIGIT, _GPT2))
_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_gpt4o = PreTokenizer((_GPT4O,), ignore_merges=True)

PRETOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}$+<=>\^~|]+", _GPT2, r"[\p{N}]+", r"[0-9][0-9][0-9]")),
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "mpt": _gpt2_nfc,
    "olmo": _gpt2_nfc,
    "smollm": _digits_gpt2,
    "starcoder": _digits_gpt2,
    "refact": _digits_gpt2,
    "command-r": PreTokenizer((_DIGIT, _GPT2), nfc=True),
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": _gpt4o,
    "llama4": _gpt4o,
    "deepseek-coder": PreTokenizer(
        (r"[\r\n]", r"\s?[\p{L}]+", r"\s?[\p{P}]+", "[一-龥ࠀ-一가-\ud7ff]+", _DIGIT),
    ),
    "deepseek-v3": PreTokenizer(
        (
            r"[\p{N}]{1,3}",
            "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
            r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
}


def pretokenizer(name: str) -> PreTokenizer:
    """The rule that `tokenizer.ggml.pre` names. Raises UnsupportedError when it is not in the table."""
    if name not in PRETOKENIZERS:
        known = ", ".join(PRETOKENIZERS)
        raise UnsupportedError(f"the pre-tokenizer {name!r:.60} is not supported; edgellm knows {known}")
    return PRETOKENIZERS[name]
