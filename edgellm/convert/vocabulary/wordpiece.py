"""WordPiece, BERT's tokenizer: from tokenizer.json, or from vocab.txt.

In a GGUF file a token that begins a word carries U+2581 in front, and one that continues a word loses its "##".
"""

from __future__ import annotations

from collections.abc import Iterable

from edgellm.convert.vocabulary.draft import Draft
from edgellm.convert.vocabulary.files import Files, Record, added_texts, shown
from edgellm.convert.vocabulary.rules import flatten
from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf.header import quoted
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import TokenType
from edgellm.text.wordpiece import LONGEST_WORD

CONTINUES = "##"
_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
_NAMES = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def read_wordpiece(file: Record, model: Record, n_vocab: int) -> Draft:
    """The vocabulary of a tokenizer.json with a WordPiece model; UnsupportedError if it is not BERT's in all else."""
    draft = Draft(file.file, n_vocab, "bert")
    _refuse_other_steps(file, model)
    (normalizer,) = flatten(file.record("normalizer"))
    lower = normalizer.flag("lowercase") is not False
    draft.settings |= _normalizing(lower, normalizer.flag("strip_accents"))
    vocab = model.record("vocab")
    if vocab is None:
        raise model.wrong("vocab", "an object of tokens and their ids")
    draft.put_all(vocab.values, added_texts(file))
    draft.made = _pieces(vocab.values)
    draft.names = {"unk": model.text("unk_token") or _NAMES["unk"]}
    return draft


def read_vocab_txt(files: Files, n_vocab: int) -> Draft:
    """The vocabulary of vocab.txt, a token on each line, with the settings of tokenizer_config.json."""
    config = files.json("tokenizer_config.json")
    name = (config.text("tokenizer_class") or _CLASSES[0]).removesuffix("Fast")
    if name not in _CLASSES:
        raise UnsupportedError(
            f"tokenizer_config.json: tokenizer_class is {quoted(name)}; of the classes with a vocab.txt, edgellm knows "
            f"{', '.join(_CLASSES)}"
        )
    for key in ("tokenize_chinese_chars", "do_basic_tokenize"):
        if config.flag(key) is False:
            raise UnsupportedError(f"tokenizer_config.json: {key} is false; edgellm knows only true")
    draft = Draft("vocab.txt", n_vocab, "bert")
    for token_id, line in enumerate(files.lines("vocab.txt")):
        draft.put(token_id, line)
    draft.made = _pieces(draft.ids)
    lower = config.flag("do_lower_case") is not False
    draft.settings |= _normalizing(lower, config.flag("strip_accents"))
    draft.names = _NAMES
    return draft


def respell(draft: Draft) -> None:
    """Bring the tokens into the spelling of GGUF, once it is known which are set apart.

    Raises UnsupportedError if the tokenizer does not put a token on each side of a text, as programs do that
    read the file.
    """
    for side, role in ((draft.begin, "cls"), (draft.end, "sep")):
        if side:
            draft.roles.setdefault(role, side[0])
        if side is not None and side != [draft.roles.get(role)]:
            raise UnsupportedError(
                f"{draft.file}: the post-processor puts {side} around texts where BERT has its {role} token "
                f"({draft.roles.get(role)}); a GGUF file can say only that"
            )
    if "unk" not in draft.roles:
        raise FormatError(f"{draft.file}: no token stands for unknown words (unknown_token_id), as [UNK] does in BERT")
    _refuse_added_pieces(draft)
    draft.begin = draft.end = None  # it goes without saying
    words = {i: token for i, token in draft.tokens.items() if token.type == TokenType.NORMAL}
    for token_id, token in words.items():
        del draft.tokens[token_id], draft.ids[token.text]
    for token_id, token in words.items():
        spelled = _respelled(token.text)
        if spelled in draft.ids:
            raise UnsupportedError(
                f"{draft.file}: the tokens {draft.ids[spelled]} and {token_id} ({quoted(token.text)}) are both spelled "
                f"{quoted(spelled)} in a GGUF file, which can hold only one of them"
            )
        draft.put(token_id, spelled)


def _pieces(texts: Iterable[str]) -> frozenset[str]:
    """The tokens that words of a text are made of: no names in brackets, which are cut before."""
    return frozenset(text for text in texts if text.removeprefix(CONTINUES).isalnum())


def _refuse_added_pieces(draft: Draft) -> None:
    """Raise UnsupportedError for an added token that words are made of as well, where it is not found as added.

    In a GGUF file a token is spelled as one of them or as the other.
    """
    for token_id, token in draft.tokens.items():
        if token.type not in (TokenType.CONTROL, TokenType.USER_DEFINED) or token.text not in draft.made:
            continue
        is_found_as_typed = token_id not in draft.flags["normalized"] and draft.settings["normalizer.lowercase"]
        if (
            token_id in draft.flags["single_word"]
            or token.text.startswith(CONTINUES)
            or (is_found_as_typed and token.text.upper() != token.text)
        ):
            raise UnsupportedError(
                f"{draft.file}: the added token {quoted(token.text)} ({token_id}) is a piece of the vocabulary too, of "
                "which words are made where it is not found itself; a GGUF file can say only one of the two: make it "
                "normalized and not single_word, or take it out of the added tokens"
            )


def _respelled(text: str) -> str:
    if text.startswith(CONTINUES):
        return text.removeprefix(CONTINUES)
    in_brackets = len(text) > 2 and text[0] == "[" and text[-1] == "]"  # [unused0]: no word is spelled so
    return text if in_brackets or not text else SPACE + text


def _normalizing(lower: bool, strip_accents: bool | None) -> dict[str, bool]:
    return {"normalizer.lowercase": lower,
            "normalizer.strip_accents": lower if strip_accents is None else strip_accents}  # fmt: skip


def _refuse_other_steps(file: Record, model: Record) -> None:
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    for key, expected in (("normalizer", normalizer), ("pre_tokenizer", {"type": "BertPreTokenizer"})):
        found = [dict(step.values) for step in flatten(file.record(key))]
        if len(found) != 1 or not expected.items() <= found[0].items():
            raise UnsupportedError(
                f"{file.file}: the {key} is {shown(found, 300)}; edgellm knows BERT's own, {shown(expected)}"
            )
    for name, value in (("continuing_subword_prefix", CONTINUES), ("max_input_chars_per_word", LONGEST_WORD)):
        if model.values.get(name, value) != value:
            raise UnsupportedError(f"{file.file}: model.{name} is {shown(model.values[name])}; edgellm knows {value!r}")
