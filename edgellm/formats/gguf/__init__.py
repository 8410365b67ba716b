"""GGUF, the file format of quantized models: `GGUFFile.open(path)` and `GGUFWriter(...).write()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgellm.formats.gguf.file import GGUFFile, get_value
from edgellm.formats.gguf.strings import StringArray

if TYPE_CHECKING:
    from edgellm.formats.gguf.writer import GGUFWriter

__all__ = ["GGUFFile", "GGUFWriter", "StringArray", "get_value"]


def __getattr__(name: str) -> Any:
    # Running a model never writes one: what the writer needs is not imported for it.
    if name == "GGUFWriter":
        from edgellm.formats.gguf.writer import GGUFWriter

        return GGUFWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
