"""The pre-tokenizer's rule of a file: by the name that it gives, or else by its vocabulary.

A byte-level vocabulary shows how its words were cut when it was trained: no token reaches across a cut. Of the rules in
wide use, the one that cuts the fewest of its tokens is the one, and of those that cut none the finest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgellm.text.pretokenizers import PRETOKENIZERS, PreTokenizer, pretokenizer
from edgellm.text.vocabulary import PREFIX, TokenType, Vocabulary

DEFAULT = "default"  # of llama.cpp, for a vocabulary that no rule leaves whole
N_LOOKED_AT = 6000  # tokens, spread over the vocabulary
MOST_CUT = 0.03  # of a vocabulary's tokens that its own rule may cut: Qwen's has some that were not trained with it

# Rules in question, by a token that only their models have; the last are those of any other.
_CANDIDATES = (
    ("<\uff5cend▁of▁sentence\uff5c>".encode(), ("deepseek-llm", "deepseek-coder", "deepseek-v3")),
    (b"[INST]", ("tekken",)),
    (b"<|START_OF_TURN_TOKEN|>", ("command-r",)),
    (b">>TITLE<<", ("falcon",)),
    (b"", ("gpt-2", "smollm", "llama-bpe", "qwen2", "gpt-4o", "bloom")),
)
_BEGINS = (b"<|begin_of_text|>", b"<s>")  # tokens that a text gets in front by the habit of a rule

# What is cut to tell which of two rules cuts finer.
_PROBE = (
    "It's 1234567 O'CLOCK, isn't it?\r\n\n    return foo_bar(x) -> [\"a/b\"];//\n\t\tAbCd e\u0301te\u0301 हिनी "
    "2024-10-05... 漢字かな 안녕 !!\n"
)


def rule_of(vocabulary: Vocabulary) -> PreTokenizer:
    """The rule for a vocabulary of byte-level BPE.

    Raises UnsupportedError for a name that edgellm does not know. A rule that is not named is noted.
    """
    name = "gemma4" if vocabulary.kind == "gemma4" else vocabulary.text(f"{PREFIX}pre")
    if name:
        return pretokenizer(name)
    name = recognised(vocabulary)
    told = "its tokens are cut as" if name else "no rule fits its tokens, and they are cut by"
    vocabulary.notes.append(
        f"the file does not say how text is cut ({PREFIX}pre is missing); {told} {name or DEFAULT!r}, "
        "and if answers are odd, convert the model again"
    )
    rule = PRETOKENIZERS[name or DEFAULT]
    return replace(rule, add_bos=rule.add_bos and any(token in vocabulary.ids for token in _BEGINS))


def recognised(vocabulary: Vocabulary) -> str | None:
    """The name of the rule that the tokens of a vocabulary were made with, as far as they show it."""
    words = _words(vocabulary)
    names = next(names for token, names in _CANDIDATES if not token or token in vocabulary.ids)
    shares = {name: _share_cut(words, PRETOKENIZERS[name]) for name in names}
    best = min(names, key=lambda name: (shares[name], -len(PRETOKENIZERS[name].split(_PROBE))))
    return best if shares[best] <= MOST_CUT else None


def _share_cut(words: list[str], rule: PreTokenizer) -> float:
    return sum(len(rule.split(word)) > 1 for word in words) / max(1, len(words))


def _words(vocabulary: Vocabulary) -> list[str]:
    """Some tokens as they stand in texts, those that are whole characters."""
    from edgellm.text.bpe import BYTE_OF_CHAR

    normal = np.array(vocabulary.of_type(TokenType.NORMAL))
    spread = normal[np.linspace(0, len(normal) - 1, min(N_LOOKED_AT, len(normal))).astype(int)] if len(normal) else []
    found = []
    for token_id in spread:
        try:
            word = bytes(BYTE_OF_CHAR[char] for char in vocabulary.token(int(token_id)).decode()).decode()
        except (KeyError, UnicodeDecodeError):
            continue
        if len(word) > 1:
            found.append(word)
    return found
