"""How fast a model runs: prompt and generation, apart."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from edgellm.engine.model import Model
from edgellm.engine.runner import Span
from edgellm.errors import UsageError


def measure(model: Model, n_prompt: int, n_generate: int, n_repetitions: int = 5, depth: int = 0) -> dict[str, Any]:
    """Medians over repetitions of reading n_prompt tokens at once and of n_generate single tokens.

    depth:  tokens that are in the context before either starts.
    """
    need = depth + max(n_prompt, n_generate)
    if need > model.n_ctx:
        raise UsageError(f"{need} tokens do not fit into the context of {model.n_ctx}; choose a larger -c")
    runner, cache = model._runner, model._runner.cache
    ids = [(17 * i + 3) % model.n_vocab for i in range(max(depth, n_prompt, n_generate, 1))]

    def read(sequence, n_tokens: int) -> float:
        started = time.perf_counter()
        for start in range(0, n_tokens, runner.n_batch):
            piece = ids[start : min(start + runner.n_batch, n_tokens)]
            runner.forward([Span(sequence, piece, n_logits=1 if start + len(piece) == n_tokens else 0)])
        return time.perf_counter() - started

    def write(sequence, n_tokens: int) -> float:
        started = time.perf_counter()
        for i in range(n_tokens):
            runner.forward([Span(sequence, [ids[i]])])
        return time.perf_counter() - started

    sequence = cache.sequence()
    try:
        read(sequence, depth)
        prefill: list[float] = []
        decode: list[float] = []
        for repetition in range(n_repetitions + 1):  # the first one warms up
            for work, seconds, n in ((read, prefill, n_prompt), (write, decode, n_generate)):
                if n:
                    elapsed = work(sequence, n)
                    sequence.trim(depth)
                    if repetition:
                        seconds.append(elapsed)
    finally:
        sequence.release()
    return {
        "model": model.path.name,
        "isa": runner.isa.name,
        "n_threads": model.n_threads,
        "n_prompt": n_prompt,
        "n_generate": n_generate,
        "depth": depth,
        "repetitions": n_repetitions,
        "prefill_tokens_per_second": n_prompt / median(prefill) if prefill else None,
        "decode_tokens_per_second": n_generate / median(decode) if decode else None,
    }
