"""What opening a model begins with: the file that a name means, how much of a text it may hold, its vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgellm import checks
from edgellm.errors import FileProblem, FormatError, MemoryLimitError, UsageError
from edgellm.files import existing_file
from edgellm.formats.gguf import GGUFFile, StringArray
from edgellm.formats.tensor import Tensor
from edgellm.params import DEFAULT_CONTEXT_LIMIT, RuntimeConfig
from edgellm.text import Tokenizer, load_tokenizer


def resolve(model: str | os.PathLike[str]) -> Path:
    """The file that a path or a name means."""
    checks.path("model", model, "a path or the name of a model")
    if file := existing_file(model):
        return file
    from edgellm import hub  # a path needs no names of models

    return hub.resolve(model)


def fetched(model: str | os.PathLike[str], progress: Callable[[int, int, str], None] | None) -> Path:
    """The same; a model that has a name and is not on this machine is fetched first. Raises what `hub.pull` raises."""
    try:
        return resolve(model)
    except FileProblem as problem:
        from edgellm import hub

        if not isinstance(problem, hub.MissingModel):
            raise
        return hub.pull(os.fspath(model), progress)


def open_file(path: Path) -> GGUFFile:
    try:
        return GGUFFile.open(path)
    except MemoryError:
        raise MemoryLimitError(f"{path}: there is not enough memory to open it") from None


def context_of(wanted: int | None, n_ctx_train: int) -> int:
    if wanted is None:
        return min(n_ctx_train, DEFAULT_CONTEXT_LIMIT)
    if wanted > n_ctx_train:
        raise UsageError(
            f"a context of {wanted} tokens was asked for; this model was trained on {n_ctx_train}: "
            f"choose n_ctx up to that",
            parameter="n_ctx",
        )
    return wanted


def in_words(runtime: RuntimeConfig) -> str:
    """What was asked for that takes memory, for an error."""
    context = "the context that it has by itself" if runtime.n_ctx is None else f"a context of {runtime.n_ctx} tokens"
    return f"{context} and {runtime.n_batch} tokens at a time"


def check_vocabulary(tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
    """Raise FormatError unless every token has an embedding, and every logit a token.

    Added tokens may come after the last row: people add a padding token and never give it one. No prompt can hold such
    a token (see `Model.logits`), and as it has no logit, no answer does.
    """
    embedding = tensors.get("token_embd.weight")
    n_rows = embedding.shape[0] if embedding is not None and embedding.shape else tokenizer.n_vocab
    if n_rows == tokenizer.n_vocab:
        return  # as nearly all files have it; no token was looked at
    if not tokenizer.n_without_added <= n_rows <= tokenizer.n_vocab:
        raise FormatError(
            f"the vocabulary has {tokenizer.n_vocab} tokens and token_embd.weight {n_rows} rows; expected as many"
        )


def read_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file or catalogue model; the file may hold a vocabulary only.

    Raises FileProblem (or its FormatError, UnsupportedError) for a file without a tokenizer that edgellm knows.
    """
    with open_file(resolve(path)) as file:
        # A tokenizer may be kept for long, and the file replaced meanwhile.
        is_array = (StringArray, np.ndarray)
        own = {key: value.copy() if isinstance(value, is_array) else value for key, value in file.metadata.items()}
    return load_tokenizer(own)
