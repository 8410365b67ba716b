"""A file with the tiles of a model (see `quants.tiles`): written once, then mapped by all processes that run it.

    a line that names the format, and the layout's version
    32 bytes   the fingerprint: a hash of all that the tiles depend on, the names, shapes and formats of the tensors and
               the state of the model's files
    32 bytes   for each tensor, the digest of its tiles
    the tiles of every tensor, in the order in which a pass reads them, each from a multiple of 4096 bytes on

Where a tensor lies follows from the tensors themselves, so nothing in the file says it. A file that is not exactly what
it must be is as good as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgellm.files import private, tile_files
from edgellm.files.unfinished import unfinished
from edgellm.formats.mapped import map_open
from edgellm.formats.tensor import Tensor
from edgellm.machine.large_pages import on_large_pages
from edgellm.quants.tiles import TILE_ROWS, n_tiles, to_tiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

ALIGN = 4096
PIECE_BYTES = 1 << 20  # of a tensor, made by a thread at a time
SAMPLE_BYTES = 64
MAGIC = b"edgellm tiles %d\n" % tile_files.VERSION
Progress = Callable[[int, int, str], None]


class Place(NamedTuple):
    """Where the tiles of a tensor begin in a file, or in memory that is laid out like one."""

    tensor: Tensor
    start: int

    @property
    def shape(self) -> tuple[int, int]:
        n_rows, row_bytes = self.tensor.raw.shape
        return n_tiles(n_rows), TILE_ROWS * row_bytes

    @property
    def end(self) -> int:
        count, tile_bytes = self.shape
        return self.start + count * tile_bytes

    def of(self, memory: Bytes) -> Bytes:
        return memory[self.start : self.end].reshape(self.shape)


class Tiles:
    """The tiles that some tensors of a model need.

    tensors:  matrices whose formats have tiles. model: the paths of the model's file, all parts.
    """

    def __init__(self, tensors: Sequence[Tensor], model: Sequence[Path]) -> None:
        self.model = model
        self.places: list[Place] = []
        end = len(MAGIC) + 32 * (1 + len(tensors))
        for tensor in tensors:
            place = Place(tensor, -(-end // ALIGN) * ALIGN)
            self.places.append(place)
            end = place.end
        self.n_bytes = end
        self.path = tile_files.path_of(model[0])

    @property
    def _first(self) -> int:
        """Where the first tiles begin."""
        return self.places[0].start if self.places else self.n_bytes

    def views(self, memory: Bytes) -> dict[Tensor, Bytes]:
        return {place.tensor: place.of(memory) for place in self.places}

    # --- the file -----------------------------------------------------------------------------------------------

    def read(self, n_threads: int) -> dict[Tensor, Bytes] | None:
        """The tiles of the file, mapped; None unless it is ours alone and exactly what it must be.

        What has not been seen in this state before is compared with its digests.
        """
        file = private.open_file(self.path)
        if file is None:
            return None
        with file, contextlib.suppress(OSError, ValueError):
            status = os.fstat(file.fileno())
            head = file.read(self._first)
            if status.st_size != self.n_bytes or not head.startswith(MAGIC + self._fingerprint()):
                return None
            memory = map_open(file)
            if not tile_files.is_known(self.path, status):
                if self._digests(memory, n_threads) != self._digests_in(head):
                    return None
                with contextlib.suppress(OSError):  # what is known from now on must outlast a power cut
                    os.fsync(file.fileno())
                tile_files.remember(self.path, self.model[0], status)
            return self.views(memory)
        return None

    def write(self, n_threads: int, progress: Progress | None = None) -> None:
        """Make the file, whole or not at all. Raises OSError when it cannot be."""
        private.make(self.path.parent)
        digests = []
        with unfinished(self.path, permissions=0o600, to_disk=False) as file:
            file.write(bytes(self._first))
            digest, of = hashlib.sha256(), self.places[0]
            for place, _, piece, own in self._made(n_threads, progress):
                if place is not of:
                    digests.append(digest.digest())
                    digest, of = hashlib.sha256(), place
                    file.write(bytes(place.start - file.tell()))
                file.write(piece.data)
                digest.update(own)
            digests.append(digest.digest())
            file.seek(0)
            file.write(MAGIC + self._fingerprint() + b"".join(digests))

    def _fingerprint(self) -> bytes:
        found = hashlib.sha256()
        for path in self.model:
            found.update(f"{os.path.realpath(path)}\0{tile_files.state_of(path)}\0".encode(errors="surrogateescape"))
        for tensor, _ in self.places:
            found.update(f"{tensor.name}\0{tensor.shape}\0{tensor.format}\0{tensor.format.in_tiles}\0".encode())
            found.update(tensor.raw.reshape(-1)[:SAMPLE_BYTES].tobytes())
        return found.digest()

    def _digests_in(self, head: bytes) -> list[bytes]:
        start = len(MAGIC) + 32
        return [head[start + 32 * i : start + 32 * (i + 1)] for i in range(len(self.places))]

    def _digests(self, memory: Bytes, n_threads: int) -> list[bytes]:
        """The digest of each tensor's tiles: a hash of the hashes of its pieces, so that threads can share it."""
        from concurrent.futures import ThreadPoolExecutor

        def digest(place: Place) -> bytes:
            tiles, total = place.of(memory), hashlib.sha256()
            for some in _pieces(place):
                total.update(hashlib.sha256(tiles[some].reshape(-1).data).digest())
            return total.digest()

        with ThreadPoolExecutor(n_threads) as pool:
            return list(pool.map(digest, self.places))

    # --- making tiles -------------------------------------------------------------------------------------------

    def in_memory(self, n_threads: int, progress: Progress | None = None) -> dict[Tensor, Bytes]:
        """The tiles in memory of this process, in large pages where the system has some. Raises MemoryError."""
        views = self.views(on_large_pages(self.n_bytes))
        for _ in self._made(n_threads, progress, views):
            pass
        return views

    def _made(
        self, n_threads: int, progress: Progress | None, into: dict[Tensor, Bytes] | None = None
    ) -> Iterator[tuple[Place, slice, Bytes, bytes]]:
        """Pieces of all tiles in their order, made by threads: in their places of `into`, or in memory of their own.

        Each with its place, its tiles, and the hash of its bytes (where they are not `into` something).
        """
        from collections import deque
        from concurrent.futures import ThreadPoolExecutor

        def make(place: Place, some: slice) -> tuple[Place, slice, Bytes, bytes]:
            rows = place.tensor.raw[some.start * TILE_ROWS : some.stop * TILE_ROWS]
            piece = to_tiles(place.tensor.format, rows, into[place.tensor][some] if into else None)
            return place, some, piece, b"" if into else hashlib.sha256(piece.reshape(-1).data).digest()

        done = 0
        with ThreadPoolExecutor(n_threads) as pool:
            waiting: deque[Any] = deque()
            try:
                for place in self.places:
                    for some in _pieces(place):
                        waiting.append(pool.submit(make, place, some))
                        if len(waiting) > 4 * n_threads:
                            yield (made := waiting.popleft().result())
                            done += made[2].nbytes
                            if progress:
                                progress(done, self.n_bytes, tile_files.TASK)
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()
        if progress:
            progress(self.n_bytes, self.n_bytes, tile_files.TASK)


def _pieces(place: Place) -> Iterator[slice]:
    """Neighbouring tiles that are made, and hashed, together."""
    count, tile_bytes = place.shape
    step = max(1, PIECE_BYTES // tile_bytes)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
