"""How fast prefill is with float32 activations, beside torch on the same weights: in turns, in one process.

    python tools/bench_float32.py MODEL.gguf --tokens 512 --threads 2

torch runs `transformers` in float32 on the weights of the same file, dequantized; edgellm dequantizes them as it goes.
Printed are medians of rounds in tokens a second, and how many times as long edgellm takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import edgellm


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def reference(path: Path, threads: int) -> Callable[[list[int]], object]:
    """Hidden states of all tokens and logits of the last, by transformers in float32."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()

    def run(ids: list[int]) -> object:
        with torch.no_grad():
            return model(torch.tensor([ids]), logits_to_keep=1).logits

    return run


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    torch_run = reference(args.model, args.threads)
    how = {"activations": "f32", "kv_type": "f32", "n_threads": args.threads}
    with edgellm.load(args.model, n_ctx=args.tokens, n_batch=args.tokens, **how) as model:
        ids = np.random.default_rng(0).integers(3, model.n_vocab, args.tokens).tolist()
        sides = {"torch": lambda: torch_run(ids), "edgellm": lambda: list(model.logits_in_pieces(ids, args.tokens - 1))}
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for round_number in range(args.rounds + 1):  # the first one warms up
            for name, work in sides.items():
                elapsed = seconds(work)
                if round_number:
                    taken[name].append(elapsed)
    medians = {name: statistics.median(all_seconds) for name, all_seconds in taken.items()}
    for name, median in medians.items():
        print(f"{name:8} {args.tokens / median:8.1f} tok/s")
    print(f"edgellm takes {medians['edgellm'] / medians['torch']:.2f} times as long")


if __name__ == "__main__":
    main()
