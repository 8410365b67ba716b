"""What each step of sampling takes of a token's time, in turns with the tokens of a model that reads a text.

python tools/bench_sampling.py [MODEL] [TEXT]    # by default gemma3-270m, of 262,144 tokens, and docs/sampling.md

One choice is made for each token, so it finds the caches as they are in generation: full of weights. With a grammar, it
is told beside what making the mask takes, and no part of the other figures.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import edgellm
from edgellm.engine.kv_cache import Sequence
from edgellm.engine.model import Model
from edgellm.engine.sampling import Candidates, Sampler
from edgellm.engine.sampling.logprobs import logprobs_of
from edgellm.engine.sampling.step import Step
from edgellm.engine.structure.asked import asked_of
from edgellm.engine.structure.constraint import Constraint
from edgellm.measure.bench import Work, behind, read, seconds_of, write
from edgellm.params import SamplingParams

N_CONTEXT = 2000
N_REPETITIONS = 25
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
    "typical alone": {**ONLY, "typical_p": 0.9},
    "dynamic temperature alone": {**ONLY, "temperature": 0.8, "dynatemp_range": 0.5},
    "XTC alone": {**ONLY, "xtc_probability": 0.5},
}
GRAMMARS = {"any text": "(?s:.*)", "no quotes": '[^"\\\\\\n]*', "letters": "[a-z]*", "a number": "[0-9]+"}
MASKED = (
    "default",
    "repeat_penalty, whole text",
    "top-n-sigma and default",
    "mirostat",
    "top-p alone",
    "temperature alone",
)
"""Cases that are tried with each grammar too."""

Choose = Callable[[np.ndarray, np.ndarray], object]


class Masked(Step):
    """A rule that knows its mask already."""

    def __init__(self, mask: np.ndarray) -> None:
        self._mask = mask

    def apply(self, candidates: Candidates) -> None:
        candidates.allow(self._mask)


class Turns(Work):
    """Reads a text token by token. At each one choice is made, by the next of `choices`, and what it took is noted."""

    def __init__(self, sequence: Sequence, ids: list[int], choices: list[Choose]) -> None:
        super().__init__(sequence, ids, one_by_one=True)
        self._choices = choices
        self.seconds: list[list[float]] = [[] for _ in choices]
        self.token_seconds: list[float] = []
        self._n, self._ended = 0, 0.0

    def take(self, position: int, logits: np.ndarray, maxima: np.ndarray) -> None:
        started = time.perf_counter()
        self._choices[self._n % len(self._choices)](logits, maxima)
        ended = time.perf_counter()
        if self._n:
            self.token_seconds.append(started - self._ended)
        self.seconds[self._n % len(self._choices)].append(ended - started)
        self._n, self._ended = self._n + 1, ended


def choices_of(model: Model, context: list[int]) -> dict[str, Choose]:
    tokenizer, loops = model.tokenizer, model._runner.loops

    def chosen_by(params: dict[str, Any], rules: list[Step]) -> Choose:
        sampler = Sampler(SamplingParams(seed=1, **params), tokenizer.token_bytes, rules=rules, loops=loops)
        return lambda logits, maxima: sampler.choose(logits, context, maxima)

    def mask_of(grammar: Constraint) -> Choose:
        return lambda logits, maxima: grammar.mask()

    found = {name: chosen_by(params, []) for name, params in CASES.items()}
    found["logprobs=5"] = lambda logits, maxima: logprobs_of(5, logits, maxima, 5, loops)
    for name, regex in GRAMMARS.items():
        asked = asked_of(SamplingParams(regex=regex))
        assert asked is not None
        grammar = Constraint.of(asked, tokenizer, model.n_vocab)
        whole = Candidates(np.zeros(model.n_vocab, np.float32))
        grammar.apply(whole)
        found[f"{name}: the mask"] = mask_of(grammar)
        for case in MASKED:
            found[f"{name}: {case}"] = chosen_by(CASES[case], [Masked(grammar.mask().copy())])
    return found


def main() -> None:
    name, text = [*sys.argv[1:], *["gemma3-270m", "docs/sampling.md"][len(sys.argv) - 1 :]]
    with edgellm.load(name) as model:
        ids = model.tokenize(Path(text).read_text(encoding="utf-8"))
        choices = choices_of(model, (ids * N_CONTEXT)[:N_CONTEXT])
        sequence = model._runner.cache.sequence()
        read(model._scheduler, sequence, ids[:8])
        write(model._scheduler, sequence, ids[8:16])
        with behind(sequence) as fork:
            turns = Turns(fork, (ids * N_REPETITIONS)[: len(choices) * N_REPETITIONS], list(choices.values()))
            seconds_of(model._scheduler, turns)
        sequence.release()
    token = median(turns.token_seconds)
    print(f"a token of {name}, {model.n_vocab} in its vocabulary: {token * 1e3:.1f} ms")
    for case, seconds in zip(choices, turns.seconds, strict=True):
        found = median(seconds)
        print(f"{case:44s}{min(seconds) * 1e6:7.0f} to {found * 1e6:5.0f} µs {found / token:7.1%}")


if __name__ == "__main__":
    main()
