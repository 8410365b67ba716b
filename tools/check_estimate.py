"""What `edgellm run MODEL --estimate` says, beside what is measured of the same models: memory and both speeds.

    python tools/check_estimate.py MODEL... [--threads N] [--rounds 3]

Everything runs in a process of its own, as people start it, in turns: the estimate, the memory of a process that
reads 512 tokens and writes 32, and the speeds by `edgellm bench`'s measure. Machines are not as quick at all times,
so each round compares what was said with what was measured right after it, and the median of these differences
counts. Rounds in which other programs kept the machine busy are measured again, a few times. Ends with 1 when memory
differs by more than 5 % or a speed by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import Any

MEMORY_WITHIN, SPEED_WITHIN = 0.05, 0.15
TRIES = 3  # at a calm round
N_PROMPT, N_ANSWER = 512, 32

START = """
import json, sys
from dataclasses import asdict
import edgellm.cli.app
from edgellm.cli import models
from edgellm.machine import peak_memory
from edgellm.machine.others import OtherWork, is_too_busy
from edgellm.params import RuntimeConfig
path = models.path_of(sys.argv[1])
runtime = RuntimeConfig(n_threads=int(sys.argv[2]) or None)
n_prompt, n_answer = int(sys.argv[3]), int(sys.argv[4])
"""
ESTIMATE = (
    START
    + """
from edgellm.measure.estimate import estimate
found = estimate(path, runtime)
print(json.dumps({
    "memory": found.memory(n_prompt + n_answer),
    "prompt": found.prefill_tokens_per_second,
    "answer": found.decode_tokens_per_second,
    "n_prompt": found.n_prompt,
    "busy": found.busy_cores,
}))
"""
)
MEMORY = (
    START
    + """
with models.load(path, runtime) as model:
    ids = [(17 * i + 3) % model.n_vocab for i in range(n_prompt)]
    list(model.generate(ids, max_tokens=n_answer))
    print(json.dumps({"memory": peak_memory(), "layout": model.layout}))
"""
)
SPEED = (
    START
    + """
from edgellm.measure.bench import measure
with models.load(path, runtime) as model:
    others = OtherWork()
    found = measure(model, n_prompt, n_answer, n_repetitions=3)
    busy = others.cores()
    print(json.dumps({
        "prompt": found["prefill_tokens_per_second"],
        "answer": found["decode_tokens_per_second"],
        "busy": busy if is_too_busy(busy, model.n_threads) else None,
    }))
"""
)


def told(program: str, model: str, n_threads: int, n_prompt: int = N_PROMPT) -> dict[str, Any]:
    """What a program says of a model, in a process of its own."""
    command = [sys.executable, "-c", program, model, str(n_threads), str(n_prompt), str(N_ANSWER)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def calm(program: str, model: str, n_threads: int, n_prompt: int = N_PROMPT) -> dict[str, Any]:
    """The same from a moment when the machine was calm, or else from the last of some tries, which is said."""
    for _ in range(TRIES):
        found = told(program, model, n_threads, n_prompt)
        if found["busy"] is None:
            return found
    print(f"  {model}: the machine is busy ({found['busy']:.1f} cores by others)", file=sys.stderr)
    return found


def compare(model: str, n_threads: int, n_rounds: int) -> bool:
    """Measure one model and print a line for each figure; whether all are near enough."""
    told(ESTIMATE, model, n_threads)  # kernels are compiled, settings measured and weights laid out at a first start
    layout = told(MEMORY, model, n_threads)["layout"]
    said: dict[str, list[float]] = {"memory": [], "prompt": [], "answer": []}
    measured: dict[str, list[float]] = {"memory": [], "prompt": [], "answer": []}
    for _ in range(n_rounds):
        estimate = calm(ESTIMATE, model, n_threads)
        speeds = calm(SPEED, model, n_threads, estimate["n_prompt"])
        memory = told(MEMORY, model, n_threads)
        for name in said:
            said[name].append(estimate[name])
            measured[name].append((memory if name == "memory" else speeds)[name])
    print(f"{model}, layout {layout}")
    is_near = True
    for name, within, unit, scale in (
        ("memory", MEMORY_WITHIN, "MB", 1e-6),
        ("prompt", SPEED_WITHIN, "tokens/s", 1),
        ("answer", SPEED_WITHIN, "tokens/s", 1),
    ):
        one, other = scale * median(said[name]), scale * median(measured[name])
        off = median(a / b for a, b in zip(said[name], measured[name], strict=True)) - 1
        is_near = is_near and abs(off) <= within
        verdict = "" if abs(off) <= within else f"   more than {100 * within:.0f} %"
        print(f"  {name:7} said {one:8.1f} {unit}, measured {other:8.1f}: {100 * off:+5.1f} %{verdict}", flush=True)
    return is_near


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sys.exit(not all([compare(model, args.threads, args.rounds) for model in args.models]))


if __name__ == "__main__":
    main()
