"""The parameter objects, and every default of the runtime, once.

A model file gives a `ModelConfig` (see `edgellm.arch`); a person gives the two below.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields

from edgellm.errors import UsageError

DEFAULT_MODEL = "smollm2-135m"
MAX_THREADS = 1024
KV_TYPES = ("f16", "q8_0", "f32")
ACTIVATIONS = ("int8", "f32")
DEFAULT_WINDOW = 512  # tokens of a text that are read together to score them, or to collect an importance matrix
LEAST_WINDOW = 8  # some to read and some to score
DEFAULT_CONTEXT_LIMIT = 8192  # tokens; a model's own context when that is shorter


@dataclass(frozen=True)
class RuntimeConfig:
    """How a model is run.

    n_ctx:      tokens a conversation may hold; None takes the model's own, at most DEFAULT_CONTEXT_LIMIT.
    n_threads:  worker threads; None takes what is fastest on this machine.
    n_batch:    most tokens of a prompt computed in one pass; between passes a prompt can be cancelled.
    kv_type:    how the cache stores keys and values: "f16", "q8_0" in about half the memory, "f32" exactly.
    activations: "int8" rounds what meets quantized weights to eight bits, in groups, which is fast and nearly exact;
                "f32" rounds nothing: the reference, at a fraction of the speed.
    cache_bytes: of memory for keys and values of all texts together; None takes part of what is free.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    n_batch: int = 512
    kv_type: str = "f16"
    activations: str = "int8"
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        _only_numbers(self)
        _at_least(self, "n_ctx", 1, optional=True)
        _at_least(self, "n_threads", 1, optional=True)
        _at_least(self, "n_batch", 1)
        _at_least(self, "cache_bytes", 1, optional=True)
        if self.n_threads is not None and self.n_threads > MAX_THREADS:
            raise UsageError(f"n_threads is {self.n_threads}; expected a number up to {MAX_THREADS}")
        if self.kv_type not in KV_TYPES:
            raise UsageError(f"kv_type is {self.kv_type!r}; expected one of {', '.join(KV_TYPES)}")
        if self.activations not in ACTIVATIONS:
            raise UsageError(f"activations is {self.activations!r}; expected one of {', '.join(ACTIVATIONS)}")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, in the order in which the filters run.

    repeat_penalty:  divides positive and multiplies negative logits of the last `repeat_last_n` tokens; 1 is off.
    top_k:           keep the k most likely tokens; 0 is off.
    top_p:           keep the most likely tokens until their probabilities reach p; 1 is off.
    min_p:           keep tokens at least min_p times as likely as the likeliest; 0 is off.
    temperature:     divides the logits; 0 is greedy.
    seed:            same seed, same text; None draws one.
    max_tokens:      stop after so many new tokens; None goes on to the end of the text or of the context.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _only_numbers(self)
        _at_least(self, "temperature", 0)
        _at_least(self, "top_k", 0)
        _between(self, "top_p", 0, 1)
        _between(self, "min_p", 0, 1)
        if self.repeat_penalty <= 0:
            raise UsageError(f"repeat_penalty is {self.repeat_penalty}; expected a number above 0 (1 is off)")
        _at_least(self, "repeat_last_n", 0)
        _at_least(self, "seed", 0, optional=True)
        _at_least(self, "max_tokens", 0, optional=True)


def _only_numbers(params: RuntimeConfig | SamplingParams) -> None:
    """Every field that is no text is a finite number, whole or missing only where its type says so."""
    for field in fields(params):
        value = getattr(params, field.name)
        if field.type == "str" or (value is None and "None" in str(field.type)):
            continue
        whole = "int" in str(field.type)
        if not isinstance(value, numbers.Integral if whole else numbers.Real):
            raise UsageError(f"{field.name} is {value!r}; expected a {'whole ' if whole else ''}number")
        if not whole and not math.isfinite(value):
            raise UsageError(f"{field.name} is {value}; expected a finite number")


def _at_least(params: object, name: str, least: int, optional: bool = False) -> None:
    value = getattr(params, name)
    if value is None and optional:
        return
    if value is None or value < least:
        raise UsageError(f"{name} is {value}; expected a number of at least {least}")


def _between(params: object, name: str, low: float, high: float) -> None:
    value = getattr(params, name)
    if not low <= value <= high:
        raise UsageError(f"{name} is {value}; expected a number from {low} to {high}")
