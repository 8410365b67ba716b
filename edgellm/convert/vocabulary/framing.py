"""The tokens that a tokenizer puts around every text, from the post-processor of a tokenizer.json."""

from __future__ import annotations

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Record, shown
from edgellm.convert.vocabulary.rules import flatten
from edgellm.errors import FormatError, UnsupportedError


def set_frame(draft: Draft, file: Record) -> None:
    """Set `begin` and `end` of the draft as a tokenizer.json says, which may be another file than the vocabulary's.

    Raises UnsupportedError for more than one token on a side, which GGUF files cannot say.
    """
    if draft.file == file.file:
        draft.begin, draft.end = [], []
    for step in flatten(file.record("post_processor")):
        kind = step.text("type")
        if kind == "TemplateProcessing":
            draft.begin, draft.end = _template(step)
        elif kind in ("BertProcessing", "RobertaProcessing"):
            draft.begin, draft.end = [_pair_id(step, "cls")], [_pair_id(step, "sep")]
        elif kind != "ByteLevel":  # which only moves offsets
            raise UnsupportedError(f"{step.file}: the post-processor {shown(step.values)} is not supported")
    for side in (draft.begin, draft.end):
        if side and (len(side) > 1 or side[0] not in draft.tokens):
            raise UnsupportedError(
                f"{draft.file}: the post-processor puts the tokens {side} on one side of texts; "
                "a GGUF file can say one token of the vocabulary"
            )


def _template(step: Record) -> tuple[list[int], list[int]]:
    """The ids before and after the text in the template for a single text."""
    sides: list[list[int]] = [[], []]
    n_texts = 0
    for piece in step.records("single"):
        if "Sequence" in piece:
            n_texts += 1
        elif (named := piece.record("SpecialToken")) is not None:
            sides[min(n_texts, 1)] += _ids(step, named.text("id") or "")
        else:
            raise FormatError(
                f"{step.file}: {step.trail}single holds {shown(piece.values)}; expected a token or the text"
            )
    if n_texts != 1:
        raise FormatError(f"{step.file}: {step.trail}single has the text {n_texts} times; expected it once")
    return sides[0], sides[1]


def _ids(step: Record, name: str) -> list[int]:
    known = step.record("special_tokens")
    entry = known.record(name) if known is not None else None
    if entry is None:
        raise FormatError(f"{step.file}: {step.trail}single uses {name!r:.60}, which special_tokens does not explain")
    ids = entry.list("ids")
    if not all(type(token_id) is int for token_id in ids):
        raise entry.wrong("ids", "a list of token ids")
    return ids


def _pair_id(step: Record, key: str) -> int:
    pair = step.list(key)
    if len(pair) != 2 or type(pair[1]) is not int:
        raise step.wrong(key, "a pair of a token and its id")
    return pair[1]
