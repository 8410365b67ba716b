"""What adapters beside a model cost: decode without and with one, in turns in one process.

    python tools/bench_adapters.py smollm2-135m
    python tools/bench_adapters.py smollm2-135m --adapter FOLDER --rounds 40

Without --adapter, one of random weights stands beside all linear layers. A round is some tokens without it and as many
with it, behind the same text: many, for the first token of either finds nothing of its own in the caches, and who runs
an adapter does not change sides. Medians over all rounds; the cost is the median of what each round says, so that
minutes in which the machine is slow count on both sides.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np

import edgellm
from edgellm.formats.adapters import Adapter, LowRank
from edgellm.graph.nodes import Linear
from edgellm.measure.bench import behind, check_room, read, some_tokens, write
from edgellm.params import LAYOUTS

N_TEXT = 16  # tokens before those that are written
SIZE = 0.01  # of random weights: answers stay numbers


def random_adapter(model: edgellm.Model, rank: int) -> Adapter:
    """One beside every linear layer but the one that makes logits, as trainers have it."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, SIZE, shape).astype(np.float32)

    linears = [node.weight for node in model._runner.graphs.body.nodes if isinstance(node, Linear)]
    weights = {w.name: LowRank(normal(rank, w.shape[1]), normal(w.shape[0], rank), 2.0) for w in linears}
    return Adapter(model.metadata["general.architecture"], weights, name="random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a GGUF file")
    parser.add_argument("--adapter", help="a PEFT folder or a GGUF adapter")
    parser.add_argument("--rank", type=int, default=8, help="of the random one (8)")
    parser.add_argument("--layout", choices=LAYOUTS, default="auto", help="(auto)")
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=30, help="(30)")
    parser.add_argument("--tokens", type=int, default=64, help="of a round and side (64)")
    options = parser.parse_args()
    model = edgellm.load(options.model, layout=options.layout, n_threads=options.threads)
    runner, scheduler = model._runner, model._scheduler
    runner.wait_for_tiles()
    name = model.load_adapter(options.adapter or random_adapter(model, options.rank), name="measured")
    sides = {"without": runner.cache.sequence()}
    model.set_adapters([name])
    sides["with"] = runner.cache.sequence(model._adapters.usual)
    check_room(model, N_TEXT + options.tokens)
    ids = some_tokens(model, N_TEXT + options.tokens)
    for sequence in sides.values():
        read(scheduler, sequence, ids[:N_TEXT])
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds + 1):
        taken = {}
        for side in list(sides)[:: 1 if number % 2 else -1]:
            with behind(sides[side]) as fork:
                taken[side] = 1000 * write(scheduler, fork, ids[N_TEXT:]) / options.tokens
        rounds.append(taken)
    del rounds[0]  # it warmed up
    print(f"layout {runner.layout.name}, {runner.n_threads} threads")
    for side in sides:
        milliseconds = [taken[side] for taken in rounds]
        print(f"{side:8}{median(milliseconds):8.3f} ms a token, at best {min(milliseconds):.3f}")
    costs = sorted(taken["with"] / taken["without"] - 1 for taken in rounds)
    quarter = len(costs) // 4
    print(f"cost    {median(costs):8.1%}, half of the rounds from {costs[quarter]:.1%} to {costs[-1 - quarter]:.1%}")
    for sequence in sides.values():
        sequence.release()
    model.close()


if __name__ == "__main__":
    main()
