"""BPE in the manner of SentencePiece (Llama 2, Mistral, Gemma) in a tokenizer.json: merges become scores.

SentencePiece joins the neighbours whose token has the best score; `tokenizers` joins the pair that stands first
in a list. The two are the same as long as every pair that makes a token is listed, best token first. That holds
for files made from a SentencePiece model, and it is checked.
"""

from __future__ import annotations

import re
from itertools import pairwise

from edgellm.convert.vocabulary.byte_level import refuse_unusual
from edgellm.convert.vocabulary.draft import Draft, Token
from edgellm.convert.vocabulary.files import Record, added_texts, shown
from edgellm.convert.vocabulary.rules import flatten, pattern_of
from edgellm.errors import UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.text.merging import merge_pairs
from edgellm.text.spm import SCHEMES, SPACE
from edgellm.text.vocabulary import TokenType

_BRACKETED = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def read_metaspace(file: Record, model: Record, n_vocab: int) -> Draft:
    """The vocabulary of a tokenizer.json with a BPE model over text whose spaces became U+2581."""
    refuse_unusual(model)
    if model.flag("ignore_merges"):
        raise UnsupportedError(f"{file.file}: model.ignore_merges is true; SentencePiece has nothing like it")
    draft = Draft(file.file, n_vocab, "llama")
    vocab = model.record("vocab")
    if vocab is None:
        raise model.wrong("vocab", "an object of tokens and their ids")
    draft.put_all(vocab.values, added_texts(file))
    draft.take_merges(model.list("merges"))
    letters = {token.text for token in draft.tokens.values() if len(token.text) == 1}
    draft.made = frozenset(left + right for left, right in draft.merges or ()) | letters
    read_spaces(draft, file)
    _mark_unknown(draft, model)
    names = names_of(file)
    draft.made -= names
    _score(draft, names | (added_texts(file) - draft.made))
    return draft


def names_of(file: Record) -> set[str]:
    """The added tokens that are names, which no text is made of."""
    return {text for added in file.records("added_tokens") if (text := added.text("content")) and _is_name(text, added)}


def _is_name(text: str, added: Record) -> bool:
    """Whether an added token is a name, found wherever it stands: nobody takes it for a word.

    No text makes one by merging. `tokenizers` lets those be made that it does not find in some places.
    """
    found_everywhere = not (added.flag("single_word") or added.flag("normalized") or SPACE in text)
    return found_everywhere and _BRACKETED.fullmatch(text) is not None


def read_spaces(draft: Draft, file: Record) -> None:
    """Which texts get a space in front; UnsupportedError for any other preparation of the text.

    A normalizer that prepends does so in every stretch between special tokens, as other programs do. A Metaspace
    does it where there is no space yet, and perhaps only where the text begins, which takes keys of our own.
    """
    normalizer, pre_tokenizer = flatten(file.record("normalizer")), flatten(file.record("pre_tokenizer"))
    replaces = prepends = False
    scheme: str | None = None
    for step in normalizer:
        kind, content = step.text("type"), step.values.get("content")
        if kind == "Prepend" and step.text("prepend") == SPACE:
            prepends = True
        elif kind == "Replace" and pattern_of(step) in (" ", "\\ ") and content == SPACE:
            replaces = True
        else:
            raise UnsupportedError(f"{file.file}: the normalizer {shown(step.values)} is not supported")
    for step in pre_tokenizer:
        kind = step.text("type")
        if kind == "Metaspace" and step.text("replacement") == SPACE and scheme is None and not (replaces or prepends):
            scheme = _scheme(step)
            if step.flag("split") is not False and any(SPACE in text[1:] for text in draft.ids):
                draft.ours["split_at_spaces"] = True  # which makes no difference where no token reaches across one
        elif kind != "Split" or not replaces or pattern_of(step) not in (" ", "\\ "):  # no space is left to split at
            raise UnsupportedError(f"{file.file}: the pre-tokenizer {shown(step.values)} is not supported")
    if not replaces and scheme is None:
        raise UnsupportedError(
            f"{file.file}: the BPE model is neither byte-level nor over text with U+2581 for spaces; "
            "edgellm knows these two"
        )
    if scheme is not None:
        draft.ours["prepend_scheme"] = scheme
    draft.settings["add_space_prefix"] = prepends or scheme in ("first", "always")
    draft.prefixed = prepends or scheme is not None


def _scheme(step: Record) -> str:
    """Where a Metaspace puts a space in front; files of older versions say only whether it does."""
    scheme = step.text("prepend_scheme") or ("never" if step.flag("add_prefix_space") is False else "always")
    if scheme not in SCHEMES:
        raise step.wrong("prepend_scheme", f"one of {', '.join(SCHEMES)}")
    return scheme


def _mark_unknown(draft: Draft, model: Record) -> None:
    """The types of the unknown token and of the tokens that stand for bytes."""
    if (unknown := model.text("unk_token")) is not None:
        token_id = draft.id_of(unknown, f"{model.file}: model.unk_token")
        draft.tokens[token_id] = Token(unknown, TokenType.UNKNOWN)
        draft.roles["unk"] = token_id
    bytes_ = [name for name in _BYTES if name in draft.ids] if model.flag("byte_fallback") else []
    for name in bytes_:
        draft.tokens[draft.ids[name]] = Token(name, TokenType.BYTE)
    if len(bytes_) == len(_BYTES):
        return
    if unknown is None or not model.flag("fuse_unk"):
        raise UnsupportedError(
            f"{model.file}: characters without a token become neither bytes (model.byte_fallback) nor one unknown "
            "token for a run of them (model.fuse_unk); SentencePiece does one or the other"
        )


def _score(draft: Draft, added: set[str]) -> None:
    """Give each token that merges make the score by which SentencePiece makes it in the same order."""
    pairs = [pair for pair in draft.merges or () if pair[0] + pair[1] not in added]
    draft.merges = None
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        first.setdefault(left + right, rank)
        last[left + right] = rank
    score = _scores(pairs, first, last, draft.file)
    lowest = -float(len(pairs) + 1)
    for token_id, token in draft.tokens.items():
        if token.type == TokenType.NORMAL:
            draft.tokens[token_id] = token._replace(score=score.get(token.text, lowest))
    normal = {t.text: t.score for t in draft.tokens.values() if t.type == TokenType.NORMAL and t.text not in added}
    _check_same_merging(normal, set(pairs), draft.file)


def _scores(pairs: list[tuple[str, str]], first: dict[str, int], last: dict[str, int], file: str) -> dict[str, float]:
    """Minus the rank of a token's first pair; tokens whose pairs stand between each other's share a score.

    SentencePiece breaks ties by taking the leftmost pair, which comes to the same if a list has the longer left
    halves first, as files made from a SentencePiece model do (Llama 2's runs of spaces).
    """
    score: dict[str, float] = {}
    ties: dict[int, tuple[int, str]] = {}  # where pairs of several tokens stand: from, to, and one of the tokens
    start = end = -1
    for token in sorted(first, key=first.__getitem__):
        shares = first[token] < end
        start = start if shares else first[token]
        end = max(end, last[token])
        if shares:
            ties[start] = end, token
        score[token] = -float(start)
    for start, (end, token) in ties.items():
        if not _longest_first(pairs[start : end + 1]):
            raise UnsupportedError(
                f"{file}: the merges that make {quoted(token)} stand between those of other tokens, "
                "an order that the scores of SentencePiece cannot express"
            )
    return score


def _longest_first(pairs: list[tuple[str, str]]) -> bool:
    lengths = [(len(left), len(right)) for left, right in pairs]
    return all(before >= after for before, after in pairwise(lengths))


def _check_same_merging(score: dict[str, float], pairs: set[tuple[str, str]], file: str) -> None:
    """Raise UnsupportedError for a token that SentencePiece would make of a pair that no merge allows."""
    for token, its_score in score.items():
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        if all(pair in pairs for pair in splits if all(len(half) == 1 or half in score for half in pair)):
            continue

        def rank(left: bytes, right: bytes, limit: float = its_score) -> float | None:
            made = score.get((left + right).decode())
            return None if made is None or made <= limit else -made

        symbols = merge_pairs([char.encode() for char in token], rank)
        if len(symbols) == 2 and (symbols[0].decode(), symbols[1].decode()) not in pairs:
            raise UnsupportedError(
                f"{file}: no merge makes the token {quoted(token)} of {quoted(symbols[0].decode())} and the rest; "
                "SentencePiece would, so its scores cannot express these merges"
            )
