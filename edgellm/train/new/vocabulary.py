"""The tokenizer of a new model: learnt from its text, or none but bytes; as metadata of a GGUF file.

bpe            byte-level byte-pair encoding, learnt here: any text is made of its tokens
sentencepiece  byte-pair encoding over characters, learnt by the `sentencepiece` package; other characters are bytes
bytes          each byte is a token, nothing is learnt: a character model for plain English
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgellm.checks import number, one_of, take, text, texts, whole_number, wrong
from edgellm.errors import UsageError
from edgellm.text.pretokenizers import PRETOKENIZERS
from edgellm.text.vocabulary import PREFIX, TokenType
from edgellm.train.new.merges import ALPHABET, Merge, count_words, learn_merges

KINDS = ("bpe", "sentencepiece", "bytes")
# Rules that cut at every line break and space, so that a long text may be read in pieces.
RULES = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "qwen35", "stablelm2", "tekken", "gpt-4o", "deepseek-v3",
         "command-r", "olmo")  # fmt: skip
END = "<|endoftext|>"
MOST_TOKENS = 1 << 18
MOST_TOKEN_CHARS = 128
SAMPLE_BYTES = 1 << 26
_SPM_ROLES = ("<unk>", "<s>", "</s>")
_SPM_LINE_BYTES = 1 << 24  # of a line that the package reads whole; it would leave longer ones out
_BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class TokenizerSettings:
    """How a new model's text becomes tokens.

    tokenizer:      its kind, one of KINDS.
    n_vocab:        tokens in all; of bytes there are always 256, and of a short text fewer may be found.
    pre:            for "bpe", how text is cut into words: a name of `tokenizer.ggml.pre`, one of RULES.
    special_tokens: further control tokens, such as <|im_start|>, beside the one that ends a text.
    chat_template:  a Jinja template for chats, or the name of a known one such as chatml, for a model that is later
                    taught to answer; None has none.
    sample_bytes:   of text that tokens are learnt from; of a longer one, pieces from all over it.
    character_coverage:  for "sentencepiece", the share of the text whose characters get tokens; others become bytes.

    Raises UsageError for a value that cannot be; `learn_vocabulary` does for values that do not fit together.
    """

    tokenizer: str = "bpe"
    n_vocab: int = 4096
    pre: str = "gpt-2"
    special_tokens: tuple[str, ...] = ()
    chat_template: str | None = None
    sample_bytes: int = SAMPLE_BYTES
    character_coverage: float = 0.9995

    def __post_init__(self) -> None:
        take(self, "tokenizer", one_of, KINDS)
        take(self, "n_vocab", whole_number, 1, MOST_TOKENS)
        take(self, "pre", one_of, RULES)
        take(self, "special_tokens", _special)
        take(self, "chat_template", _template, optional=True)
        take(self, "sample_bytes", whole_number, 1)
        take(self, "character_coverage", number, 0.5, 1)

    @property
    def n_fixed(self) -> int:
        """Tokens that there are before any is learnt."""
        roles = len(_SPM_ROLES) if self.tokenizer == "sentencepiece" else 1
        return roles + len(self.special_tokens) + 256

    @property
    def most_tokens(self) -> int:
        """Tokens that there are in the end, of a text that has enough for all."""
        return self.n_fixed if self.tokenizer == "bytes" else self.n_vocab


def _template(name: str, value: Any) -> str:
    """The text of a template, of which a known one may be named."""
    from edgellm.text import ChatTemplate
    from edgellm.text.known_templates import ALIASES, KNOWN_TEMPLATES

    source = text(name, value)
    if known := KNOWN_TEMPLATES.get(ALIASES.get(source, source)):
        return known.source
    if not ChatTemplate(source).takes_messages:
        expected = f"a Jinja text that writes the messages, or one of {', '.join((*KNOWN_TEMPLATES, *ALIASES))}"
        raise wrong(name, value, expected)
    return source


@dataclass(frozen=True)
class NewVocabulary:
    """What a GGUF file says of a tokenizer.

    metadata:  the keys `tokenizer.*`.
    n_vocab:   its tokens.
    notes:     what a person should know.
    """

    metadata: dict[str, Any]
    n_vocab: int
    notes: list[str]


def learn_vocabulary(
    settings: TokenizerSettings,
    sample: Iterable[str],
    progress: Callable[[int, int, str], None] | None = None,
) -> NewVocabulary:
    """The tokenizer that `settings` ask for, learnt from the pieces of a text. The same text gives the same one.

    progress:  (tokens done, tokens in all, what is done).

    Raises UsageError for fewer tokens than there are before any is learnt, or than the text needs.
    """
    if settings.tokenizer != "bytes" and settings.n_vocab < settings.n_fixed:
        raise wrong("n_vocab", settings.n_vocab, f"at least {settings.n_fixed}: all bytes and the control tokens")
    if settings.tokenizer == "sentencepiece":
        found = _sentencepiece(settings, sample)
    else:
        found = _byte_level(settings, sample, progress)
    if settings.chat_template is not None:
        found["tokenizer.chat_template"] = settings.chat_template
    n_vocab = len(found[f"{PREFIX}tokens"])
    notes = []
    if settings.tokenizer != "bytes" and n_vocab < settings.n_vocab:
        notes.append(f"the text gives {n_vocab} tokens, fewer than the {settings.n_vocab} that n_vocab allows")
    return NewVocabulary(found, n_vocab, notes)


def _byte_level(
    settings: TokenizerSettings, sample: Iterable[str], progress: Callable[[int, int, str], None] | None
) -> dict[str, Any]:
    control = [END, *settings.special_tokens]
    tokens = ALPHABET
    merges: list[Merge] = []
    if settings.tokenizer == "bpe":
        counts = count_words(sample, PRETOKENIZERS[settings.pre])
        told = (lambda done, total: progress(done, total, "learning tokens")) if progress else None
        tokens, merges = learn_merges(counts, settings.n_vocab - len(control), told)
    types = [TokenType.CONTROL] * len(control) + [TokenType.NORMAL] * len(tokens)
    return _keys(
        model="gpt2",
        pre=settings.pre,
        tokens=[*control, *tokens],
        token_type=np.array(types, np.int32),
        merges=[f"{left} {right}" for left, right in merges],
        bos_token_id=0,
        eos_token_id=0,
        add_bos_token=False,
        add_eos_token=False,
    )


def _sentencepiece(settings: TokenizerSettings, sample: Iterable[str]) -> dict[str, Any]:
    """Text stays as it is: nothing is normalized, no space is put in front, and line breaks are bytes."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(sample),
            model_writer=written,
            model_type="bpe",
            vocab_size=settings.n_vocab,
            byte_fallback=True,
            character_coverage=settings.character_coverage,
            control_symbols=list(settings.special_tokens),
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            max_sentence_length=_SPM_LINE_BYTES,
            split_digits=True,
            num_threads=1,  # the same tokens on every machine
            minloglevel=3,
        )
    except RuntimeError as problem:
        raise UsageError(_explained(settings, str(problem)), parameter="n_vocab") from None
    found = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    ids = range(found.get_piece_size())
    return _keys(
        model="llama",
        pre="default",
        tokens=[found.id_to_piece(i) for i in ids],
        scores=np.array([found.get_score(i) for i in ids], np.float32),
        token_type=np.array([_type(found, i) for i in ids], np.int32),
        bos_token_id=found.bos_id(),
        eos_token_id=found.eos_id(),
        unknown_token_id=found.unk_id(),
        add_bos_token=True,
        add_eos_token=False,
        add_space_prefix=False,
        remove_extra_whitespaces=False,
    )


def _special(name: str, value: Any) -> tuple[str, ...]:
    """Control tokens that differ from each other and from those that there are anyway."""
    found = texts(name, value)
    for token in found:
        taken = token in (END, *_SPM_ROLES, *_BYTE_NAMES) or found.count(token) > 1
        if taken or not token.strip() or len(token) > MOST_TOKEN_CHARS:
            raise wrong(name, token, "texts that differ and are no tokens already")
    return tuple(found)


def _lines(sample: Iterable[str]) -> Iterator[str]:
    for piece in sample:
        yield from (line for line in piece.split("\n") if line)


def _type(found: Any, token_id: int) -> TokenType:
    if found.is_unknown(token_id):
        return TokenType.UNKNOWN
    if found.is_control(token_id):
        return TokenType.CONTROL
    return TokenType.BYTE if found.is_byte(token_id) else TokenType.NORMAL


def _explained(settings: TokenizerSettings, problem: str) -> str:
    """The package's words for a vocabulary that the text cannot fill, in ours."""
    limit = re.search(r"<= ?(\d+)", problem)
    if limit:
        return f"n_vocab is {settings.n_vocab}; the text gives no more than {limit[1]} tokens"
    least = re.search(r"smaller than required_chars\D*(\d+) vs (\d+)", problem)
    if least:
        return (f"n_vocab is {settings.n_vocab}; the characters of the text alone need {least[2]} tokens. Choose more, "
                "or a smaller character_coverage")  # fmt: skip
    return f"sentencepiece cannot learn n_vocab {settings.n_vocab} tokens from this text: {' '.join(problem.split())}"


def _keys(**found: Any) -> dict[str, Any]:
    return {PREFIX + name: value for name, value in found.items()}
