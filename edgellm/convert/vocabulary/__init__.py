"""Tokenizers of checkpoints as metadata of GGUF files, and back."""

from edgellm.convert.vocabulary.reading import tokenizer_metadata
from edgellm.convert.vocabulary.writing import write_tokenizer

__all__ = ["tokenizer_metadata", "write_tokenizer"]
