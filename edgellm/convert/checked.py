"""Whether what is written can be used: it is opened again before it takes its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgellm.arch import architecture_of
from edgellm.engine.opening import check_vocabulary
from edgellm.errors import EdgellmError, FormatError
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.text import ChatTemplate, load_tokenizer

Check = Callable[[GGUFFile], None]


def check_model(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise what loading a model with these would, without its weights: FormatError or UnsupportedError.

    That goes through the forward pass, and through the whole vocabulary, which a tokenizer reads when it is first used.
    """
    entry = architecture_of(metadata)
    entry.check(entry.configure(metadata), tensors)
    tokenizer = load_tokenizer(metadata)
    check_vocabulary(tensors, tokenizer)
    tokenizer.encode("a", add_special=True, parse_special=True)
    ChatTemplate.from_metadata(metadata, tokenizer)


def is_runnable(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether edgellm runs it: quantizing also takes families that it does not run, adapters and vocabularies."""
    try:
        check_model(metadata, tensors)
    except EdgellmError:
        return False
    return True


def runs_again(file: GGUFFile) -> None:
    """The check of a file that was written and shall run. Raises FormatError naming the file."""
    try:
        check_model(file.metadata, file.tensors)
    except EdgellmError as problem:
        raise FormatError(f"{file.path}: what was written could not be run, so it was not kept: {problem}") from None
