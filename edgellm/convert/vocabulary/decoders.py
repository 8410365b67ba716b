"""How a tokenizer.json makes texts of tokens, which a GGUF file has no place for: each kind has its one way."""

from __future__ import annotations

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.rules import flatten, pattern_of
from edgellm.convert.vocabulary.wordpiece import CONTINUES
from edgellm.text.spm import SPACE

# Of the kinds of tokenizers, what decoders do that edgellm does as well.
_USUAL = {
    "gpt2": ("ByteLevel", "Fuse"),
    "llama": ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"),
    "gemma4": ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"),
    "t5": ("Replace", "Fuse", "Strip", "Metaspace"),
    "bert": ("WordPiece",),
}


def left_out_decoders(file: Record, draft: Draft) -> list[str]:
    """What is said of the steps of a decoder that change texts otherwise than the kind of tokenizer does."""
    return [
        f"{file.file}: the decoder {shown(step.values)} is left out: tokens become text as is usual for their kind"
        for step in flatten(file.record("decoder"))
        if not _is_usual(step, draft.model)
    ]


def _is_usual(step: Record, model: str) -> bool:
    kind = step.text("type")
    if kind not in _USUAL.get(model, (kind,)):
        return False
    if kind == "Replace":
        return pattern_of(step) == SPACE and step.text("content") == " "
    if kind == "Metaspace":
        return step.text("replacement") in (None, SPACE)
    if kind == "Strip":  # of the space that was put in front of a text
        return step.text("content") == " " and (step.number("start") or 0) <= 1 and not step.number("stop")
    return kind != "WordPiece" or step.text("prefix") in (None, CONTINUES)
