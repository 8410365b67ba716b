"""A model on its way into a GGUF file, whatever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.convert.parts import Part
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS


@dataclass
class Source:
    """What the file will hold: its metadata, and its tensors in their order.

    notes:  what a person should know: parts that were left out, guesses that were made.
    close:  lets go of the files behind the tensors.
    """

    metadata: dict[str, Any]
    parts: Sequence[Part]
    notes: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def tensor_of(name: str, x: NDArray[np.floating[Any]]) -> Tensor:
    """An array as a tensor of type F32."""
    raw = np.ascontiguousarray(x, "<f4").view(np.uint8)
    return Tensor(name, x.shape, FORMATS["F32"], raw.reshape(-1, x.shape[-1] * 4) if x.ndim > 1 else raw)
