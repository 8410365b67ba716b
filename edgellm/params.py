"""The parameter objects, and every default of the runtime, once.

A model file gives a `ModelConfig` (see `edgellm.arch`); a person gives the two below.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgellm.checks import number, one_of, positive_number, take, whole_number

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
        take(self, "n_ctx", whole_number, 1, optional=True)
        take(self, "n_threads", whole_number, 1, MAX_THREADS, optional=True)
        take(self, "n_batch", whole_number, 1)
        take(self, "kv_type", one_of, KV_TYPES)
        take(self, "activations", one_of, ACTIVATIONS)
        take(self, "cache_bytes", whole_number, 1, optional=True)


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
        take(self, "temperature", number, 0)
        take(self, "top_k", whole_number, 0)
        take(self, "top_p", number, 0, 1)
        take(self, "min_p", number, 0, 1)
        take(self, "repeat_penalty", positive_number)
        take(self, "repeat_last_n", whole_number, 0)
        take(self, "seed", whole_number, 0, optional=True)
        take(self, "max_tokens", whole_number, 0, optional=True)
