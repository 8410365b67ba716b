"""Recognising how a tokenizer cuts text into words, by the steps that its tokenizer.json spells out.

What is recognised is what stands in `edgellm.text.pretokenizers`, under the names that GGUF files use. A rule is
matched by its meaning, whatever it is called by; one that matches none is refused and shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.patterns import Form, form_of
from edgellm.errors import FormatError, UnsupportedError
from edgellm.text.pretokenizers import PRETOKENIZERS, PUNCTUATION

_DIGIT = r"\p{N}"


def flatten(step: Record | None) -> list[Record]:
    """The steps of a normalizer, pre-tokenizer, post-processor or decoder, without the sequences that hold them."""
    steps: list[Record] = []
    waiting = [] if step is None else [step]
    while waiting:
        step = waiting.pop()
        inner = {"normalizers", "pretokenizers", "processors", "decoders"} & set(step.values)
        if step.text("type") == "Sequence" and inner:
            waiting += reversed(list(step.records(inner.pop())))
        else:
            steps.append(step)
    return steps


def composes(normalizer: list[Record]) -> bool:
    """Whether a byte-level tokenizer brings text into Unicode's composed form (NFC), all that it may do."""
    names = [step.text("type") for step in normalizer]
    if names not in ([], ["NFC"]):
        raise UnsupportedError(
            f"tokenizer.json: the normalizer {_shown(normalizer)} is not supported; edgellm knows NFC"
        )
    return names == ["NFC"]


def recognise(steps: list[Record], nfc: bool, ignore_merges: bool) -> str:
    """GGUF's name for a row of pre-tokenizers; a name of another `ignore_merges` if there is no better.

    Raises UnsupportedError when edgellm has no such rule.
    """
    patterns = [pattern for step in steps for pattern in _patterns(step, is_last=step is steps[-1])]
    # To remove what lies between the matches cuts the same only if the matches are all there is. They are in
    # every rule of a single pattern.
    removes = any(step.text("behavior") == "Removed" for step in steps)
    name = None if removes and len(patterns) > 1 else named(patterns, nfc, ignore_merges)
    if name is None:
        composed = " on composed text (NFC)" if nfc else ""
        raise UnsupportedError(
            f"tokenizer.json: the pre-tokenizer {_shown(steps)}{composed} is none that edgellm knows: "
            f"{', '.join(PRETOKENIZERS)}"
        )
    return name


def named(patterns: Iterable[str], nfc: bool, ignore_merges: bool) -> str | None:
    """The name of the rule with these patterns, the one with this `ignore_merges` if there are both."""
    forms = tuple(map(form_of, patterns))
    known = _known()
    return known.get((forms, nfc, ignore_merges)) or known.get((forms, nfc, not ignore_merges))


@cache
def _known() -> Mapping[tuple[tuple[Form, ...], bool, bool], str]:
    """Names by what their rules do; of several with one meaning, the first."""
    found: dict[tuple[tuple[Form, ...], bool, bool], str] = {}
    for name, rule in PRETOKENIZERS.items():
        if not rule.spells_bytes:
            continue
        found.setdefault((tuple(map(form_of, rule.patterns)), rule.nfc, rule.ignore_merges), name)
    return found


def _patterns(step: Record, is_last: bool) -> list[str]:
    """What one step cuts by; the bytes must be spelled in the last."""
    kind = step.text("type")
    if kind == "ByteLevel" and is_last:
        if step.flag("add_prefix_space"):
            raise UnsupportedError(
                "tokenizer.json: the pre-tokenizer puts a space in front of texts (ByteLevel, add_prefix_space), "
                "which a GGUF file cannot say of this kind of tokenizer"
            )
        uses_regex = step.flag("use_regex")
        return list(PRETOKENIZERS["gpt-2"].patterns) if uses_regex is None or uses_regex else []
    if kind == "Digits":
        return [_DIGIT if step.flag("individual_digits") else f"{_DIGIT}+"]
    if kind == "Punctuation" and step.text("behavior") in ("Isolated", "Contiguous"):
        return [PUNCTUATION if step.text("behavior") == "Isolated" else f"{PUNCTUATION}+"]
    if kind == "Split":
        how = (step.text("behavior"), step.flag("invert") or False)
        if how in (("Isolated", False), ("Removed", True)):
            return [pattern_of(step)]
    raise UnsupportedError(f"tokenizer.json: the pre-tokenizer {_shown([step])} is not supported")


def pattern_of(step: Record) -> str:
    """The regular expression that a Split cuts by."""
    pattern = step.record("pattern")
    if pattern is None:
        raise step.wrong("pattern", "an object with Regex or String")
    regex, text = pattern.text("Regex"), pattern.text("String")
    if regex is None and text is None:
        raise FormatError(f"{step.file}: {step.trail}pattern has neither Regex nor String")
    if regex is not None:
        return regex
    return "".join(f"\\{char}" if not char.isalnum() and char.isascii() else char for char in text or "")


def _shown(steps: list[Record]) -> str:
    values: list[Any] = [dict(step.values) for step in steps]
    return shown(values[0] if len(values) == 1 else values, 600)
