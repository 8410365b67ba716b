"""What every block format is: a NumPy layout of one block, and exact ways into and out of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgellm.errors import FormatError, UsageError
from edgellm.quants.fit import fit
from edgellm.quants.grids import Fitted, Grid
from edgellm.quants.protocols import Block, Register, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.integer[Any]]
    Floats = NDArray[np.floating[Any]]
    Blocks = NDArray[np.void]
    Fit = Callable[["BlockFormat", Floats, Floats | None], Fitted]

LEAST_IMPORTANCE = 1e-4  # beside the average: an input that was always 0 in the texts measured may not be elsewhere
CHUNK_WEIGHTS = 1 << 16  # converted at a time: the temporaries stay in the caches, whatever the tensor's size


class BlockFormat:
    """How a fixed number of neighbouring weights of one row shares one small record of bytes.

    A subclass states `ggml_type` (its number in GGUF files), `block_size` (weights per block) and `layout`
    (the NumPy structured dtype of one block, fields named as ggml names them), and turns blocks into
    weights with `decode` and weights into blocks with `encode`. Formats have no state: use the single
    instances in `edgellm.quants.FORMATS`.
    """

    name: ClassVar[str]
    ggml_type: ClassVar[int]
    block_size: ClassVar[int]
    block_bytes: ClassVar[int]
    layout: ClassVar[np.dtype[np.void]]

    # What kernels need to know of `unpack` while they are compiled.
    scale_group: ClassVar[int] = 32
    zero: ClassVar[int] = 0
    max_u: ClassVar[int]  # no u is larger
    n_alike: ClassVar[int] = 0  # so many groups are unpacked as the next ones are; 0: none, or not worth a loop

    # How the blocks of 16 rows lie in a tile (see `quants.tiles`): the fields of `layout` in the order in which
    # `unpack` uses them, and into pieces of how many bytes each falls. Empty where a format has no tiles.
    in_tiles: ClassVar[tuple[tuple[str, int], ...]] = ()

    grid: ClassVar[Grid | None] = None  # what `fit` finds scales for; None where `encode` needs no search

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__
        cls.block_bytes = cls.layout.itemsize

    def __repr__(self) -> str:
        return self.name

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, n_weights: int) -> int:
        """Bytes of a row of `n_weights`; FormatError when they do not fill whole blocks."""
        n_blocks, rest = divmod(n_weights, self.block_size)
        if rest:
            size = self.block_size
            raise FormatError(f"a {self.name} row has {n_weights} weights, not a multiple of {size}")
        return n_blocks * self.block_bytes

    def dequantize(self, raw: Bytes) -> Floats:
        """uint8[..., n_bytes] -> float32[..., n_weights], bit for bit what ggml computes.

        A scale that is NaN or infinite gives weights that are; nothing is raised for it.
        """
        if raw.dtype != np.uint8 or raw.ndim == 0:
            raise UsageError(f"{self.name}.dequantize takes rows of uint8, not {raw.dtype} {raw.shape}")
        n_blocks, rest = divmod(raw.shape[-1], self.block_bytes)
        if rest:
            size = self.block_bytes
            raise FormatError(f"a {self.name} row has {raw.shape[-1]} bytes, not a multiple of {size}")
        blocks = np.ascontiguousarray(raw).reshape(-1).view(self.layout)
        weights = np.empty((len(blocks), self.block_size), np.float32)
        with np.errstate(all="ignore"):
            for part in self._parts(len(blocks)):
                weights[part] = self.decode(blocks[part])
        return weights.reshape(*raw.shape[:-1], n_blocks * self.block_size)

    def quantize(self, x: Floats, importance: Floats | None = None, fit: Fit = fit) -> Bytes:
        """float32[..., n_weights] -> uint8[..., n_bytes], on the scales with the least squared error.

        importance:  float32 [n_weights], how much the error in each column counts; None counts all alike.
        fit:         what chooses the scales: `edgellm.quants.fit.fit`, or its compiled twin.

        FormatError when a block format is given NaN or infinity, or weights too large for its float16 scales;
        UsageError for an importance that is negative, not finite or of another length.
        """
        if x.ndim == 0:
            raise UsageError(f"{self.name}.quantize takes rows of weights, not a single number")
        row_bytes = self.row_bytes(x.shape[-1])
        by_block = None if importance is None else self._by_block(importance, x.shape[-1])
        with np.errstate(all="ignore"):
            weights = np.ascontiguousarray(x, np.float32).reshape(-1, self.block_size)
            blocks = np.empty(len(weights), self.layout)
            for part in self._parts(len(weights)):
                # One bad weight would spoil its whole block; a format of single floats can keep it.
                if self.block_size > 1 and not np.isfinite(weights[part]).all():
                    raise FormatError(f"the weights hold NaN or infinity, which {self.name} cannot")
                counts = None
                if by_block is not None:
                    counts = by_block[np.arange(part.start, min(part.stop, len(weights))) % len(by_block)]
                blocks[part] = self.encode(weights[part], counts, fit)
        return blocks.view(np.uint8).reshape(*x.shape[:-1], row_bytes)

    def decode(self, blocks: Blocks) -> Floats:
        """layout[n] -> float32[n, block_size]"""
        raise NotImplementedError

    def encode(self, x: Floats, importance: Floats | None, fit: Fit) -> Blocks:
        """float32[n, block_size] -> layout[n]; importance has the shape of x."""
        raise NotImplementedError

    def unpack(self, v: Vocabulary, block: Block, group: int) -> Register:
        """The group-th 32 weights of a block as unsigned bytes u: weight = scale * (u - zero) + bias.

        In words of the SIMD vocabulary v (`edgellm.kernels.staged`) and of `block`, which reads the blocks of one or of
        several rows (`edgellm.kernels.blocks`). Runs while a kernel is compiled: it emits the instructions that do
        there what `decode` does here.
        """
        raise NotImplementedError

    def unpack_scales(self, v: Vocabulary, block: Block) -> tuple[Register, Register]:
        """The scales of a block, one for every `scale_group` weights, and likewise the biases; or None for these."""
        raise NotImplementedError

    def pack(self, n: int, **fields: NDArray[Any]) -> Blocks:
        """n blocks with the given fields; a float16 field that would not be finite is a FormatError."""
        blocks = np.empty(n, self.layout)
        for name, values in fields.items():
            blocks[name] = values
            if blocks[name].dtype.kind == "f" and not np.isfinite(blocks[name]).all():
                raise FormatError(f"the weights are too large for the float16 scales of {self.name}")
        return blocks

    def _by_block(self, importance: Floats, n_weights: int) -> Floats:
        """The importance of a row as float32 [n_blocks, block_size], on average 1 and nowhere quite 0."""
        values = np.asarray(importance, np.float64)
        if values.shape != (n_weights,) or not (np.isfinite(values) & (values >= 0)).all():
            raise UsageError(f"importance {values.shape} must be a finite number of at least 0 for {n_weights} columns")
        mean = values.mean()
        relative = values / mean if mean > 0 else np.ones_like(values)
        return np.maximum(relative, LEAST_IMPORTANCE).astype(np.float32).reshape(-1, self.block_size)

    def _parts(self, n_blocks: int) -> list[slice]:
        step = CHUNK_WEIGHTS // self.block_size
        return [slice(start, start + step) for start in range(0, n_blocks, step)]
