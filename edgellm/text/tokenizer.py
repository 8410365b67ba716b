"""Text to token ids and back, for the tokenizer that a GGUF file describes."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from edgellm import checks
from edgellm.errors import FormatError, UnsupportedError
from edgellm.text.bpe import BytePairModel
from edgellm.text.plain_bpe import PlainPairModel
from edgellm.text.provenance import has_provenance, like
from edgellm.text.rule import rule_of
from edgellm.text.special_tokens import SpecialTokens
from edgellm.text.spm import SPACE, SentencePieceModel
from edgellm.text.stream import StreamDecoder
from edgellm.text.vocabulary import PREFIX, ROLES, TokenType, Vocabulary, kind_of

KINDS = ("gpt2", "llama", "bert", "gemma4", "t5")
_STEERS = (TokenType.CONTROL, TokenType.UNKNOWN)
KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # Phi-3's other special tokens swallow the white space behind them
_FRAME = re.compile("<\\|.+\\|>|<\uff5c.+\uff5c>|<(start|end)_of_turn>|<\\|turn>|<turn\\|>")


class Model(Protocol):
    """What turns stretches of plain text into ids: one class for each `tokenizer.ggml.model`.

    begin, end:      ids that `add_special` puts around a text.
    space_prefix:    a text begins with a space that is not its own; decoding takes it away.
    prefix_once:     only what begins the whole text does, not what follows a control token.
    broken:          how bytes that are no characters are decoded: "replace", or EACH of `text/stream.py`.
    seeks_spaced:    user-defined tokens are looked for after spaces have become "▁".
    normalize:       gives a prompt of a chat template back with its provenance (`text/provenance.py`).
    encode:          the ids of each of some normalized texts, which special tokens stand between. at_start: the first
                     begins the whole text.
    """

    space_prefix: bool
    prefix_once: bool
    seeks_spaced: bool
    broken: str

    @property
    def begin(self) -> list[int]: ...

    @property
    def end(self) -> list[int]: ...

    def normalize(self, text: str) -> str: ...

    def encode(self, texts: list[str], at_start: bool) -> Iterable[list[int]]: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class Tokenizer:
    """Encodes and decodes with one vocabulary; made by `load_tokenizer`.

    n_vocab:         number of tokens.
    bos_id, eos_id:  the tokens at the beginning and the end of a text, or None.
    """

    def __init__(self, vocabulary: Vocabulary, model: Model, architecture: str | None) -> None:
        self._vocabulary = vocabulary
        self._model = model
        self._architecture = architecture
        self.n_vocab = vocabulary.n
        self.bos_id = vocabulary.role_id("bos")
        self.eos_id = vocabulary.role_id("eos")
        self._last_with: tuple[tuple[str, ...], list[int]] = ((), [])
        self._written: dict[int, bytes] = {}  # the bytes of tokens that were decoded one by one, but for control tokens

    def encode(self, text: str, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """The token ids of a text.

        add_special:    put the tokens around it that the model expects (bos, eos), as its file says.
        parse_special:  take `<|im_end|>` and the like in the text for the control tokens of that name. A chat
                        template needs this; text that somebody typed must not have it. Of a prompt that
                        `ChatTemplate.render` made, only what the template wrote is taken so.

        A lone surrogate, which no encoding can hold, becomes U+FFFD.
        """
        checks.text("text", text)
        if not _is_sound(text):
            text = like(text, re.sub("[\ud800-\udfff]", "\ufffd", text))
        ids = self._model.begin.copy() if add_special else []
        pieces = self._pieces(text, () if parse_special else self._steering)
        texts = [piece for piece in pieces if isinstance(piece, str)]
        encoded = iter(self._model.encode(texts, at_start=texts[:1] == pieces[:1]))
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += next(encoded)
        if add_special:
            ids += self._model.end
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """The token ids of two texts in one, as cross-encoders read them, and the part that each belongs to, 0 or 1.

        BERT and its like have one separator between the two, RoBERTa and its like two, and no parts.
        """
        begin, end = self._model.begin, self._model.end
        twice = bool(end) and self.token_name(end[0]) == "</s>"
        head = [*begin, *self.encode(first), *end, *(end if twice else ())]
        tail = [*self.encode(second), *end]
        apart = self._vocabulary.text(f"{PREFIX}model") == "bert"
        return head + tail, [0] * len(head) + [int(apart)] * len(tail)

    @property
    def n_end(self) -> int:
        """Tokens that `add_special` puts behind a text."""
        return len(self._model.end)

    def _pieces(self, text: str, plain: Collection[int]) -> list[str | int]:
        """The text in order, as normalized stretches and ids of the tokens between them.

        As in `tokenizers`, some tokens are looked for in the text as it is, and then others in what is left of it,
        once it is normalized. plain: ids of tokens that are only text where they occur.

        A text with provenance has it until no more tokens are looked for.
        """
        seeks_more = bool(self._normalized_tokens)
        pieces: list[str | int] = []
        for piece in self._exact_tokens.split(text, plain):
            if isinstance(piece, int):
                pieces.append(piece)
            elif seeks_more:
                parts = self._normalized_tokens.split(self._model.normalize(piece), plain)
                pieces += (
                    (part if isinstance(part, int) else str(part) for part in parts) if has_provenance(piece) else parts
                )
            else:
                pieces.append(self._model.normalize(str(piece)))
        return pieces

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of some tokens, undoing `encode`; bytes that are not UTF-8 become U+FFFD.

        Where tokens stand for single bytes, as in SentencePiece, each such byte does. `tokenizers` does that as well,
        but also to the whole characters beside it, which no stream of tokens could know of in time.

        `skip_special` leaves control tokens out.
        """
        pieces: list[bytes] = []
        begins = self._model.space_prefix
        for token_id in checks.token_ids("ids", ids, self.n_vocab):
            piece = self._model.token_bytes(token_id)
            if self._is_control(token_id):
                if skip_special:
                    begins |= self._model.space_prefix and not self._model.prefix_once
                    continue
                begins = self._model.space_prefix and not self._model.prefix_once
            elif begins:
                piece = piece.removeprefix(b" ")
                begins = False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", self._model.broken)

    def stream(
        self, skip_special: bool = True, after: int | None = None, showing: Collection[int] = ()
    ) -> StreamDecoder:
        """A decoder for tokens that continue a text: a space in front stays, control tokens show nothing.

        after:  the token before them. When it is a control token (bos, say), a text begins, and the space that is
                not its own is left out, as `decode` does.
        showing: control tokens that show their names all the same.
        """
        begins = after is not None and self._model.space_prefix and self._is_control(after)

        def shown(token_id: int) -> bytes | None:
            if (known := self._written.get(token_id)) is not None:
                return known
            if self._is_control(token_id):
                if token_id in showing:
                    return self.token_name(token_id).encode()
                return None if skip_special else self.token_bytes(token_id)
            self._written[token_id] = result = self.token_bytes(token_id)
            return result

        return StreamDecoder(shown, begins, self._model.broken)

    @property
    def texts_of_tokens(self) -> list[bytes]:
        """What every token shows in a text, by its id; control tokens show nothing."""
        return self._shown

    @cached_property
    def control_ids(self) -> list[int]:
        """The tokens that no text makes, in order."""
        return sorted(self._vocabulary.of_type(TokenType.CONTROL))

    def encode_inside(self, text: str, parse_special: bool = False) -> list[int]:
        """The tokens of a text that stands inside of another one: nothing is put in front of it.

        Where a tokenizer has no such way to write it, they are those of the text by itself.
        """
        ids = self.encode(text, parse_special=parse_special)
        if self._model.space_prefix:
            before = "\n"
            longer = self.encode(before + text, parse_special=parse_special)
            begun = b""
            for n, token_id in enumerate(longer):
                begun += self.token_bytes(token_id)
                if begun.lstrip(b" ") == before.encode():
                    return longer[n + 1 :]
        return ids

    def with_control(self, text: str) -> list[str | int]:
        """A text of a chat template, its control tokens as their ids and what stands between as it is."""
        found: list[str | int] = []
        for piece in self._exact_tokens.split(text, ()):
            if isinstance(piece, int) and not self._is_control(piece):
                piece = self.token_name(piece)
            if isinstance(piece, str) and found and isinstance(found[-1], str):
                found[-1] += piece
            elif piece != "":
                found.append(piece)
        return found

    def ids_with_any(self, texts: tuple[str, ...]) -> list[int]:
        """The tokens whose own text has one of these texts in it, in order; control tokens show none.

        Several answers to one question ask for the same, so the last result is kept.
        """
        of, found = self._last_with
        if of != texts:
            found = self._find_with(texts)
            self._last_with = texts, found
        return found

    def _find_with(self, texts: tuple[str, ...]) -> list[int]:
        """All tokens are searched as one text, which takes a fraction of the time of a look at each of them.

        Between them stands a byte that no text has, so what is found is always in a single token.
        """
        if not texts:
            return []
        joined = b"\xff".join(self._shown)
        starts = [0, *itertools.accumulate(len(shown) + 1 for shown in self._shown)]
        found: set[int] = set()
        for wanted in {text.encode() for text in texts}:
            at = joined.find(wanted)
            while at >= 0:
                token_id = bisect.bisect_right(starts, at) - 1
                found.add(token_id)
                at = joined.find(wanted, starts[token_id + 1])
        return sorted(found)

    @cached_property
    def _shown(self) -> list[bytes]:
        """What every token shows in a text; of a quarter of a million tokens, this takes a third of a second."""
        control = frozenset(self.control_ids)

        def shown(token_id: int) -> bytes:
            try:
                return b"" if token_id in control else self.token_bytes(token_id)
            except FormatError:  # whoever uses that token is told
                return b""

        return [shown(token_id) for token_id in range(self.n_vocab)]

    def is_text(self, token_id: int) -> bool:
        """Whether texts can make a token that name no control tokens."""
        made = token_id in (self._vocabulary.marked("made") or ())
        return made or self._vocabulary.type_of(token_id) in (TokenType.NORMAL, TokenType.USER_DEFINED)

    def _is_control(self, token_id: int) -> bool:
        return self._vocabulary.is_type(token_id, TokenType.CONTROL)

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; not always whole characters."""
        return self._model.token_bytes(token_id)

    def name_bytes(self, token_id: int) -> bytes:
        """The same, but a control token has its name."""
        return self.token_name(token_id).encode() if self._is_control(token_id) else self.token_bytes(token_id)

    def token_name(self, token_id: int) -> str:
        """A token as the file spells it."""
        return self._vocabulary.token(token_id).decode()

    @property
    def n_without_added(self) -> int:
        """Number of tokens up to the last that is no added one (control, user-defined or unused)."""
        added = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
        ordinary = np.flatnonzero(~np.isin(self._vocabulary.types, added))
        return int(ordinary[-1]) + 1 if len(ordinary) else 0

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """The spelling of each token with a role, under the name that chat templates use: bos_token, ..."""
        roles = {"unk": "unknown", "pad": "padding", "sep": "seperator"}  # GGUF's names, where they differ
        names = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
        ids = {name: self._vocabulary.role_id(roles.get(name, name)) for name in names}
        return {f"{name}_token": self.token_name(i) for name, i in ids.items() if i is not None}

    @property
    def kind(self) -> str:
        """`tokenizer.ggml.model`: "gpt2", "llama", "bert", ..."""
        return self._vocabulary.kind

    def has_special(self, text: str) -> bool:
        """Whether a token that is set apart from text is spelled so."""
        return text in self._added

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends a generated answer: end of text, of turn, of message."""
        return self._vocabulary.end_ids

    @property
    def notes(self) -> list[str]:
        """What a person should know: what the file leaves out or has wrong, and what is done instead."""
        _ = self.stop_ids, self._model.begin, self._model.end, self.special_tokens
        return list(self._vocabulary.notes)

    @cached_property
    def _steering(self) -> frozenset[int]:
        """The tokens that no text makes unless it may name control tokens."""
        return frozenset(self._vocabulary.of_type(*_STEERS))

    @cached_property
    def _control(self) -> frozenset[int]:
        """The tokens that no text of a chat may become: all that frame texts, however the file types them."""
        found = self._steering | self.stop_ids
        found |= {i for i in map(self._vocabulary.role_id, ROLES) if i is not None}
        named = self._vocabulary.spelled(TokenType.USER_DEFINED)
        return found | {token_id for token, token_id in named.items() if _FRAME.fullmatch(token)}

    @cached_property
    def _added(self) -> dict[str, int]:
        """The tokens that stand in a text as they are, by their spelling."""
        return self._vocabulary.spelled(*_STEERS, TokenType.USER_DEFINED)

    @cached_property
    def _exact_tokens(self) -> SpecialTokens:
        """The tokens that are found in a text as it is."""
        return self._found_as(lambda text: text, normalized=False)

    @cached_property
    def _normalized_tokens(self) -> SpecialTokens:
        """The tokens that are found in a normalized text, where they are spelled as it is."""
        if self._model.seeks_spaced:
            return self._found_as(lambda text: text.replace(" ", SPACE), normalized=True)
        return self._found_as(self._model.normalize, normalized=True)

    @property
    def vanishing(self) -> list[str]:
        """The tokens to be found in a normalized text of which normalizing leaves nothing: they cannot be found."""
        return [
            text
            for text, token_id in self._added.items()
            if token_id in self._normalized_ids and not self._model.seeks_spaced and not self._model.normalize(text)
        ]

    def _found_as(self, spelling: Callable[[str], str], normalized: bool) -> SpecialTokens:
        ids: dict[str, int] = {}
        also = {self.token_name(i): i for i in self._vocabulary.marked("also_added") or ()}
        for text, token_id in (also | self._added).items():
            if (token_id in self._normalized_ids) == normalized and (spelled := spelling(text)):
                ids.setdefault(spelled, token_id)
        marked = self._vocabulary.marked
        rstrip = marked("rstrip")
        # GGUF does not say that the special tokens of Phi-3 swallow the white space behind them.
        if rstrip is None and self._architecture == "phi3" and not normalized:
            rstrip = frozenset(i for text, i in ids.items() if text not in KEEPS_SPACE)
        nothing: frozenset[int] = frozenset()
        flags = (marked("lstrip") or nothing, rstrip or nothing, marked("single_word") or nothing)
        return SpecialTokens(ids, *flags, self._control)

    @cached_property
    def _normalized_ids(self) -> frozenset[int]:
        if self._model.seeks_spaced:
            return frozenset(self._vocabulary.of_type(TokenType.USER_DEFINED))
        return self._vocabulary.marked("normalized") or frozenset()


def load_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata of a GGUF file describes (keys `tokenizer.ggml.*`).

    String arrays may be lazy sequences that offer `len` and `as_bytes()`, number arrays are NumPy arrays.
    Raises FormatError for a vocabulary that breaks the rules, UnsupportedError for a kind of tokenizer or a
    pre-tokenizer that edgellm lacks. What can only be found by reading every token (duplicates, merges that
    make no token) is raised by the first `encode`, and what is not needed is only told (`notes`).
    """
    kind = _name(metadata)
    if kind not in KINDS:
        raise UnsupportedError(f"the tokenizer {kind!r:.60} is not supported; edgellm knows {', '.join(KINDS)}")
    vocabulary = Vocabulary(metadata)
    for role in ("bos", "eos"):
        vocabulary.flag(f"add_{role}_token", False)  # of the wrong type, it is an error at once
    model: Model
    if kind in ("gpt2", "gemma4"):
        rule = rule_of(vocabulary)
        model = BytePairModel(vocabulary, rule) if rule.spells_bytes else PlainPairModel(vocabulary, rule)
    elif kind == "llama":
        model = SentencePieceModel(vocabulary)
    elif kind == "t5":
        from edgellm.text.unigram import UnigramModel  # seldom needed

        model = UnigramModel(vocabulary)
    else:
        from edgellm.text.wordpiece import WordPieceModel  # seldom needed

        model = WordPieceModel(vocabulary)
    return Tokenizer(vocabulary, model, vocabulary.text("general.architecture"))


def _is_sound(text: str) -> bool:
    """Whether a text has no lone surrogates; that UTF-8 can hold it is told much sooner than by looking for them."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _name(metadata: Mapping[str, Any]) -> str:
    name = metadata.get(f"{PREFIX}model")
    if not isinstance(name, str):
        found = "missing" if name is None else kind_of(name)
        raise FormatError(f"{PREFIX}model is {found}; expected the name of the kind of tokenizer")
    return name
