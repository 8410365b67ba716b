"""How weights lie in memory: as the model's file has them, or as tiles, from a file of their own or in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field

import numpy as np

from edgellm.dataclass import dataclass
from edgellm.errors import MemoryLimitError, UsageError, size_text
from edgellm.files import tile_files
from edgellm.files.notice import say_once
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.pages import release_pages
from edgellm.formats.tensor import Tensor
from edgellm.formats.tile_file import Tiles
from edgellm.graph import Graph, Tuning
from edgellm.graph.weights import multiplied
from edgellm.machine import available_memory
from edgellm.params import RuntimeConfig
from edgellm.quants.tiles import TILE_ROWS

Progress = Callable[[int, int, str], None]

LEAST_BYTES = 1 << 25  # what is smaller stays in the last caches, and a file of tiles would hardly pay
SPARE_BYTES = 1 << 30  # of the disk, which tiles leave to others, and as much as they take themselves
MOST_OF_MEMORY = 0.8  # of what is free
COPIED_BYTES = 1 << 16  # weights up to this size, beside tiles


@dataclass(frozen=True)
class Layout:
    """How a model's weights lie.

    name:     "file", "tiles" or "memory".
    tiles:    uint8 [n_tiles, tile_bytes] of the weights that lie as tiles.
    n_bytes:  what these take, on disk or in memory.
    coming:   those that are worth making while the model runs from its file.
    copies:   small weights beside tiles, as in the file.
    """

    name: str = "file"
    tiles: Mapping[Tensor, np.ndarray] = field(default_factory=dict)
    n_bytes: int = 0
    coming: Tiles | None = None
    copies: Mapping[Tensor, np.ndarray] = field(default_factory=dict)

    @classmethod
    def beside(cls, file: GGUFFile, name: str, tiles: Mapping[Tensor, np.ndarray], n_bytes: int) -> Layout:
        """Tiles of a file, whose pages the system may take back.

        Norms and biases stand between the matrices. Systems map up to 2 MB of a file when a byte of it is read, which
        would bring the matrices back, so these are copied.
        """
        others = (tensor for tensor in file.tensors.values() if tensor not in tiles)
        copies = {tensor: tensor.raw.copy() for tensor in others if tensor.n_bytes <= COPIED_BYTES}
        release_file_pages([*tiles, *copies])
        return cls(name, tiles, n_bytes, copies=copies)


LayOut = Callable[[GGUFFile, Iterable[Graph], RuntimeConfig, Tuning, "Progress | None"], Layout]


def lay_out(
    file: GGUFFile, graphs: Iterable[Graph], runtime: RuntimeConfig, tuning: Tuning, progress: Progress | None = None
) -> Layout:
    """What `runtime.layout` asks for; "auto" is tiles where they are clearly quicker and the disk has room.

    Those that are asked for by name are made now; "auto" waits for nothing, and says which are worth making.

    Where tiles cannot be kept, the file is used, which is said once if they were asked for. Raises MemoryLimitError
    when "memory" is more than there is, UsageError for a layout that does not go with float32 activations.
    """
    wanted = runtime.layout
    tensors = tensors_to_tile(graphs, runtime, tuning)
    if not tensors:
        return Layout()
    tiles = Tiles(tensors, file.paths)
    if wanted == "memory":
        return Layout.beside(file, wanted, _in_memory(tiles, tuning.n_threads, progress), tiles.n_bytes)
    found: Mapping[Tensor, np.ndarray] | None = tiles.read(tuning.n_threads)
    if found is None:
        tile_files.clean_up()
        problem = _lack_of_room(tiles)
        if wanted == "auto":
            return Layout() if problem else Layout(coming=tiles)
        found = _made(tiles, tuning.n_threads, progress, problem)
    return Layout.beside(file, "tiles", found, tiles.n_bytes) if found else Layout()


def tensors_to_tile(graphs: Iterable[Graph], runtime: RuntimeConfig, tuning: Tuning) -> list[Tensor]:
    """The weights that are to lie as tiles, in the order in which a pass reads them.

    Raises UsageError for a layout that does not go with float32 activations.
    """
    wanted = runtime.layout
    if runtime.activations == "f32":
        if wanted in ("tiles", "memory"):
            raise UsageError(
                f"layout is {wanted!r}, and activations 'f32' read weights as the file has them: choose layout 'file'",
                parameter="layout",
            )
        return []
    if wanted == "file" or (wanted == "auto" and not tuning.tiles):
        return []
    weights = (multiplied(node) for graph in graphs for node in graph.nodes)
    found = list(dict.fromkeys(weight for weight in weights if weight is not None and _can_be_tiles(weight)))
    is_small = sum(tensor.n_bytes for tensor in found) < LEAST_BYTES
    return [] if wanted == "auto" and is_small else found


def _can_be_tiles(weight: Tensor) -> bool:
    """Of a stack of matrices, each must fill its tiles."""
    return bool(weight.format.in_tiles) and (len(weight.shape) == 2 or weight.shape[1] % TILE_ROWS == 0)


def _in_memory(tiles: Tiles, n_threads: int, progress: Progress | None) -> Mapping[Tensor, np.ndarray]:
    free = available_memory()
    needed = f"tiles in memory take {size_text(tiles.n_bytes)}, and {size_text(free)} are free"
    problem = f"{needed}; choose layout 'tiles' or 'file'"
    if tiles.n_bytes > MOST_OF_MEMORY * free:
        raise MemoryLimitError(problem, parameter="layout")
    try:
        return tiles.in_memory(n_threads, progress)
    except MemoryError:
        raise MemoryLimitError(problem, parameter="layout") from None


def _made(
    tiles: Tiles, n_threads: int, progress: Progress | None, problem: str | None
) -> Mapping[Tensor, np.ndarray] | None:
    """The tiles of a new file in the cache folder; None when there cannot be one, which is said."""
    try:
        if problem is None:
            tiles.write(n_threads, progress)
    except OSError as error:
        problem = error.strerror or str(error)
    if problem is not None:
        say_once(
            f"edgellm cannot keep tiles in {tiles.path.parent}, so weights are read from the model's file: {problem}"
        )
        return None
    return tiles.read(n_threads)


def _lack_of_room(tiles: Tiles) -> str | None:
    """What is wrong, unless the disk will have enough for others when the tiles are there."""
    try:
        folder = next(place for place in tiles.path.parents if place.exists())
        free, needed = shutil.disk_usage(folder).free, 2 * tiles.n_bytes + SPARE_BYTES
    except OSError as error:
        return error.strerror or str(error)
    if free < needed:
        return f"its disk has {size_text(free)} free, and tiles are made where {size_text(needed)} are"
    return None


def release_file_pages(tensors: Iterable[Tensor]) -> None:
    """Let the system take back the pages of tensors in the model's file, of which there are copies or tiles to read."""
    for tensor in tensors:
        release_pages(tensor.raw)
