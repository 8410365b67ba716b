"""How fast whole models run, before and after a change: this checkout and another one in turns, A B A B.

    python tools/bench_models.py smollm2-135m gemma3-270m --against OTHER_CHECKOUT --rounds 3

For every model: tokens a second of prefill (512 tokens) and decode (64), of decode at a depth of 2,048 tokens, seconds
to a first token in a process of its own (a warm start), and the most memory of that process. Medians of rounds, and
ratios this / other: above 1 is faster, but for seconds and memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEPTH = 2048
FIGURES = {
    "prefill, tok/s": "prefill_tokens_per_second",
    "decode, tok/s": "decode_tokens_per_second",
    f"decode at {DEPTH}, tok/s": "deep",
    "first token, s": "start",
    "memory, MB": "memory",
}


def edgellm(checkout: Path, *arguments: str) -> tuple[str, float, float]:
    """What a command prints, its seconds, and the most memory that it had, in MB."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgellm", *arguments], env=environment, cwd=checkout, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{checkout}: edgellm {' '.join(arguments)} failed")
    return printed, time.perf_counter() - started, usage.ru_maxrss / 1000


def measure(checkout: Path, model: str, threads: int) -> dict[str, float]:
    how = ("-t", str(threads), "-r", "3", "--json")
    found: dict[str, Any] = json.loads(edgellm(checkout, "bench", model, *how)[0])
    deep = json.loads(edgellm(checkout, "bench", model, "-p", "1", "-n", "32", "-d", str(DEPTH), *how)[0])
    _, seconds, memory = edgellm(checkout, "run", model, "--raw", "-p", "Once", "-n", "1", "--temp", "0")
    found |= {"deep": deep["decode_tokens_per_second"], "start": seconds, "memory": memory}
    return {key: found[key] for key in FIGURES.values()}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of edgellm")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sides = {"this": ROOT} | ({"other": args.against.resolve()} if args.against else {})
    for model in args.models:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for round_number in range(args.rounds + 1):  # the first one compiles and warms up
            for side, checkout in sides.items():
                taken = measure(checkout, model, args.threads)
                if round_number:
                    rounds[side].append(taken)
        print(f"\n{Path(model).name}\n{'':26}" + "".join(f"{side:>10}" for side in sides) + f"{'ratio':>10}")
        for name, key in FIGURES.items():
            medians = [statistics.median(one[key] for one in rounds[side]) for side in sides]
            ratio = f"{medians[0] / medians[-1]:10.3f}" if len(medians) > 1 else ""
            print(f"{name:26}" + "".join(f"{median:10.2f}" for median in medians) + ratio, flush=True)


if __name__ == "__main__":
    main()
