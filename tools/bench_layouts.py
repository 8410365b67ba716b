"""How fast one model runs from its file and from tiles, and what a pass of several tokens takes: in turns, A B A B.

    python tools/bench_layouts.py qwen15.gguf --layouts file memory --rounds 9

For each layout: milliseconds of a pass of one token, and how many times as long one of 2, 4, 8 and 16 takes, each of
another text and with its logits; tokens a second of one text, and of all texts together. The quickest round counts:
whatever else the machine does can only take away. What prefill and decode are beside another runtime, and which ops the
time goes to, say `tools/bench_peers.py` and `edgellm bench MODEL --layout LAYOUT --profile`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import edgellm
from edgellm.engine.runner import Span
from edgellm.params import LAYOUTS

SIZES = (1, 2, 4, 8, 16)
N_TEXT = 16  # tokens that each text has before


class Side:
    """A model with some short texts in its cache, which each pass makes longer by a token and then short again."""

    def __init__(self, model: edgellm.Model) -> None:
        self.model, self.runner = model, model._runner
        self.runner.wait_for_tiles()
        self.texts = [self.runner.cache.sequence() for _ in range(max(SIZES))]
        for number, text in enumerate(self.texts):
            ids = [(number * 37 + place) % 1000 for place in range(N_TEXT)]
            text.reserve(N_TEXT + 1)
            self.runner.run_body([Span(text, ids)])
            text.append(ids)

    def seconds(self, n: int) -> float:
        """One pass of n texts, and their logits."""
        spans = [Span(text, [7 + number]) for number, text in enumerate(self.texts[:n])]
        started = time.perf_counter()
        self.runner.run_body(spans)
        for _ in self.runner.logits_of(range(n)):
            pass
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=["file", "memory"], help="(file memory)")
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=9, help="passes of each size and layout (9)")
    options = parser.parse_args()
    models = [edgellm.load(options.model, layout=name, n_threads=options.threads) for name in options.layouts]
    sides = {name: Side(model) for name, model in zip(options.layouts, models, strict=True)}
    best = {(name, n): float("inf") for name in sides for n in SIZES}
    for _ in range(options.rounds):
        for n in SIZES:
            for name, side in sides.items():
                best[name, n] = min(best[name, n], side.seconds(n))
    print(f"{'':8}{'ms of 1':>10}" + "".join(f"{f'by {n}':>8}" for n in SIZES[1:]) + f"{'tok/s':>10}{'all':>8}")
    for name in sides:
        one, most = best[name, 1], best[name, SIZES[-1]]
        ratios = "".join(f"{best[name, n] / one:8.2f}" for n in SIZES[1:])
        print(f"{name:8}{1000 * one:10.1f}{ratios}{1 / one:10.1f}{SIZES[-1] / most:8.1f}")
    for model in models:
        model.close()


if __name__ == "__main__":
    main()
