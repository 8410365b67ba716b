"""The tokenizer.json that tokenizes as edgellm does with a GGUF file's vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgellm.convert.vocabulary.draft import FLAGS, MOST_CHARS
from edgellm.convert.vocabulary.wordpiece import CONTINUES
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.text.rule import rule_of
from edgellm.text.spm import SCHEME, SPACE
from edgellm.text.string_index import as_bytes
from edgellm.text.tokenizer import KEEPS_SPACE
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary
from edgellm.text.wordpiece import LONGEST_WORD

Steps = dict[str, Any]

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
_NO_TOKEN = re.compile(r"\[+PAD\d+\]+")  # what a row of the embedding without a token is called


def framing_roles(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[str | None, str | None]:
    """The roles of the tokens that are put before and after a text, as the tokenizer of edgellm does."""
    kind = metadata[f"{PREFIX}model"]
    if kind == "bert":
        begin, end = (role if vocabulary.role_id(role) is not None else None for role in ("cls", "seperator"))
        return begin, end
    adds_bos = kind == "llama" or rule_of(vocabulary).add_bos
    return "bos" if vocabulary.added("bos", adds_bos) else None, "eos" if vocabulary.added("eos", False) else None


def twin_of(metadata: Mapping[str, Any], vocabulary: Vocabulary, strips_right: bool) -> Steps:
    """The contents of a tokenizer.json for the metadata of a GGUF file.

    Raises FormatError for a vocabulary that breaks its rules, UnsupportedError for one that cannot be expressed.
    """
    tokens = _tokens(vocabulary)
    kind = metadata[f"{PREFIX}model"]
    if kind in ("gpt2", "gemma4"):
        parts = _byte_level(vocabulary, tokens)
    elif kind == "llama":
        parts = _sentencepiece(vocabulary, tokens)
    else:
        parts = _wordpiece(vocabulary, tokens)
    flags = {flag: vocabulary.marked(flag) for flag in FLAGS}
    if flags["rstrip"] is None and strips_right:
        flags["rstrip"] = frozenset(i for i, text in tokens.items() if text not in KEEPS_SPACE)
    # Where spaces only change their spelling, a token is looked for after that; where text also gets a space in
    # front, so would the token, and it has to be found before.
    if flags["normalized"] is None and kind == "llama" and not vocabulary.flag("add_space_prefix", True):
        flags["normalized"] = frozenset(vocabulary.of_type(TokenType.USER_DEFINED))
    added = []
    also = vocabulary.marked("also_added") or ()
    for token_id in [*vocabulary.of_type(*_SPECIAL, TokenType.USER_DEFINED), *sorted(also)]:
        if token_id in tokens:
            flagged: Steps = {flag: ids is not None and token_id in ids for flag, ids in flags.items()}
            special = bool(vocabulary.types[token_id] in _SPECIAL)
            added.append({"id": token_id, "content": tokens[token_id], **flagged, "special": special})
    frame = _frame(vocabulary, *framing_roles(metadata, vocabulary))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": frame,
        **parts,
    }


def _byte_level(vocabulary: Vocabulary, tokens: Mapping[int, str]) -> Steps:
    rule = rule_of(vocabulary)
    if not rule.spells_bytes:
        raise UnsupportedError("the vocabulary has merges of plain text, as Gemma 4; edgellm cannot write it out again")
    ids = {text: token_id for token_id, text in tokens.items()}
    merges = []
    for merge in as_bytes(vocabulary.strings("merges")):
        pair = merge.decode(errors="replace").split(" ")
        if len(pair) != 2 or any(token not in ids for token in (*pair, "".join(pair))):
            raise FormatError(f"{PREFIX}merges holds {merge!r:.80}; expected two tokens that make a third")
        merges.append(pair)
    cuts = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            for pattern in rule.patterns]  # fmt: skip
    return {
        "normalizer": {"type": "NFC"} if rule.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, _BYTES]},
        "decoder": _BYTES,
        "model": _bpe(ids, merges, ignore_merges=rule.ignore_merges),
    }


def _sentencepiece(vocabulary: Vocabulary, tokens: Mapping[int, str]) -> Steps:
    """BPE with all pairs that make a token as merges, in the order of the tokens' scores."""
    scheme = vocabulary.text(SCHEME)
    prefix = vocabulary.flag("add_space_prefix", True) if scheme is None else scheme != "never"
    unknown = vocabulary.role_id("unknown")
    to_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps: list[Steps] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    splits = vocabulary.our_flag("split_at_spaces", False)
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": splits}
    undo: list[Steps] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    undo += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    undo += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    ids = {text: token_id for token_id, text in tokens.items()}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*steps, to_space]} if scheme is None else None,
        "pre_tokenizer": metaspace if scheme else None,
        "decoder": {"type": "Sequence", "decoders": undo},
        "model": _bpe(
            ids,
            _merges(vocabulary, tokens),
            unk_token=None if unknown is None else tokens.get(unknown),
            fuse_unk=True,
            byte_fallback=bool(vocabulary.of_type(TokenType.BYTE)),
        ),
    }


def _merges(vocabulary: Vocabulary, tokens: Mapping[int, str]) -> list[list[str]]:
    """Every pair of tokens that makes a token, best score first; among equals the pair with the longer left half,
    which grows a run of equal pairs from its left end as SentencePiece does.
    """
    assert vocabulary.scores is not None  # load_tokenizer asked for them
    scores = vocabulary.scores.tolist()
    made = sorted(vocabulary.marked("made") or ())
    normal = {tokens[i]: scores[i] for i in [*vocabulary.of_type(TokenType.NORMAL), *made] if i in tokens}
    unused = {tokens[i] for i in vocabulary.of_type(TokenType.UNUSED) if i in tokens}
    for token in unused:
        if any({token[:i], token[i:]} <= normal.keys() | unused for i in range(1, len(token))):
            raise UnsupportedError(f"the token {quoted(token)} is marked as unused, which tokenizer.json cannot say")
    chars = {char for token in normal for char in token}
    if lacking := sorted(chars - set(normal)):
        token = next(token for token in normal if lacking[0] in token)
        raise UnsupportedError(
            f"the token {quoted(token)} holds {quoted(lacking[0])}, which has no token itself; "
            "tokenizer.json cannot join what it cannot spell"
        )
    found = []
    for token, score in normal.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in normal and right in normal:
                found.append((-score, -i, i - len(token), left, right))
    found.sort(key=lambda merge: merge[:3])
    return [[left, right] for *_, left, right in found]


def _wordpiece(vocabulary: Vocabulary, tokens: Mapping[int, str]) -> Steps:
    normal = set(vocabulary.of_type(TokenType.NORMAL))
    for token_id in sorted(vocabulary.marked("single_word") or ()):
        if token_id in tokens and tokens[token_id].isalnum():
            raise UnsupportedError(
                f"the added token {quoted(tokens[token_id])} is found as a word alone (single_word); in a "
                "tokenizer.json of BERT's kind it would begin other words as well"
            )
    ids: dict[str, int] = {}
    for token_id, text in tokens.items():
        spelled = _hugging_face_spelling(text) if token_id in normal else text
        if spelled in ids:
            raise UnsupportedError(f"two tokens are spelled {quoted(spelled)} in a WordPiece vocabulary")
        ids[spelled] = token_id
    lower = vocabulary.flag("normalizer.lowercase", True)
    unknown = vocabulary.role_id("unknown")
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": vocabulary.flag("normalizer.strip_accents", lower),
            "lowercase": lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": CONTINUES, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": None if unknown is None else tokens.get(unknown),
            "continuing_subword_prefix": CONTINUES,
            "max_input_chars_per_word": LONGEST_WORD,
            "vocab": ids,
        },
    }


def _hugging_face_spelling(text: str) -> str:
    if text.startswith(SPACE):
        return text.removeprefix(SPACE)
    return text if len(text) > 2 and text[0] == "[" and text[-1] == "]" else CONTINUES + text


def _bpe(ids: Mapping[str, int], merges: list[list[str]], **options: Any) -> Steps:
    defaults = {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}  # fmt: skip
    return {"type": "BPE", **defaults, **options, "vocab": ids, "merges": merges}


def _frame(vocabulary: Vocabulary, begin: str | None, end: str | None) -> Steps:
    """The post-processor that puts the tokens of two roles around a text, and one after each of a pair."""
    explained: Steps = {}

    def tokens(role: str | None, type_id: int) -> list[Steps]:
        token_id = vocabulary.role_id(role) if role else None
        if token_id is None:
            return []
        name = vocabulary.token(token_id).decode()
        explained[name] = {"id": name, "ids": [token_id], "tokens": [name]}
        return [{"SpecialToken": {"id": name, "type_id": type_id}}]

    first = [*tokens(begin, 0), {"Sequence": {"id": "A", "type_id": 0}}, *tokens(end, 0)]
    second_begin = [] if begin == "cls" else tokens(begin, 1)
    second = [*second_begin, {"Sequence": {"id": "B", "type_id": 1}}, *tokens(end, 1)]
    return {"type": "TemplateProcessing", "single": first, "pair": first + second, "special_tokens": explained}


def _tokens(vocabulary: Vocabulary) -> dict[int, str]:
    """The tokens to write, by id: all but empty ones and rows of the embedding without a token."""
    found = {}
    _ = vocabulary.ids  # finds duplicates
    for token_id in (i for i, token in enumerate(vocabulary.tokens) if token):
        text = vocabulary.token(token_id).decode()
        if len(text) > MOST_CHARS:
            raise FormatError(f"token {token_id} has {len(text)} characters; expected at most {MOST_CHARS}")
        if not (vocabulary.is_type(token_id, TokenType.UNUSED) and _NO_TOKEN.fullmatch(text)):
            found[token_id] = text
    return found
