"""How fast linear layers of each format are worked through, beside what the machine can do; before and after a change.

    python tools/bench_kernels.py Q4_K Q6_K --cols 2048
    python tools/bench_kernels.py Q4_K --tiles
    python tools/bench_kernels.py Q4_K --against OTHER_CHECKOUT --rounds 3

For every format six figures: `cached`, GB/s of weights that one thread's second level cache holds, in decode, so
what computing alone allows; `memory`, the same from memory with all threads; `by 2`, `by 4` and `by 8`, how many
times as long as of one token a pass of so many takes from there; `prefill`, 10^9 products a second of a batch of 512
tokens. In the row of the limits stand what all threads read and multiply at most, measured in the same process.
`Q6_K:2` is a format with inputs in two planes, as the head has. `--tiles` also measures weights that lie as tiles.
`--against` runs another checkout's kernels in turn with these, A B A B, and gives medians of rounds; each checkout
measures itself by its own copy of this tool.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
CACHED_BYTES, CACHED_TIMES = 300_000, 20  # so many ops on the same weights
MEMORY_BYTES = 300_000_000
PREFILL_ROWS, PREFILL_TOKENS = 1024, 512
RUNS = 9

Figures = dict[str, dict[str, float]]


def quickest(work: Callable[[], object]) -> float:
    """Seconds, at best: what else the machine does can only take away."""
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class Machine:
    """The kernels that are imported, and teams of threads to run them."""

    def __init__(self, n_threads: int) -> None:
        from edgellm.graph import Team
        from edgellm.graph.team import KERNELS
        from edgellm.kernels.isa import choose
        from edgellm.kernels.store import KernelStore

        self.store = KernelStore(choose())
        self.store.load(KERNELS)
        self.teams = {n: Team(self.store, n, 64) for n in {1, n_threads}}
        self.n_threads = n_threads

    def linear(
        self, name: str, n_rows: int, n_cols: int, n_tokens: int, n_threads: int, times: int = 1, in_tiles: bool = False
    ) -> float:
        """Seconds of one op of `times`, all on the same random weights."""
        from edgellm.formats.tensor import Tensor
        from edgellm.graph import Batch, Graph, Program, Target, Tuning, lower
        from edgellm.graph.nodes import linear
        from edgellm.graph.program import aligned
        from edgellm.quants import FORMATS

        name, _, planes = name.partition(":")
        fmt = FORMATS[name]
        raw = aligned(n_rows * fmt.row_bytes(n_cols)).reshape(n_rows, -1)
        raw[...] = np.random.default_rng(0).integers(0, 256, raw.shape[1], np.uint8)
        weight = Tensor("weight", (n_rows, n_cols), fmt, raw)
        graph = Graph()
        x = graph.input(n_cols)
        for _ in range(times):
            graph.output(linear(x, weight, sensitive=planes == "2"))
        # Random bytes are as good as tiles of some others.
        tiles = {weight: raw.reshape(n_rows // 16, -1)} if in_tiles else {}
        lowered = lower(graph, Target(self.store.isa, Tuning(n_threads), tiles=tiles))
        self.store.load(lowered.kernels)
        rows = aligned(n_tokens * lowered.rows[x].token_bytes).view(np.float32)
        rows[:] = 1
        inputs = {x: rows.ctypes.data}
        program = Program(lowered, self.store, Batch(n_tokens, lowered), self.teams[n_threads], inputs=inputs)
        return quickest(lambda: program.run({"tokens": n_tokens})) / times

    def figures(self, name: str, n_cols: int, in_tiles: bool) -> dict[str, float]:
        from edgellm.quants import FORMATS

        row_bytes = FORMATS[name.partition(":")[0]].row_bytes(n_cols)
        few, many = (max(1, n // row_bytes // 64) * 64 for n in (CACHED_BYTES, MEMORY_BYTES))
        macs = PREFILL_ROWS * n_cols * PREFILL_TOKENS

        def seconds(n_rows: int, n_tokens: int, n_threads: int = self.n_threads, times: int = 1) -> float:
            return self.linear(name, n_rows, n_cols, n_tokens, n_threads, times, in_tiles)

        one = seconds(many, 1)
        return {
            "cached": few * row_bytes / seconds(few, 1, 1, CACHED_TIMES) / 1e9,
            "memory": many * row_bytes / one / 1e9,
            **{f"by {n}": seconds(many, n) / one for n in (2, 4, 8)},
            "prefill": macs / seconds(PREFILL_ROWS, PREFILL_TOKENS) / 1e9,
        }

    def limits(self) -> dict[str, float]:
        from edgellm.measure.limits import measure_limits

        found = measure_limits(self.store, self.teams[self.n_threads])
        return {"memory": found.read_bytes / 1e9, "prefill": found.macs / 1e9}


def measure(options: argparse.Namespace) -> Figures:
    machine = Machine(options.threads)
    result: Figures = {name: machine.figures(name, options.cols, options.in_tiles) for name in options.formats}
    result["limit"] = machine.limits()
    for team in machine.teams.values():
        team.close()
    return result


def in_turns(options: argparse.Namespace) -> dict[str, Figures]:
    """Medians of every side's rounds; each round is a process of its own."""
    checkouts: dict[str, tuple[Path, list[str]]] = {"these": (ROOT, [])}
    if options.against:
        checkouts["others"] = (options.against.resolve(), [])
    if options.tiles:
        checkouts |= {f"{side}, tiles": (checkout, ["--in-tiles"]) for side, (checkout, _) in checkouts.items()}
    same = [*options.formats, "--cols", str(options.cols), "--threads", str(options.threads), "--json"]
    rounds: dict[str, list[Figures]] = {side: [] for side in checkouts}
    for _ in range(options.rounds):
        for side, (checkout, more) in checkouts.items():
            command = [sys.executable, str(checkout / "tools" / "bench_kernels.py"), *same, *more]
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=subprocess.PIPE, check=True
            )
            rounds[side].append(json.loads(done.stdout))

    def median(taken: list[Any]) -> Any:
        if isinstance(taken[0], dict):
            return {name: median([one[name] for one in taken]) for name in taken[0]}
        return statistics.median(taken)

    return {side: median(taken) for side, taken in rounds.items()}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("formats", nargs="+", metavar="FORMAT", help="such as Q4_K")
    parser.add_argument("--cols", type=int, default=2048, help="columns of the matrices (2048)")
    parser.add_argument("-t", "--threads", type=int, default=2, help="all threads (2)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side (3)")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of edgellm")
    parser.add_argument("--tiles", action="store_true", help="also measure weights that lie as tiles")
    parser.add_argument("--in-tiles", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)  # how it starts itself: one round
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options)))
        return
    sides = in_turns(options)
    columns = ("cached", "memory", "by 2", "by 4", "by 8", "prefill")
    print(f"{options.cols} columns, {options.threads} threads; medians of {options.rounds}\n")
    print(f"{'':26}" + "".join(f"{column:>9}" for column in columns))
    for name in (*options.formats, "limit"):
        for side, figures in sides.items():
            cells = (figures[name].get(column) for column in columns)
            print(f"{name:10}{side:16}" + "".join(f"{'' if cell is None else f'{cell:.1f}':>9}" for cell in cells))


if __name__ == "__main__":
    main()
