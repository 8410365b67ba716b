"""How many floating point operations a second this machine makes in matrix products, by the kernels that models run."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from edgellm.formats.tensor import Tensor
from edgellm.graph import Batch, Graph, Program, Target, Team, Tuning, lower
from edgellm.graph.nodes import linear
from edgellm.graph.program import aligned
from edgellm.graph.team import KERNELS
from edgellm.kernels.isa import choose
from edgellm.kernels.store import KernelStore
from edgellm.machine import default_threads
from edgellm.quants import FORMATS

N_TOKENS, WIDTH = 512, 512  # of a small model in training
ROUNDS = 12  # the quickest counts: whatever else the machine does can only take away


@dataclass(frozen=True)
class Products:
    """flops: float32 operations a second of all threads, a product and a sum being two; isa: the instruction set."""

    flops: float
    n_threads: int
    isa: str


def measure_products(n_threads: int | None = None) -> Products:
    """Times W x for float32 W [512, 512] and 512 tokens x: some tens of milliseconds, and compiling at a first time."""
    isa, n_threads = choose(), n_threads or default_threads()
    numbers = np.random.default_rng(0)
    weights = numbers.standard_normal((WIDTH, WIDTH), np.float32)
    graph = Graph()
    x = graph.input(WIDTH)
    graph.output(linear(x, Tensor("weights", weights.shape, FORMATS["F32"], weights.view(np.uint8))))
    lowered = lower(graph, Target(isa, Tuning(n_threads), activations="f32"))
    store = KernelStore(isa)
    store.load([*lowered.kernels, *KERNELS])
    team = Team(store, n_threads, max_ops=len(lowered.ops))
    try:
        rows = aligned(4 * N_TOKENS * WIDTH).view(np.float32)
        rows[:] = numbers.standard_normal(rows.size, np.float32)
        program = Program(lowered, store, Batch(N_TOKENS, lowered), team, inputs={x: rows.ctypes.data})
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            program.run({"tokens": N_TOKENS})
            seconds.append(time.perf_counter() - started)
    finally:
        team.close()
    return Products(2 * N_TOKENS * WIDTH * WIDTH / min(seconds), n_threads, isa.name)
