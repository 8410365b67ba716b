"""What data needs to know of a model: its tokenizer, its chat template, and the tokens that it has rows for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgellm import checks
from edgellm.engine.model import Model
from edgellm.engine.opening import check_vocabulary
from edgellm.errors import FileProblem, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import ChatTemplate, Tokenizer, load_tokenizer
from edgellm.text.choosing_template import chosen_template

NONE = "none"


@dataclass(frozen=True)
class Vocabulary:
    """How texts and chats become tokens of a model.

    template:  the chat template to use; None for plain texts.
    n_rows:    tokens that have an embedding; those from there on cannot be in a text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    n_rows: int

    @classmethod
    def of(cls, model: Model, template: str | Path | None = None) -> Vocabulary:
        """That of a loaded model. template: as for `read_vocabulary`."""
        own = _chosen_template(template, model.chat_template, model.metadata, model.tokenizer)
        return cls(model.tokenizer, own, model.n_vocab)


def read_vocabulary(path: Path, template: str | Path | None = None) -> Vocabulary:
    """The vocabulary of a GGUF file. No weight is read.

    template:  None for the file's own, "none" for no template; else as for `chosen_template`: a file that holds one, or
               the name of a known one.
    Raises what `edgellm.load` raises for a file whose vocabulary cannot be used, and what `chosen_template` does.
    """
    with GGUFFile.open(path) as file:
        try:
            tokenizer = load_tokenizer(file.metadata)
            check_vocabulary(file.tensors, tokenizer)
            own = ChatTemplate.from_metadata(file.metadata, tokenizer)
            embedding = file.tensors.get("token_embd.weight")
        except FileProblem as problem:
            raise type(problem)(f"{path}: {problem}") from None
        n_rows = embedding.shape[0] if embedding is not None else tokenizer.n_vocab
        return Vocabulary(tokenizer, _chosen_template(template, own, file.metadata, tokenizer), n_rows)


def _chosen_template(
    choice: str | Path | None, own: ChatTemplate | None, metadata: Mapping[str, Any], tokenizer: Tokenizer
) -> ChatTemplate | None:
    if choice is None:
        return own
    if choice == NONE:
        return None
    name = str(checks.path("template", choice, f"a file with a chat template, the name of one, or {NONE!r}"))
    template = chosen_template(metadata, tokenizer, name)
    if template is not None and not template.takes_messages:
        raise UsageError(
            f"template {name:.200} writes nothing of what messages say; expected a template of chats",
            parameter="template",
        )
    return template
