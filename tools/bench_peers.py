"""edgellm and llama.cpp in turn on one machine: same file, same threads, medians and ratios.

    python tools/bench_peers.py MODEL.gguf --peer ~/peer/bin/python -t 2 -d 0 --rounds 5

`--peer` is an interpreter that has llama-cpp-python, built from source for this CPU. Every measurement is a
process of its own, A B A B, so that neither side gets the quieter minute. Prefill and decode each start from
a context of exactly `-d` tokens and are timed inside the process. The start is timed from outside, from the
launch of the process to the first byte of its answer, with the file in the page cache and a context of `-c`
tokens. With `--busy N`, N endless loops keep other work going meanwhile. A ratio above 1 is better for edgellm. For
Linux and macOS.
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

PEER = str(Path(__file__).with_name("peer_llama_cpp.py"))
PROMPT = "The capital of France is"
MAXRSS_PER_MIB = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes on macOS, KiB elsewhere

Figures = dict[str, float]


def speed(command: list[str]) -> Figures:
    """Tokens per second, from the JSON that a bench command prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}")
    result = json.loads(done.stdout)
    return {name: result[name] for name in ("prefill_tokens_per_second", "decode_tokens_per_second")}


def start(command: list[str]) -> Figures:
    """Seconds from launch to the first byte on stdout, and the process's peak resident memory."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        sys.exit(f"{' '.join(command)} ended with status {process.returncode} and printed no token")
    return {"first_token_seconds": seconds, "peak_memory_mib": usage.ru_maxrss / MAXRSS_PER_MIB}


def measure(args: argparse.Namespace) -> dict[str, list[Figures]]:
    """The figures of each round, by side."""
    threads = ["-t", str(args.threads)]
    work = ["-p", str(args.prompt), "-n", str(args.generate), "-d", str(args.depth)]
    ours = [sys.executable, "-m", "edgellm"]
    theirs = [args.peer, PEER]
    benches = {
        "edgellm": [*ours, "bench", args.model, *work, *threads, "-r", "1", "--json"],
        "llama.cpp": [*theirs, "bench", args.model, *work, *threads, "--flash-attn", args.flash_attn],
    }
    context = ["-p", PROMPT, "-c", str(args.context), *threads]
    starts = {
        "edgellm": [*ours, "run", args.model, "--raw", "-n", "1", "--temp", "0", *context],
        "llama.cpp": [*theirs, "start", args.model, *context, "--flash-attn", args.flash_attn],
    }
    rounds: dict[str, list[Figures]] = {side: [] for side in benches}
    for command in starts.values():  # fills the page cache and the kernel store
        start(command)
    for _ in range(args.rounds):
        for side in rounds:
            rounds[side].append(speed(benches[side]) | start(starts[side]))
    return rounds


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="interpreter with llama-cpp-python")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of prefill (512)")
    parser.add_argument("-n", "--generate", type=int, default=64, help="tokens of decode (64)")
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens already in the context (0)")
    parser.add_argument("-t", "--threads", type=int, default=2, help="threads of both (2)")
    parser.add_argument("-c", "--context", type=int, default=4096, help="context at the start (4096)")
    parser.add_argument("-r", "--rounds", type=int, default=5, help="measurements of each side (5)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="endless loops that run beside both (0)")
    parser.add_argument("--flash-attn", choices=["auto", "off", "on"], default="auto", help="(auto)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, every round included")
    args = parser.parse_args()

    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
    try:
        rounds = measure(args)
    finally:
        for loop in loops:
            loop.kill()
    medians = {
        side: {name: statistics.median(figures[name] for figures in taken) for name in taken[0]}
        for side, taken in rounds.items()
    }
    ours, theirs = medians["edgellm"], medians["llama.cpp"]
    ratios = {
        name: ours[name] / theirs[name] if name.endswith("per_second") else theirs[name] / ours[name] for name in ours
    }
    if args.json:
        print(json.dumps({"setting": vars(args), "rounds": rounds, "medians": medians, "ratios": ratios}))
        return
    speeds = f"prefill {args.prompt}, tok/s", f"decode {args.generate}, tok/s"
    titles = *speeds, "first token, s", "peak memory, MiB"
    beside = f", beside {args.busy} endless loops" if args.busy else ""
    print(f"{Path(args.model).name}, {args.threads} threads, depth {args.depth}, medians of {args.rounds}{beside}\n")
    print(f"{'':22}{'edgellm':>12}{'llama.cpp':>12}{'ratio':>9}")
    for title, name in zip(titles, ours, strict=True):
        print(f"{title:22}{ours[name]:12.2f}{theirs[name]:12.2f}{ratios[name]:8.2f}x")


if __name__ == "__main__":
    main()
