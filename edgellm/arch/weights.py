"""A file's tensors, by the names that GGUF gives them: `w.blk[0].attn_q` is `blk.0.attn_q.weight`."""

from __future__ import annotations

from collections.abc import Mapping

from edgellm.errors import FormatError, UnsupportedError
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

    def named(self, name: str) -> str:
        """A name as it is called here: `attn_out` of layer 3 is `blk.3.attn_out`."""
        return f"{self._prefix}{name}"

    def has(self, name: str) -> bool:
        return f"{self._prefix}{name}.weight" in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor `name`.weight as it is; empty when there is none."""
        tensor = self._tensors.get(f"{self._prefix}{name}.weight")
        return () if tensor is None else tensor.shape

    def pass_over(self, *names: str) -> None:
        """Tensors, and their biases, that the file may hold though nothing reads them."""
        self.used |= {f"{self._prefix}{name}.{part}" for name in names for part in ("weight", "bias")}

    def take(self, name: str, *shape: int | None) -> Tensor:
        """The tensor `name`.weight; a size of None may be any. Raises FormatError when it is missing or misshapen."""
        return self._take(f"{self._prefix}{name}.weight", *shape)

    def take_whole(self, name: str, *shape: int | None) -> Tensor:
        """The same for a tensor whose name has another ending than .weight, or none."""
        return self._take(f"{self._prefix}{name}", *shape)

    def take_row(self, name: str, size: int) -> Tensor:
        """A matrix of one row, which files may hold as a vector."""
        tensor = self._tensors.get(f"{self._prefix}{name}.weight")
        if tensor is None or len(tensor.shape) != 1:
            return self.take(name, 1, size)
        return self.take(name, size)

    def n_rows(self, name: str) -> int:
        """Rows of the matrix `name`.weight."""
        return self.take(name, None, None).shape[0]

    def bias(self, name: str, *shape: int) -> Tensor | None:
        """The tensor `name`.bias, where the file has one."""
        full = f"{self._prefix}{name}.bias"
        return self._take(full, *shape) if full in self._tensors else None

    def scale(self, name: str, *shape: int) -> Tensor | None:
        """The tensor `name`.scale, where the file has one."""
        full = f"{self._prefix}{name}.scale"
        return self._take(full, *shape) if full in self._tensors else None

    def _take(self, full: str, *shape: int | None) -> Tensor:
        tensor = self._tensors.get(full)
        if tensor is None:
            single = full.replace("_exps.", ".0.")
            if single != full and single in self._tensors:
                raise UnsupportedError(
                    f"the file has a tensor for each expert ({single!r} and so on), as files of before April 2024; "
                    f"edgellm runs those that hold all experts of a layer in one ({full!r}): take a newer file of the "
                    "model, or convert its checkpoint"
                )
            raise FormatError(f"the file has no tensor {full!r}, which its architecture needs")
        fits = len(tensor.shape) == len(shape) and all(
            expected in (None, size) for size, expected in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise FormatError(f"tensor {full!r} has shape {list(tensor.shape)}; expected [{wanted}]")
        self.used.add(full)
        return tensor

    def pass_over_layers(self, layers: range) -> None:
        """Take all tensors of layers that are not run, whatever they are."""
        prefixes = tuple(f"{self._prefix}blk.{layer}." for layer in layers)
        self.used |= {name for name in self._tensors if name.startswith(prefixes)} if prefixes else set()

    def refuse_the_rest(self, architecture: str) -> None:
        """UnsupportedError for a tensor that was not taken: without its bias or expert, a model says something else."""
        left = [name for name in self._tensors if name not in self.used]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise UnsupportedError(f"edgellm's {architecture} has no place for tensor {left[0]!r}{more}")
