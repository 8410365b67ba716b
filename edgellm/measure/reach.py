"""How near the kernels of a type of weights come to what this machine can do."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Target, Team, Tuning, lower
from edgellm.graph.nodes import linear
from edgellm.graph.ops import Rows
from edgellm.graph.program import aligned
from edgellm.graph.team import KERNELS
from edgellm.kernels.store import KernelStore
from edgellm.machine import available_memory
from edgellm.quants import FORMATS
from edgellm.quants.tiles import TILE_ROWS

_BYTES = 1 << 27  # of weights: beyond the caches
_SIDE = 2048  # of each matrix
_PROMPT = 256  # tokens
_ROUNDS = 4  # the quickest counts


@dataclass(frozen=True)
class Reach:
    """Of a type: bytes of weights read in a second for one token, products made in a second for many.

    layout:  how the weights lie in memory.
    """

    type: str
    layout: str
    read_bytes: float
    macs: float

    def or_better(self, other: Reach) -> Reach:
        return replace(self, read_bytes=max(self.read_bytes, other.read_bytes), macs=max(self.macs, other.macs))


def measure_reach(store: KernelStore, tuning: Tuning, type_name: str) -> Reach:
    """Linears over weights that no cache holds: some tenths of a second, and compiling at a first time."""
    block_format = FORMATS[type_name]
    row_bytes = block_format.row_bytes(_SIDE)
    n_matrices = max(1, min(_BYTES, available_memory() // 8) // (_SIDE * row_bytes))
    memory = aligned(n_matrices * _SIDE * row_bytes)
    memory.fill(0x3C)  # of float16 scales a number near 1
    graph, matrices = Graph(), list[Tensor]()
    x = graph.input(_SIDE)
    for index, raw in enumerate(memory.reshape(n_matrices, _SIDE, row_bytes)):
        matrix = Tensor(f"matrix {index}", (_SIDE, _SIDE), block_format, raw)
        graph.output(linear(x, matrix))
        matrices.append(matrix)
    # Whatever the bytes mean, as tiles they are read as quickly.
    is_tiled = tuning.tiles and bool(block_format.in_tiles)
    tiles = {matrix: matrix.raw.reshape(_SIDE // TILE_ROWS, -1) for matrix in matrices if is_tiled}
    lowered = lower(graph, Target(store.isa, tuning, tiles=tiles))
    store.load([*lowered.kernels, *KERNELS])
    team = Team(store, tuning.n_threads, len(lowered.ops))
    try:
        given = np.ones((_PROMPT, Rows(_SIDE).stride), np.float32)
        program = Program(lowered, store, Batch(_PROMPT, lowered), team, inputs={x: given.ctypes.data})
        one, many = (_quickest(program, n) for n in (1, _PROMPT))
    finally:
        team.close()
    layout = "tiles" if is_tiled else "row by row"
    return Reach(type_name, layout, len(memory) / one, _PROMPT * n_matrices * _SIDE**2 / many)


def _quickest(program: Program, n_tokens: int) -> float:
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        program.run({"tokens": n_tokens})
        seconds.append(time.perf_counter() - started)
    return min(seconds)
