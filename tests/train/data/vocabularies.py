"""Vocabularies and templates that the tests of training data share."""

from __future__ import annotations

from functools import cache
from typing import Any

from edgellm.text import ChatTemplate, Tokenizer, load_tokenizer
from edgellm.train.data.spelling import spelled
from edgellm.train.data.vocabulary import Vocabulary
from edgellm.train.documents import Documents
from tests.text import oracles

SPECIAL = {"bos_token": "<s>", "eos_token": "<|end|>"}

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def tokenizer() -> Tokenizer:
    """A small byte-level one, in which <|end|>, <|im_start|> and <|im_end|> are control tokens."""
    return load_tokenizer(oracles.train_byte_level("gpt-2"))


def vocabulary(template: str | None = CHATML) -> Vocabulary:
    tokens = tokenizer()
    return Vocabulary(tokens, ChatTemplate(template, SPECIAL) if template else None, tokens.n_vocab)


def marked(document: Documents, tokens: Tokenizer | None = None) -> str:
    """A document's text with what is learnt between [[ and ]]."""
    pieces = spelled(document, tokens or tokenizer())
    return "".join(f"[[{text}]]" if learnt else text for text, learnt in pieces)


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def model(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}
