"""What block formats need of the world above them, so that they can be read, and used, without it.

`Vocabulary` and `Block` are the words of `BlockFormat.unpack`, which kernels give while they are compiled; a `Register`
is whatever these make of it. `Gridded` is what the search for scales needs of a format.
"""

from __future__ import annotations

from typing import Any, Protocol

from edgellm.quants.grids import Grid

Register = Any


class Vocabulary(Protocol):
    """SIMD operations; `edgellm.kernels.staged` has them."""

    def concat(self, *parts: Register) -> Register:
        """Registers end to end."""

    def lookup(self, table: Any, indices: Register) -> Register:
        """table[i] for indices below 16; the table is a sequence of bytes."""

    def power_of_two(self, e: Register) -> Register:
        """2**(e - 128) for an e from 0 to 255."""

    def f32(self, address: Any, n: int = 1) -> Register:
        """n neighbouring float32 numbers."""

    def half(self, address: Any, n: int = 1) -> Register:
        """n neighbouring float16 numbers, as float32."""

    def brain_half(self, address: Any, n: int = 1) -> Register:
        """n neighbouring bfloat16 numbers, as float32."""


class Block(Protocol):
    """The blocks of one or several rows, at the same place in each; `edgellm.kernels.blocks` reads them.

    `at` counts bytes from the start of a block.
    """

    def packed(self, at: int, n: int) -> Register:
        """n bytes of every row, 16 or 32."""

    def bits(self, at: int) -> Register:
        """32 single bits of every row, lowest first, as bytes of 0 or 1."""

    def byte(self, at: int) -> Register:
        """An unsigned byte, as an integer of 32 bits."""

    def word(self, at: int) -> Register:
        """A 32-bit word."""

    def half(self, at: int) -> Register:
        """A float16, as float32."""

    def halves(self, at: int) -> tuple[Register, Register]:
        """Two neighbouring float16 numbers, as float32."""

    def bytes(self, at: int, n: int) -> Register:
        """n neighbouring unsigned bytes (4, 8 or 16), as integers of 32 bits."""

    def signed_bytes(self, at: int, n: int) -> Register:
        """The same for signed bytes."""


class Gridded(Protocol):
    """A format whose weights lie on a grid."""

    @property
    def grid(self) -> Grid | None: ...
