"""What a program is made of: buffers in memory, and ops that read and write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from edgellm.formats.tensor import Tensor
from edgellm.kernels.group_sums import GroupSums
from edgellm.kernels.records import ROW_ALIGN
from edgellm.kernels.registry import Kernel
from edgellm.kernels.schema import Schema

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What may change from run to run, by name: "tokens", "tasks" of each kind of attention, ...
Counts = Mapping[str, int]

# Counts of all tokens of a batch, or of none: attention is computed in one of two ways, see `fusion.by_token`.
BY_TOKEN, TOGETHER = "tokens one by one", "tokens together"


@dataclass(eq=False)
class Rows:
    """Rows of float32 activations, one for each token of the batch.

    width:   numbers that mean something. stride: numbers from one row to the next.
    """

    width: int
    name: str = ""

    @property
    def stride(self) -> int:
        return -(-self.width // ROW_ALIGN) * ROW_ALIGN

    @property
    def token_bytes(self) -> int:
        return self.stride * 4


@dataclass(eq=False)
class Quantized:
    """Rows as int8 in groups of 32, with scales and sums, in planes (see `kernels.records.QUANTIZED`).

    sums:  those that somebody needs.
    """

    width: int
    name: str = ""
    n_planes: int = 1
    sums: set[GroupSums] = field(default_factory=set)

    @property
    def parts(self) -> dict[str, int]:
        """Bytes for each token of each of the arrays, which lie one behind the other."""
        width = self.width
        sums = {kind.field: 4 * width // kind.scale_group for kind in sorted(self.sums)}
        return {"q": width * self.n_planes, "d": width // 8, "halves": width // 4, **sums}

    @property
    def token_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(eq=False)
class Fixed:
    """Memory of a given size, whatever the batch: partial results of attention."""

    n_bytes: int
    name: str = ""


Buffer = Rows | Quantized | Fixed


@dataclass(frozen=True)
class Chunks:
    """Into how many pieces an op's work falls, given the counts of a run."""

    count: str  # which of the counts it depends on
    per_chunk: int = 1  # so many of them make a chunk
    times: int = 1  # chunks for each of these
    small_batch: int | None = None  # so many chunks while the op runs its kernel for small batches
    small_per_token: int | None = None  # the same, for each token

    def of(self, counts: Counts, is_small: bool) -> int:
        if is_small and self.small_batch is not None:
            return self.small_batch
        if is_small and self.small_per_token is not None:
            return self.small_per_token * counts[self.count]
        return -(-counts[self.count] // self.per_chunk) * self.times


class ByRows(NamedTuple):
    """A chunk is some rows, of as many as one of the counts says."""

    counted: str


class Columns(NamedTuple):
    """A chunk is some columns of a value, for all tokens.

    of:     where the value is.
    width:  of a chunk; small_width: in a small batch.
    """

    of: Rows
    width: int
    small_width: int


class Readers(NamedTuple):
    """A chunk is a share of what reads some rows, whatever that makes of them."""

    of: Rows


# Where two ops have the same one, chunk c of the later one needs nothing of the earlier one but its chunk c.
Split = ByRows | Columns | Readers


@dataclass(eq=False)
class Op:
    """One op of a program: a kernel and what its record says.

    fields:        record words by name: numbers, or what has an address (buffers, tables, tensors, arrays, the record
                   of another part).
    small_kernel:  the kernel for small batches, where another one is better then.
    split:         what a chunk is, for ops that can be fused with others (see `graph.fusion`).
    asking:        the kernel that asks memory for what a part of a fused op will read of a chunk, in a small batch.
    parts:         the ops that a fused one consists of.
    is_only_large: in a small batch, another part of a fused op does this one's work.
    reads, writes: buffers, or anything hashable that stands for memory elsewhere (a layer of the cache).
    """

    kernel: Kernel
    schema: Schema
    fields: dict[str, Any]
    chunks: Chunks
    reads: list[Any] = field(default_factory=list)
    writes: list[Any] = field(default_factory=list)
    small_kernel: Kernel | None = None
    scratch_bytes: int = 0  # of each thread's own memory
    split: Split | None = None
    asking: Kernel | None = None
    parts: list[Op] = field(default_factory=list)
    is_only_large: bool = False

    @property
    def kernel_when_small(self) -> Kernel:
        """What does it in a small batch."""
        return self.small_kernel or self.kernel

    def name_of(self, kernel: Kernel) -> str:
        """What it is called when that kernel does it."""
        is_small = kernel == self.small_kernel
        some = [part for part in self.parts if not (is_small and part.is_only_large)]
        parts = [part.kernel_when_small if is_small else part.kernel for part in some]
        return " + ".join(part.name for part in parts) or kernel.name


class Table(NamedTuple):
    """Data of the batch that a record points to, by name: the batch itself, rope tables, attention tasks."""

    name: str


@dataclass(frozen=True)
class Tiled:
    """The weights of a tensor as tiles (see `quants.tiles`), for a kernel that reads these."""

    tensor: Tensor
    tiles: NDArray[np.uint8] | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Packed:
    """A small matrix as kernels read it (see `quants.low_rank`): uint8 [n_pieces, piece_bytes]."""

    array: NDArray[np.uint8]

    @property
    def n_bytes(self) -> int:
        return self.array.nbytes
