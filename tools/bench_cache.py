"""What sharing, batching, speculation and the disk bring, as ratios of runs in turns on one machine.

python tools/bench_cache.py MODEL [--draft SMALLER] [-t 2] [-r 3] [--only batch,copy,prose,draft,prefix,depth]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import edgellm
from edgellm.engine import Model, disk_cache

CODE = Path(disk_cache.__file__).read_text(encoding="utf-8")
# Three times the same, for a small model too to see that it comes a fourth time: what is measured is how copies are
# found and checked, not whether a model obeys.
COPY = "\n\n".join([*[CODE[:900]] * 3, CODE[:150]])
PROSE = "The old lighthouse keeper had lived on the island for forty years. Every evening he"
WORK = ("batch", "copy", "prose", "draft", "prefix", "depth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft")
    parser.add_argument("-t", "--threads", type=int, default=None)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-n", "--tokens", type=int, default=100)
    parser.add_argument("--only", default=",".join(WORK))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        disk_cache.prefixes_folder = lambda: Path(folder) / "prefixes"
        for name in args.only.split(","):
            if name != "draft" or args.draft:
                print(f"{name:7}", MEASURES[name](args), flush=True)


@contextmanager
def loaded(args: argparse.Namespace, **options: object) -> Iterator[Model]:
    options = {"n_ctx": 5000, "n_threads": args.threads, "disk_bytes": 0, "speculate": "off"} | options
    with edgellm.load(args.model, **options) as model:  # type: ignore[arg-type]
        str(model.generate("Hello", max_tokens=4, temperature=0.0))
        yield model


def in_turns(args: argparse.Namespace, *ways: Callable[[], float]) -> list[float]:
    """The median of each, measured in turns."""
    found = [[way() for way in ways] for _ in range(args.rounds)]
    return [median(one) for one in zip(*found, strict=True)]


def batch(args: argparse.Namespace) -> str:
    """Tokens a second of 8 texts at once, and of one."""
    with loaded(args) as model:
        prompts = [model.tokenize(f"{i}. {PROSE}") for i in range(8)]
        model.tokenizer.stop_ids = frozenset()

        def speed(n: int) -> Callable[[], float]:
            def measure() -> float:
                answers = model.batch(prompts[:n], n_parallel=n, temperature=0.0, max_tokens=args.tokens)
                return sum(a.stats.n_generated_tokens - 1 for a in answers) / answers[0].stats.generate_seconds

            return measure

        one, eight = in_turns(args, speed(1), speed(8))
    return f"1 text {one:.1f} tok/s, 8 texts {eight:.1f} tok/s: {eight / one:.2f} x"


def _guessing(args: argparse.Namespace, prompt: str, temperature: float, **options: object) -> str:
    with loaded(args) as plain, loaded(args, speculate="auto", **options) as guessing:
        answers = {}

        def speed(model: Model) -> Callable[[], float]:
            def measure() -> float:
                answer = model.generate(prompt, temperature=temperature, seed=1, max_tokens=args.tokens)
                str(answer)
                answers[model] = answer
                return answer.stats.tokens_per_second

            return measure

        before, after = in_turns(args, speed(plain), speed(guessing))
        assert answers[plain].token_ids == answers[guessing].token_ids
        stats = answers[guessing].stats
    right = f"{stats.n_accepted_tokens} of {stats.n_draft_tokens} right"
    return f"without {before:.1f} tok/s, with {after:.1f} tok/s ({right}): {after / before:.2f} x"


def copy(args: argparse.Namespace) -> str:
    return _guessing(args, COPY, 0.0)


def prose(args: argparse.Namespace) -> str:
    return _guessing(args, PROSE, 0.8)


def draft(args: argparse.Namespace) -> str:
    return _guessing(args, CODE[:1200], 0.0, draft=args.draft)


def prefix(args: argparse.Namespace) -> str:
    """Time to the first token behind 2,000 tokens: computed, in the cache, on disk."""
    times: dict[str, list[float]] = {"computed": [], "cached": [], "disk": []}
    for _ in range(args.rounds):
        with loaded(args, disk_bytes=1 << 30) as model:
            ids = model.tokenize(CODE * 9)[:1985]
            for name in ("computed", "cached"):
                times[name].append(_first_token(model, [*ids, *model.tokenize(f"# {name} {time.time()}")]))
        with loaded(args, disk_bytes=1 << 30) as model:
            times["disk"].append(_first_token(model, [*ids, *model.tokenize(f"# disk {time.time()}")]))
        disk_cache.make_room(0)
    computed, cached, disk = (median(one) for one in times.values())
    return (
        f"2,000 tokens computed {computed:.2f} s, from the cache {cached:.3f} s ({100 * cached / computed:.1f} %), "
        f"from disk {disk:.3f} s ({100 * disk / computed:.1f} %)"
    )


def _first_token(model: Model, ids: list[int]) -> float:
    answer = model.generate(ids, temperature=0.0, max_tokens=1)
    str(answer)
    return answer.stats.first_token_seconds


def depth(args: argparse.Namespace) -> str:
    """Decode at depth 4,096, by the type of the cache, in turns."""
    from edgellm.measure import bench

    def speed(kind: str) -> Callable[[], float]:
        def measure() -> float:
            with loaded(args, kv_type=kind) as model:
                return float(bench.measure(model, 0, 32, 3, 4096)["decode_tokens_per_second"])

        return measure

    kinds = ("f16", "q8_0", "q8_0:q4_0", "q4_0")
    found = in_turns(args, *map(speed, kinds))
    first = found[0]
    return ", ".join(f"{kind} {x:.1f} tok/s ({x / first:.2f} x)" for kind, x in zip(kinds, found, strict=True))


MEASURES = {name: globals()[name] for name in WORK}

if __name__ == "__main__":
    main()
