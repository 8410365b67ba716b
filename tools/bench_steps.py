"""How long a step of writing takes in this checkout and in another one, in turns of a tenth of a second.

    python tools/bench_steps.py smollm2-135m --against OTHER_CHECKOUT --texts 8 --seconds 60
    python tools/bench_steps.py smollm2-135m --adapter
    python tools/bench_steps.py smollm2-135m --against OTHER_CHECKOUT --whole

A step is the next token of some texts. Machines whose memory changes its speed every few seconds do so on both sides
then; pairs of turns are told apart by what memory gave before and after them. --adapter: without and with an adapter
of random weights, both in this checkout. --whole: as an answer is written, with what Python does between two passes:
scheduling, sampling, text. Medians over all pairs, and of what each pair says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
TURN_SECONDS = 0.1
PAIRS = 6  # between two measurements of memory
N_CTX = 4096
ANSWER = 256  # tokens, before another one is begun


class Side:
    """A process with the model; it answers `limit` with GB/s, and a number of steps with milliseconds a step."""

    def __init__(self, checkout: Path, model: str, texts: int, depth: int, is_whole: bool, has_adapter: bool) -> None:
        self._checkout = checkout
        command = [sys.executable, __file__, model, "--texts", str(texts), "--depth", str(depth), "--is-side"]
        flags = {"--whole": is_whole, "--adapter": has_adapter}
        self._process = subprocess.Popen(
            [*command, *(flag for flag, is_set in flags.items() if is_set)], cwd=checkout, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip
        self.ask("1")  # it has loaded the model

    def ask(self, question: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"{self._checkout} could not run the model; what it said stands above")
        return float(line)


def answer(model_name: str, texts: int, depth: int, is_whole: bool, has_adapter: bool) -> None:
    """What a side does."""
    from bench_adapters import random_adapter

    import edgellm
    from edgellm.engine.runner import Span
    from edgellm.measure.bench import some_tokens
    from edgellm.measure.limits import measure_limits

    with edgellm.load(model_name, n_ctx=max(N_CTX, texts * (depth + 64)), speculate="off") as model:
        runner = model._runner
        runner.wait_for_tiles()
        if has_adapter:
            model.set_adapters([model.load_adapter(random_adapter(model, 8), name="random")])
        ids = some_tokens(model, depth)
        sequences = [runner.cache.sequence(model._adapters.usual) for _ in range(texts)]
        for sequence in sequences:
            sequence.reserve(depth + 1)
            for first in range(0, depth, runner.n_batch):
                some = ids[first : first + runner.n_batch]
                runner.run_body([Span(sequence, some)])
                sequence.append(some)

        writing: Iterator[str] = iter(())

        def step() -> None:
            nonlocal writing
            if not is_whole:
                of_runner()
            elif next(writing, None) is None:
                writing = model.generate(model.tokenizer.decode(ids), temperature=0.0, max_tokens=ANSWER)
                next(writing)

        def of_runner() -> None:
            runner.run_body([Span(sequence, ids[:1]) for sequence in sequences])
            for _ in runner.logits_of(range(texts)):
                pass

        for line in sys.stdin:
            if line.strip() == "limit":
                print(measure_limits(runner.store, runner.team).read_bytes / 1e9, flush=True)
                continue
            step()  # its own caches are cold
            started = time.perf_counter()
            for _ in range(int(line)):
                step()
            print((time.perf_counter() - started) / int(line) * 1e3, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name or a GGUF file")
    parser.add_argument("--against", type=Path, default=ROOT, help="another checkout")
    parser.add_argument("--texts", type=int, default=1, help="that are written at once (1)")
    parser.add_argument("--depth", type=int, default=24, help="tokens before those that are written (24)")
    parser.add_argument("--adapter", action="store_true", help="on the second side, or on both with --against")
    parser.add_argument("--seconds", type=float, default=60, help="(60)")
    parser.add_argument("--is-side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help="write an answer, with all that Python does")
    options = parser.parse_args()
    of_both = (options.model, options.texts, options.depth, options.whole)
    if options.is_side:
        answer(*of_both, options.adapter)
        return
    other = Side(options.against.resolve(), *of_both, options.adapter and options.against != ROOT)
    this = Side(ROOT, *of_both, options.adapter)
    n_steps = str(max(4, int(TURN_SECONDS * 1e3 / this.ask("4"))))
    found: dict[str, list[tuple[float, float]]] = {}
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        limits = [this.ask("limit")]
        pairs = []
        for index in range(PAIRS):
            sides = (other, this) if index % 2 else (this, other)
            taken = {side: side.ask(n_steps) for side in sides}
            pairs.append((taken[other], taken[this]))
        limits.append(this.ask("limit"))
        tens = {int(limit // 10 * 10) for limit in limits}
        name = f"{min(tens)} to {max(tens) + 10} GB/s"
        found.setdefault(name, []).extend(pairs)
    print(f"{'memory':18} {'pairs':>5}  {'other, ms':>9}  {'this, ms':>9}  this / other")
    for name, pairs in sorted(found.items()):
        before, after = (median(pair[side] for pair in pairs) for side in range(2))
        print(f"{name:18} {len(pairs):5}  {before:9.3f}  {after:9.3f}  {median(b / a for a, b in pairs):8.3f}")


if __name__ == "__main__":
    main()
