"""What each step of sampling takes of a token's time, at a vocabulary of 262,144 tokens.

python tools/bench_sampling.py [MILLISECONDS]    # a token's, by default the 11 of Gemma 3 270M on two laptop cores
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import numpy as np

from edgellm.engine.sampling import Sampler
from edgellm.engine.sampling.groups import CompiledGroupLoops
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.kernels.isa import choose
from edgellm.kernels.reference import maxima
from edgellm.kernels.store import KernelStore
from edgellm.params import SamplingParams

N_VOCAB = 262_144
N_CONTEXT = 2000
N_REPETITIONS = 40
ONLY: dict[str, Any] = {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 1}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "greedy": {"temperature": 0},
    "repeat_penalty and default": {"repeat_penalty": 1.1},
    "repeat_penalty, whole text": {"repeat_penalty": 1.1, "repeat_last_n": -1},
    "DRY and default": {"dry_multiplier": 0.8},
    "top-n-sigma and default": {"top_n_sigma": 1.5},
    "XTC and default": {"xtc_probability": 0.5},
    "typical and default": {"typical_p": 0.9},
    "dynamic temperature and default": {"dynatemp_range": 0.5},
    "logit bias and default": {"logit_bias": {5: 1.0, 77: -np.inf}},
    "min-p and adaptive-p": {**ONLY, "min_p": 0.05, "adaptive_target": 0.4},
    "mirostat": {"mirostat": 2},
    "top-p alone": {**ONLY, "top_p": 0.95},
    "min-p alone": {**ONLY, "min_p": 0.05},
    "temperature alone": {**ONLY, "temperature": 0.8},
}


def likely_logits(rng: np.random.Generator) -> np.ndarray:
    """Shaped as those of a model: a few thousand tokens stand out from the rest."""
    logits = (rng.standard_normal(N_VOCAB) * 2.5 - 8).astype(np.float32)
    logits[rng.permutation(N_VOCAB)[:3000]] += np.linspace(18, 2, 3000, dtype=np.float32)
    return logits


def token_bytes(token_id: int) -> bytes:
    return b" word" if token_id % 9 else b"\n"


def main() -> None:
    token_seconds = float(sys.argv[1]) / 1e3 if len(sys.argv) > 1 else 11e-3
    rng = np.random.default_rng(0)
    logits = likely_logits(rng)
    largest, context = maxima(logits), rng.integers(0, N_VOCAB, N_CONTEXT).tolist()

    def tell(name: str, work: Any) -> None:
        seconds = []
        for _ in range(N_REPETITIONS):
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        found = median(seconds)
        print(f"{name:34s}{found * 1e6:8.0f} µs {found / token_seconds:7.1%}")

    loops = CompiledGroupLoops(KernelStore(choose()))
    for name, params in CASES.items():
        sampler = Sampler(SamplingParams(seed=1, **params), token_bytes, loops=loops)
        tell(name, lambda sampler=sampler: sampler.choose(logits, context, largest))
    tell("logprobs=5", lambda: logprobs_of(5, logits, largest, 5))


if __name__ == "__main__":
    main()
