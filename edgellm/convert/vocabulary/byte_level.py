"""Byte-level BPE, as GPT-2, Llama 3 and Qwen have it: from tokenizer.json, or from vocab.json and merges.txt."""

from __future__ import annotations

from collections.abc import Mapping

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Files, Record, added_texts
from edgellm.convert.vocabulary.rules import composes, flatten, recognise
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.text.bpe import BYTE_OF_CHAR
from edgellm.text.merging import merge_pairs
from edgellm.text.pretokenizers import PRETOKENIZERS
from edgellm.text.vocabulary import TokenType

# What the classes of `transformers` do that have only vocab.json and merges.txt.
_PRE_OF_CLASS = {"GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
_CLASS_OF_MODEL = {"gpt2": "GPT2Tokenizer", "codegen": "CodeGenTokenizer", "phi": "CodeGenTokenizer",
                   "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}  # fmt: skip
_END = "<|endoftext|>"


def read_byte_level(file: Record, model: Record, n_vocab: int) -> Draft:
    """The vocabulary, the merges and the pre-tokenizer of a tokenizer.json with a byte-level BPE model."""
    refuse_unusual(model)
    ignore_merges = model.flag("ignore_merges") or False
    nfc = composes(flatten(file.record("normalizer")))
    pre = recognise(flatten(file.record("pre_tokenizer")), nfc, ignore_merges)
    draft = Draft(file.file, n_vocab, "gpt2", pre)
    vocab = model.record("vocab")
    if vocab is None:
        raise model.wrong("vocab", "an object of tokens and their ids")
    draft.put_all(vocab.values, added_texts(file))
    draft.take_merges(model.list("merges"))
    unknown = model.text("unk_token")
    if unknown is not None and (missing := [char for char in BYTE_OF_CHAR if char not in draft.ids]):
        raise UnsupportedError(
            f"{file.file}: a byte without a token ({quoted(missing[0])}) becomes {quoted(unknown)}; "
            "edgellm leaves it out"
        )
    draft.ignore_merges = ignore_merges
    return draft


def refuse_unusual(model: Record) -> None:
    """Raise UnsupportedError for options of a BPE model that change its ids and have no place in a GGUF file."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.text(key):
            raise UnsupportedError(f"{model.file}: {model.trail}{key} is {quoted(str(model.text(key)))}; expected none")
    if model.values.get("dropout"):
        raise UnsupportedError(f"{model.file}: {model.trail}dropout makes ids random; expected none")


def check_whole_words(draft: Draft) -> None:
    """Raise UnsupportedError if the tokenizer takes words whole that the rule called `draft.pre` merges, or the
    other way round, and that makes a difference: it makes none if merging makes every token that can be a word.
    """
    if draft.model != "gpt2" or PRETOKENIZERS[draft.pre].ignore_merges == draft.ignore_merges:
        return
    ranks = {pair: rank for rank, pair in enumerate(draft.merges or ())}
    for token_id, token in draft.tokens.items():
        normal = token.type == TokenType.NORMAL and len(token.text) > 1
        if normal and not _merges_make(token.text, ranks) and _is_word(token.text, draft.pre):
            takes = "takes a word that is a token whole" if draft.ignore_merges else "makes every word by its merges"
            raise UnsupportedError(
                f"{draft.file}: the tokenizer {takes}, and the pre-tokenizer {draft.pre!r} of GGUF does the opposite; "
                f"token {token_id} ({quoted(token.text)}) would come out differently"
            )


def _merges_make(token: str, ranks: Mapping[tuple[str, str], int]) -> bool:
    symbols = merge_pairs([char.encode() for char in token], lambda a, b: ranks.get((a.decode(), b.decode())))
    return len(symbols) == 1


def _is_word(token: str, pre: str) -> bool:
    try:
        word = bytes(BYTE_OF_CHAR[char] for char in token).decode()
    except (KeyError, UnicodeDecodeError):
        return False  # part of a character, or added in plain text
    return PRETOKENIZERS[pre].split(word) == [word]


def read_vocab_and_merges(files: Files, n_vocab: int) -> Draft:
    """vocab.json and merges.txt, the layout of GPT-2; the class that reads them says how text is cut."""
    config = files.json("tokenizer_config.json")
    name = (config.text("tokenizer_class") or "").removesuffix("Fast")
    model_type = files.json("config.json").text("model_type") or ""
    pre = _PRE_OF_CLASS.get(name or _CLASS_OF_MODEL.get(model_type, ""))
    if pre is None:
        who = f"tokenizer_config.json names {quoted(name)}" if name else f"config.json's model is {quoted(model_type)}"
        raise UnsupportedError(
            f"vocab.json and merges.txt do not say how text is cut, and {who}; edgellm knows "
            f"{', '.join(_PRE_OF_CLASS)}; save the tokenizer with transformers, which writes a tokenizer.json"
        )
    if config.flag("add_prefix_space"):
        raise UnsupportedError(
            "tokenizer_config.json: add_prefix_space is true; a GGUF file cannot say so of byte-level BPE"
        )
    draft = Draft("vocab.json", n_vocab, "gpt2", pre)
    draft.put_all(files.json("vocab.json").values)
    lines = files.lines("merges.txt")
    lines = lines[1:] if lines[0].startswith("#version") else lines
    try:
        draft.take_merges(line for line in lines if line)
    except FormatError as problem:
        raise FormatError(f"merges.txt: {problem}") from None
    if _END in draft.ids:
        draft.names = {"bos": _END, "eos": _END, "unk": _END} if pre == "gpt-2" else {"eos": _END, "pad": _END}
    draft.begin, draft.end = [], []
    return draft
