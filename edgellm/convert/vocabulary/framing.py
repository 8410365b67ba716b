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
    frames: list[tuple[list[int], list[int]]] = []
    for step in flatten(file.record("post_processor")):
        kind = step.text("type")
        if kind == "TemplateProcessing":
            frames.append(_template(step, "pair" if frames else "single"))
        elif kind in ("BertProcessing", "RobertaProcessing"):
            frames.append(([_pair_id(step, "cls")], [_pair_id(step, "sep")]))
        elif kind != "ByteLevel":  # which only moves offsets
            raise UnsupportedError(f"{step.file}: the post-processor {shown(step.values)} is not supported")
    if frames:  # each puts its tokens around what the one before has made
        draft.begin = [token_id for begin, _ in reversed(frames) for token_id in begin]
        draft.end = [token_id for _, end in frames for token_id in end]
    for side in (draft.begin, draft.end):
        if side and (len(side) > 1 or side[0] not in draft.tokens):
            raise UnsupportedError(
                f"{draft.file}: the post-processor puts the tokens {side} on one side of texts; "
                "a GGUF file can say one token of the vocabulary"
            )


def _template(step: Record, kind: str) -> tuple[list[int], list[int]]:
    """The ids before and after the text in a template.

    kind:  `single`; or `pair`, which is used for what an earlier template has made: its token and the text.
    """
    expected = 1 if kind == "single" else 2
    sides: list[list[int]] = [[], []]
    n_texts = 0
    for piece in step.records(kind):
        if "Sequence" in piece:
            n_texts += 1
        elif (named := piece.record("SpecialToken")) is not None:
            if 0 < n_texts < expected:
                raise UnsupportedError(
                    f"{step.file}: {step.trail}pair puts a token inside of what another template made"
                )
            sides[min(n_texts, 1)] += _ids(step, named.text("id") or "", kind)
        else:
            raise FormatError(
                f"{step.file}: {step.trail}{kind} holds {shown(piece.values)}; expected a token or the text"
            )
    if n_texts != expected:
        raise FormatError(f"{step.file}: {step.trail}{kind} has the text {n_texts} times; expected {expected}")
    return sides[0], sides[1]


def _ids(step: Record, name: str, kind: str) -> list[int]:
    known = step.record("special_tokens")
    entry = known.record(name) if known is not None else None
    if entry is None:
        raise FormatError(f"{step.file}: {step.trail}{kind} uses {name!r:.60}, which special_tokens does not explain")
    ids = entry.list("ids")
    if not all(type(token_id) is int for token_id in ids):
        raise entry.wrong("ids", "a list of token ids")
    return ids


def _pair_id(step: Record, key: str) -> int:
    pair = step.list(key)
    if len(pair) != 2 or type(pair[1]) is not int:
        raise step.wrong(key, "a pair of a token and its id")
    return pair[1]
