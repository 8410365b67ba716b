"""How many tokens a text would have, with a vocabulary of some size that is learnt from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgellm.text import load_tokenizer
from edgellm.train.new.texts import TextFiles
from edgellm.train.new.vocabulary import TokenizerSettings, learn_vocabulary

LOOKED_AT = 1 << 22  # bytes of a text; of a longer one, pieces from all over it


@dataclass(frozen=True)
class Counted:
    """n_tokens of n_bytes of text; counted if it is short, and else reckoned from a part (`is_exact`)."""

    n_tokens: int
    n_bytes: int
    is_exact: bool


def count_tokens(text: TextFiles, n_vocab: int, progress: Callable[[int, int, str], None] | None = None) -> Counted:
    """Learns a byte-level BPE of n_vocab tokens from the text, and counts with it. Raises as `TextFiles` does."""
    sample = list(text.sample(LOOKED_AT))
    vocabulary = learn_vocabulary(TokenizerSettings(n_vocab=n_vocab), sample, progress)
    tokenizer = load_tokenizer(vocabulary.metadata)
    n_tokens = sum(len(tokenizer.encode(piece)) for piece in sample)
    n_bytes = sum(len(piece.encode()) for piece in sample)
    is_exact = text.n_bytes <= LOOKED_AT
    return Counted(n_tokens if is_exact else round(n_tokens / n_bytes * text.n_bytes), text.n_bytes, is_exact)
