"""Texts a second as vectors: edgellm beside Sentence Transformers with torch, on the same cores, in turns.

    python tools/bench_embed.py CHECKPOINT [--threads N] [--rounds N] [--types Q8_0 F16]

CHECKPOINT is a folder of Sentence Transformers; it is converted into a temporary file for each type. Texts are made of
words of this repository's documents, in lengths as passages have them. Each program embeds the same texts with its own
batches, up to as many tokens of each as the model has positions; rounds are taken in turns, and the median counts. The
least cosine between the two is printed beside.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

LENGTHS = {"queries of 8 words": 8, "sentences of 25": 25, "passages of 120": 120}
ROOT = Path(__file__).parents[1]


def texts(n_words: int, n: int) -> list[str]:
    """n texts of about so many words, each of another length."""
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))).split()
    rng = np.random.default_rng(n_words)
    sizes = rng.integers(max(1, n_words // 2), n_words * 3 // 2 + 1, n)
    starts = rng.integers(0, len(words) - 2 * n_words, n)
    return [" ".join(words[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--types", nargs="+", default=["Q8_0", "F16"])
    args = parser.parse_args()

    import torch
    from sentence_transformers import SentenceTransformer

    import edgellm

    torch.set_num_threads(args.threads)
    theirs = SentenceTransformer(str(args.checkpoint), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.types:
            path = Path(folder) / f"{name}.gguf"
            edgellm.convert_checkpoint(args.checkpoint, path, name)
            with edgellm.load(path, n_threads=args.threads) as ours:
                theirs.max_seq_length = ours.n_ctx
                for what, n_words in LENGTHS.items():
                    some = texts(n_words, args.texts)
                    programs: dict[str, Callable[[], Any]] = {
                        "edgellm": partial(ours.embed, some, truncate=True),
                        "torch": partial(theirs.encode, some, batch_size=32, normalize_embeddings=True),
                    }
                    first = {name: program() for name, program in programs.items()}
                    least = float((first["edgellm"] * first["torch"]).sum(-1).min())
                    times: dict[str, list[float]] = {name: [] for name in programs}
                    for _ in range(args.rounds):
                        for program, call in programs.items():
                            times[program].append(seconds(call))
                    rates = {program: len(some) / statistics.median(taken) for program, taken in times.items()}
                    line = ", ".join(f"{program} {rate:.0f} texts/s" for program, rate in rates.items())
                    share = rates["edgellm"] / rates["torch"]
                    print(f"{name:6} {what:20} {line} ({share:.2f} x), least cosine {least:.5f}", flush=True)


if __name__ == "__main__":
    main()
