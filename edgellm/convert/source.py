"""A model on its way into a GGUF file, whatever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgellm.convert.parts import Part


@dataclass
class Source:
    """What the file will hold: its metadata, and its tensors in their order.

    notes:  what a person should know: parts that were left out, guesses that were made.
    close:  closes the files behind the tensors.
    keeps_types:  whether tensors are in the types that they shall have: those of a checkpoint quantized already.
    """

    metadata: dict[str, Any]
    parts: Sequence[Part]
    notes: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None
    keeps_types: bool = False

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
