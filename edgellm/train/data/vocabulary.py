"""What data needs to know of a model: its tokenizer, its chat template, and the tokens that it has rows for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgellm import checks
from edgellm.engine.model import Model
from edgellm.engine.opening import check_vocabulary
from edgellm.errors import FileProblem, FormatError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import ChatTemplate, Tokenizer, load_tokenizer
from edgellm.text.chat_template import LONGEST_SOURCE

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
        own = _chosen_template(template, model.chat_template, model.tokenizer)
        return cls(model.tokenizer, own, model.n_vocab)


def read_vocabulary(path: Path, template: str | Path | None = None) -> Vocabulary:
    """The vocabulary of a GGUF file. No weight is read.

    template:  None for the file's own, "none" for no template, or a file that holds one.
    Raises what `edgellm.load` raises for a file whose vocabulary cannot be used, FormatError for a template that is no
    text, OSError for one that cannot be read.
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
        return Vocabulary(tokenizer, _chosen_template(template, own, tokenizer), n_rows)


def _chosen_template(choice: str | Path | None, own: ChatTemplate | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    if choice is None:
        return own
    if choice == NONE:
        return None
    path = checks.path("template", choice, f"a file with a chat template, or {NONE!r}")
    with open(path, "rb") as file:
        raw = file.read(4 * LONGEST_SOURCE)
    try:
        return ChatTemplate(raw.decode("utf-8-sig"), tokenizer.special_tokens)
    except UnicodeDecodeError:
        raise FormatError(f"{path} is no chat template: it is not UTF-8 text") from None
