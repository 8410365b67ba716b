"""How weights lie in memory: as the model's file has them, or as tiles, from a file of their own or in memory."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgellm.errors import MemoryLimitError, UsageError
from edgellm.files import tile_files
from edgellm.files.notice import say_once
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.mapped import release_pages
from edgellm.formats.tensor import Tensor
from edgellm.formats.tile_file import Tiles
from edgellm.graph import Graph, Tuning
from edgellm.graph.nodes import Linear
from edgellm.machine import available_memory
from edgellm.params import RuntimeConfig

Progress = Callable[[int, int, str], None]

LEAST_BYTES = 1 << 25  # what is smaller stays in the last caches, and a file of tiles would hardly pay
SPARE_BYTES = 1 << 30  # of the disk, which tiles leave to others, and as much as they take themselves
MOST_OF_MEMORY = 0.8  # of what is free


@dataclass(frozen=True)
class Layout:
    """How a model's weights lie.

    name:     "file", "tiles" or "memory".
    tiles:    uint8 [n_tiles, tile_bytes] of the weights that lie as tiles.
    n_bytes:  what these take, on disk or in memory.
    """

    name: str = "file"
    tiles: Mapping[Tensor, np.ndarray] = field(default_factory=dict)
    n_bytes: int = 0


LayOut = Callable[[GGUFFile, Iterable[Graph], RuntimeConfig, Tuning, "Progress | None"], Layout]


def lay_out(
    file: GGUFFile, graphs: Iterable[Graph], runtime: RuntimeConfig, tuning: Tuning, progress: Progress | None = None
) -> Layout:
    """What `runtime.layout` asks for; "auto" is tiles where they are clearly quicker and the disk has room.

    Where tiles cannot be kept, the file is used, which is said once if they were asked for. Raises MemoryLimitError
    when "memory" is more than there is, UsageError for a layout that does not go with float32 activations.
    """
    wanted = runtime.layout
    tensors = tensors_to_tile(graphs, runtime, tuning)
    if not tensors:
        return Layout()
    tiles = Tiles(tensors, file.paths)
    if wanted == "memory":
        return _in_memory(tiles, tuning.n_threads, progress)
    found = _from_file(tiles, tuning.n_threads, progress, is_asked_for=wanted == "tiles")
    return Layout("tiles", found, tiles.n_bytes) if found else Layout()


def tensors_to_tile(graphs: Iterable[Graph], runtime: RuntimeConfig, tuning: Tuning) -> list[Tensor]:
    """The weights of linears that are to lie as tiles, in the order in which a pass reads them.

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
    weights = (node.weight for graph in graphs for node in graph.nodes if isinstance(node, Linear))
    found = list(dict.fromkeys(weight for weight in weights if weight.format.in_tiles and weight.raw.ndim == 2))
    is_small = sum(tensor.n_bytes for tensor in found) < LEAST_BYTES
    return [] if wanted == "auto" and is_small else found


def _in_memory(tiles: Tiles, n_threads: int, progress: Progress | None) -> Layout:
    free = available_memory()
    needed = f"tiles in memory take {tiles.n_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    problem = f"{needed}; choose layout 'tiles' or 'file'"
    if tiles.n_bytes > MOST_OF_MEMORY * free:
        raise MemoryLimitError(problem, parameter="layout")
    try:
        views = tiles.in_memory(n_threads, progress)
    except MemoryError:
        raise MemoryLimitError(problem, parameter="layout") from None
    _release_file_pages(tiles)
    return Layout("memory", views, tiles.n_bytes)


def _from_file(
    tiles: Tiles, n_threads: int, progress: Progress | None, is_asked_for: bool
) -> Mapping[Tensor, np.ndarray] | None:
    """The tiles of the file in the cache folder, which is made where there is none; None when it cannot be."""
    found = tiles.read(n_threads)
    if found is not None:
        return found
    tile_files.clean_up()
    try:
        _check_room(tiles)
        tiles.write(n_threads, progress)
    except OSError as problem:
        if is_asked_for:
            say_once(
                f"edgellm cannot keep tiles in {tiles.path.parent}, so weights are read from the model's file: "
                f"{problem.strerror or problem}"
            )
        return None
    _release_file_pages(tiles)
    return tiles.read(n_threads)


def _check_room(tiles: Tiles) -> None:
    """Raise OSError unless the disk will have enough for others when the tiles are there."""
    folder = next(place for place in tiles.path.parents if place.exists())
    free, needed = shutil.disk_usage(folder).free, 2 * tiles.n_bytes + SPARE_BYTES
    if free < needed:
        raise OSError(f"its disk has {free / 1e9:.1f} GB free, and tiles are made where {needed / 1e9:.1f} GB are")


def _release_file_pages(tiles: Tiles) -> None:
    """Let the system take back the pages of the model's file that tiles were made of, so memory is not doubled."""
    for tensor, _ in tiles.places:
        with contextlib.suppress(OSError, ValueError):
            release_pages(tensor.raw)
