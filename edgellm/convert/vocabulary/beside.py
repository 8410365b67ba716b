"""tokenizer.json beside SentencePiece's tokenizer.model: whether the two make the same ids of a text.

Where they do, the original tells more: scores and types of tokens, which nobody has to guess. Where they do not,
tokenizer.json is what `transformers` reads, and so what a model was last trained with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgellm.convert.vocabulary.files import shown
from edgellm.text import load_tokenizer
from edgellm.text.spm import SPACE
from edgellm.text.vocabulary import PREFIX, TokenType

_MOST_TOKENS = 2000  # of a vocabulary that are tried, evenly over it
_LONGEST_RUN = 24  # of spaces and line ends


def differences(of_model: Mapping[str, Any], of_json: Mapping[str, Any]) -> list[str]:
    """A note on what the two spell otherwise, for their metadata; nothing where all that is tried has equal ids.

    Tried are runs of spaces, tabs and line ends, user-defined tokens, and others over the whole vocabulary, in texts as
    people write them: without U+2581.
    """
    first, second = load_tokenizer(of_model), load_tokenizer(of_json)
    texts = list(dict.fromkeys(_texts(of_model)))
    differing = [text for text in texts if first.encode(text) != second.encode(text)]
    if not differing:
        return []
    text = min(differing, key=len)
    spelled = [shown([tokenizer.token_name(i) for i in tokenizer.encode(text)], 60) for tokenizer in (first, second)]
    return [
        f"tokenizer.model and tokenizer.json disagree on {len(differing)} of {len(texts)} texts: {shown(text, 40)} is "
        f"{spelled[0]} in the one and {spelled[1]} in the other; tokenizer.json counts, as in transformers: take it "
        "away if the model was trained with tokenizer.model"
    ]


def _texts(metadata: Mapping[str, Any]) -> Iterator[str]:
    for char in " \t\n":
        for n in range(1, _LONGEST_RUN + 1):
            yield from (char * n, f"a{char * n}b")
    tokens, types = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    step = max(1, len(tokens) // _MOST_TOKENS)
    for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if kind == TokenType.USER_DEFINED or (kind == TokenType.NORMAL and token_id % step == 0):
            text = token.replace(SPACE, " ")
            yield from (text, f"a{text}b")
