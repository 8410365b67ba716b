"""A file's tensors, by the names that GGUF gives them: `w.blk[0].attn_q` is `blk.0.attn_q.weight`."""

from __future__ import annotations

from collections.abc import Mapping

from edgellm.errors import FormatError
from edgellm.formats.tensor import Tensor


class Weights:
    """The tensors whose names start with `prefix`; every one is checked for its shape as it is taken.

    `used` collects the names that were taken, so that a loader can tell what a family left over.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", used: set[str] | None = None) -> None:
        self._tensors = tensors
        self._prefix = prefix
        self.used: set[str] = set() if used is None else used

    def block(self, layer: int) -> Weights:
        """The tensors of a layer."""
        return Weights(self._tensors, f"{self._prefix}blk.{layer}.", self.used)

    def has(self, name: str) -> bool:
        return f"{self._prefix}{name}.weight" in self._tensors

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor `name`.weight; a size of None may be any. Raises FormatError when it is missing or misshapen."""
        full = f"{self._prefix}{name}.weight"
        tensor = self._tensors.get(full)
        if tensor is None:
            raise FormatError(f"the file has no tensor {full!r}, which its architecture needs")
        fits = len(tensor.shape) == len(shape) and all(
            expected in (None, size) for size, expected in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise FormatError(f"tensor {full!r} has shape {list(tensor.shape)}; expected [{wanted}]")
        self.used.add(full)
        return tensor
