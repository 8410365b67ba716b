"""The parameter objects, and every default of the runtime, once.

A model file gives a `ModelConfig` (see `edgellm.arch`); a person gives the two below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgellm.checks import (
    answer_format,
    biases,
    finite_number,
    flag,
    number,
    number_or_off,
    of_keys_and_values,
    one_of,
    path_or_name,
    plain_text,
    positive_number,
    some_texts,
    step_names,
    take,
    text_or_path,
    whole_number,
    whole_one_of,
)
from edgellm.dataclass import dataclass
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from typing import TypedDict

    import numpy as np
    from numpy.typing import NDArray

    # A step of one's own: ids int64 [n], logits float [n], and the ids of the text so far, int64.
    SamplingStep = Callable[[NDArray[np.int64], NDArray[Any], NDArray[np.int64]], Any]

    class SamplingKeywords(TypedDict, total=False):
        """The fields of `SamplingParams` as keywords, for type checkers."""

        temperature: float
        top_k: int
        top_p: float
        min_p: float
        repeat_penalty: float
        repeat_last_n: int
        seed: int | None
        max_tokens: int | None
        presence_penalty: float
        frequency_penalty: float
        dry_multiplier: float
        dry_base: float
        dry_allowed_length: int
        dry_penalty_last_n: int
        dry_sequence_breakers: Sequence[str]
        top_n_sigma: float
        typical_p: float
        xtc_probability: float
        xtc_threshold: float
        dynatemp_range: float
        dynatemp_exponent: float
        mirostat: int
        mirostat_tau: float
        mirostat_eta: float
        adaptive_target: float
        adaptive_decay: float
        logit_bias: Mapping[int, float] | None
        banned_strings: str | Sequence[str]
        stop: str | Sequence[str]
        samplers: str | Sequence[str | SamplingStep] | None
        logprobs: int | None
        response_format: Any
        grammar: str | None
        regex: str | None
        choices: str | Sequence[str] | None
        when_full: str
        n_keep: int | None

    class ChatKeywords(SamplingKeywords, total=False):
        """The fields of `ChatParams` and `SamplingParams` as keywords."""

        tools: Iterable[Any] | None
        tool_choice: Any
        parallel_tool_calls: bool | None
        think: bool | None
        think_budget: int | None
        continue_final_message: bool | None


DEFAULT_MODEL = "smollm2-135m"
MAX_THREADS = 1024
KV_TYPES = ("f16", "q8_0", "q4_0", "f32")
ACTIVATIONS = ("int8", "f32")
SPECULATE = ("auto", "always", "off")
WHEN_FULL = ("stop", "shift")
LAYOUTS = ("auto", "file", "tiles", "memory")
DEFAULT_WINDOW = 512  # tokens of a text that are read together to score them, or to collect an importance matrix
LEAST_WINDOW = 8  # some to read and some to score
DEFAULT_CONTEXT_LIMIT = 8192  # tokens; a model's own context when that is shorter

# The steps of sampling, and the parameters that turn each on: it is off when all have one of the values here.
SAMPLERS: dict[str, dict[str, tuple[float, ...]]] = {
    "penalties": {"repeat_penalty": (1,), "presence_penalty": (0,), "frequency_penalty": (0,)},
    "dry": {"dry_multiplier": (0,)},
    "top_n_sigma": {"top_n_sigma": (-1, 0)},
    "top_k": {"top_k": (0,)},
    "typ_p": {"typical_p": (1,)},
    "top_p": {"top_p": (1,)},
    "min_p": {"min_p": (0,)},
    "xtc": {"xtc_probability": (0,)},
    "temperature": {"temperature": (1,), "dynatemp_range": (0,)},
    "mirostat": {"mirostat": (0,)},
    "adaptive_p": {"adaptive_target": (-1,)},
}
SAMPLER_ALIASES = {"typical": "typ_p", "typical_p": "typ_p", "temp": "temperature", "nucleus": "top_p"}
DEFAULT_SAMPLERS = tuple(name for name in SAMPLERS if name != "mirostat")
MIROSTAT_SAMPLERS = ("penalties", "dry", "temperature", "mirostat")


# The parameters that ask for an answer of a given structure; only one of them at a time.
STRUCTURES = ("response_format", "grammar", "regex", "choices")
MOST_CHOICES = 2000  # of more, a grammar takes long to make, and of some thousands it cannot be made
MOST_STRINGS = 1000  # that end an answer, or are banned in it; each costs time before the first token


@dataclass(frozen=True)
class RuntimeConfig:
    """How a model is run.

    n_ctx:      tokens a conversation may hold; None takes the model's own, at most DEFAULT_CONTEXT_LIMIT.
    n_threads:  worker threads; None takes what is fastest on this machine.
    n_batch:    most tokens of a prompt computed in one pass; between passes a prompt can be cancelled.
    kv_type:    how the cache stores keys and values: "f16", "q8_0" in about half the memory, "q4_0" in a bit more
                than a quarter, "f32" exactly. "q8_0:q4_0" keeps keys in the one and values in the other.
    activations: "int8" rounds what meets quantized weights to eight bits, in groups, which is fast and nearly exact;
                "f32" rounds nothing: the reference, at a fraction of the speed.
    cache_bytes: of memory for keys and values of all texts together; None takes part of what is free.
    speculate:  whether tokens are guessed and several checked in one pass, which changes no answer. "auto" guesses
                where that is quicker, as it measures by itself; "always" even where it is not.
    draft:      a smaller model of the same vocabulary that guesses too, a path or a name.
    draft_layers: so many of the model's own first layers guess too.
    draft_max:  tokens that are guessed for a text at once, at most.
    disk_bytes: that keys and values of long prompts may take on the disk, so that they are there after a restart; 0
                keeps nothing there.
    layout:     how weights lie: "file" as the file has them; "tiles" in the order in which they are read, in a second
                file in the cache folder that is made once; "memory" likewise in memory, made at every start; "auto"
                takes tiles where they are clearly quicker and the disk has room; the first time, it makes them while
                the model runs from its file. Results are the same to the bit.
    template:   the chat template: a file with one, the name of a known one, or Jinja text; None takes the model's.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    n_batch: int = 512
    kv_type: str = "f16"
    activations: str = "int8"
    cache_bytes: int | None = None
    speculate: str = "auto"
    draft: str | os.PathLike[str] | None = None
    draft_layers: int | None = None
    draft_max: int = 15
    disk_bytes: int = 2 << 30
    layout: str = "auto"
    template: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        take(self, "n_ctx", whole_number, 1, optional=True)
        take(self, "n_threads", whole_number, 1, MAX_THREADS, optional=True)
        take(self, "n_batch", whole_number, 1)
        take(self, "kv_type", of_keys_and_values, KV_TYPES)
        take(self, "activations", one_of, ACTIVATIONS)
        take(self, "cache_bytes", whole_number, 1, optional=True)
        take(self, "speculate", one_of, SPECULATE)
        take(self, "draft", path_or_name, optional=True)
        take(self, "draft_layers", whole_number, 1, optional=True)
        take(self, "draft_max", whole_number, 1)
        take(self, "disk_bytes", whole_number, 0)
        for name in ("draft", "draft_layers"):
            if self.speculate == "off" and getattr(self, name) is not None:
                raise UsageError(
                    f"{name} is {getattr(self, name)}, but speculate is off; leave one of them out", parameter=name
                )
        take(self, "layout", one_of, LAYOUTS)
        take(self, "template", text_or_path, optional=True)


@dataclass(frozen=True)
class ChatParams:
    """What a chat may ask for beside its messages. docs/structure.md explains it.

    tools:         Python functions, or schemas as OpenAI has them, that the model may call: see `tool_calls` of the
                   answer, and `edgellm.run_tools`, which does what the calls ask for.
    tool_choice:   "auto" (the model may call some), "required" (it must), "none", or the name of the one that it must.
    parallel_tool_calls:  False lets an answer have one call at most, and end with it.
    think:         whether the model thinks before it answers; None leaves that to its template.
    think_budget:  tokens of a thought at most.
    continue_final_message:  whether the answer goes on from the last message: True insists, False begins a new one;
                   None goes on where the last message is a text of the assistant. What comes back is what is new.

    Raises UsageError for values that cannot work; what the tools are, is looked at when they are used.
    """

    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    think: bool | None = None
    think_budget: int | None = None
    continue_final_message: bool | None = None

    def __post_init__(self) -> None:
        take(self, "parallel_tool_calls", flag, optional=True)
        take(self, "think", flag, optional=True)
        take(self, "continue_final_message", flag, optional=True)
        take(self, "think_budget", whole_number, 0, optional=True)
        if self.think is False and self.think_budget is not None:
            raise UsageError("think_budget cannot go with think=False; leave one out", parameter="think_budget")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when an answer ends. docs/sampling.md explains each step.

    Named and meant as llama.cpp has them. A step that is off costs nothing.

    temperature:         divides the logits; 0 is greedy.
    top_k:               keep the k most likely tokens; 0 is off.
    top_p:               keep the most likely tokens until their probabilities reach p; 1 is off.
    min_p:               keep tokens at least min_p times as likely as the likeliest; 0 is off.
    repeat_penalty:      divides positive and multiplies negative logits of the last `repeat_last_n` tokens; 1 is off.
    repeat_last_n:       tokens that the three penalties look back; -1 is the whole text.
    seed:                same seed, same text; None draws one.
    max_tokens:          stop after so many new tokens; None goes on to the end of the text or of the context.
    presence_penalty:    taken from the logit of every one of those tokens; 0 is off.
    frequency_penalty:   the same for each time that it is there; 0 is off.
    dry_multiplier:      how much DRY takes from what would go on with a repetition; 0 is off.
    dry_base:            times so much for each token that the repetition is longer.
    dry_allowed_length:  tokens of a repetition that cost nothing yet.
    dry_penalty_last_n:  tokens that DRY looks back; -1 is the whole text.
    dry_sequence_breakers:  texts that no repetition reaches across.
    top_n_sigma:         keep tokens whose logit is at most so many standard deviations below the largest; -1 is off.
    typical_p:           keep the tokens nearest to the expected surprise until their probabilities reach p; 1 is off.
    xtc_probability:     how often XTC takes out the likeliest tokens; 0 is off.
    xtc_threshold:       those are tokens of at least this probability, but for the last of them; above 0.5 is off.
    dynatemp_range:      temperature is up to so much lower or higher, by the entropy of the choice; 0 is off.
    dynatemp_exponent:   how entropy becomes temperature.
    mirostat:            2 keeps the surprise of the text near mirostat_tau, in the place of other filters; 0 is off.
    mirostat_tau:        that surprise, in bits for each token.
    mirostat_eta:        how quickly it is approached.
    adaptive_target:     draw tokens of about this probability; -1 is off.
    adaptive_decay:      how long earlier tokens count for that, from 0 to 0.99.
    logit_bias:          what is added to the logits of some tokens, by their ids; -inf forbids one.
    banned_strings:      texts that never are in an answer.
    stop:                texts that end an answer, and are not shown.
    samplers:            the steps in their order: names out of SAMPLERS, and functions of
                         (ids, logits, context); see `engine/sampling/custom.py`.
    logprobs:            keep the log-probability of each token, and those of so many alternatives; None is off.
    response_format:     the answer is JSON of a schema: a dict, a Pydantic model, a dataclass or another type, or
                         {"type": "json_object"}. See docs/structure.md.
    grammar:             the answer is a text of a grammar, in GBNF or in llguidance's Lark.
    regex:               all of the answer matches a regular expression.
    choices:             the answer is one of some texts.
    when_full:           what happens when the context is full: "stop" ends the answer; "shift" lets it go on without
                         the oldest of what was read, as often as needed. See docs/kv-cache.md.
    n_keep:              first tokens of the prompt that a shift never leaves out; -1 keeps all of it. None keeps four,
                         and of a chat the system text and as many of the latest turns as fit, whole.

    Raises UsageError for values that cannot work, and for those that contradict each other.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int | None = None
    max_tokens: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    logit_bias: Mapping[int, float] | None = None
    banned_strings: str | Sequence[str] = ()
    stop: str | Sequence[str] = ()
    samplers: str | Sequence[str | SamplingStep] | None = None
    logprobs: int | None = None
    response_format: Any = None
    grammar: str | None = None
    regex: str | None = None
    choices: str | Sequence[str] | None = None
    when_full: str = "stop"
    n_keep: int | None = None

    def __post_init__(self) -> None:
        take(self, "temperature", number, 0)
        take(self, "top_k", whole_number, 0)
        take(self, "top_p", number, 0, 1)
        take(self, "min_p", number, 0, 1)
        take(self, "repeat_penalty", positive_number)
        take(self, "repeat_last_n", whole_number, -1)
        take(self, "seed", whole_number, 0, optional=True)
        take(self, "max_tokens", whole_number, 0, optional=True)
        take(self, "presence_penalty", finite_number)
        take(self, "frequency_penalty", finite_number)
        take(self, "dry_multiplier", number, 0)
        take(self, "dry_base", number, 1)
        take(self, "dry_allowed_length", whole_number, 1)
        take(self, "dry_penalty_last_n", whole_number, -1)
        take(self, "dry_sequence_breakers", some_texts, MOST_STRINGS)
        take(self, "top_n_sigma", number_or_off, 0)
        take(self, "typical_p", number, 0, 1)
        take(self, "xtc_probability", number, 0, 1)
        take(self, "xtc_threshold", number, 0, 1)
        take(self, "dynatemp_range", number, 0)
        take(self, "dynatemp_exponent", number, 0)
        take(self, "mirostat", whole_one_of, (0, 2))
        take(self, "mirostat_tau", positive_number)
        take(self, "mirostat_eta", positive_number)
        take(self, "adaptive_target", number_or_off, 0, 1)
        take(self, "adaptive_decay", number, 0, 0.99)
        take(self, "logit_bias", biases, optional=True)
        take(self, "banned_strings", some_texts, MOST_STRINGS)
        take(self, "stop", some_texts, MOST_STRINGS)
        take(self, "samplers", step_names, SAMPLERS, SAMPLER_ALIASES, optional=True)
        take(self, "logprobs", whole_number, 0, optional=True)
        take(self, "response_format", answer_format, optional=True)
        take(self, "grammar", plain_text, optional=True)
        take(self, "regex", plain_text, optional=True)
        take(self, "choices", some_texts, MOST_CHOICES, optional=True)
        take(self, "when_full", one_of, WHEN_FULL)
        take(self, "n_keep", whole_number, -1, optional=True)
        self._refuse_contradictions()

    @property
    def order(self) -> tuple[str | SamplingStep, ...]:
        """The steps in their order, those that are off too."""
        if self.samplers is not None:
            return tuple(self.samplers)
        return MIROSTAT_SAMPLERS if self.mirostat else DEFAULT_SAMPLERS

    @property
    def steps(self) -> list[str | SamplingStep]:
        """Those of `order` that change something."""
        return [step for step in self.order if not isinstance(step, str) or self._is_on(step)]

    def _is_on(self, step: str) -> bool:
        return any(getattr(self, name) not in off for name, off in SAMPLERS[step].items())

    def _refuse_contradictions(self) -> None:
        """What was set for a step that does not run, and what cannot go together."""
        structures = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(structures) > 1:
            raise UsageError(f"{structures[1]} cannot go with {structures[0]}; leave one out", parameter=structures[1])
        if structures and self.stop:
            raise UsageError(
                f"stop cannot go with {structures[0]}: it would end an answer that is not whole; leave stop out",
                parameter="stop",
            )
        if self.choices is not None and not self.choices:
            raise UsageError("choices is empty; expected at least one text", parameter="choices")
        order = self.order
        for step, switches in SAMPLERS.items():
            for name, off in switches.items():
                value = getattr(self, name)
                if step not in order and value not in off and value != getattr(SamplingParams, name):
                    reason = "mirostat stands in the place of that step;"
                    if self.samplers is not None:
                        reason = f"samplers has no {step}; add it there, or"
                    raise UsageError(f"{name} is {value}, but {reason} leave {name} out", parameter=name)
        for step in ("mirostat", "adaptive_p"):
            if step in order[:-1] and self._is_on(step):
                raise UsageError(f"samplers has {step} before others; it draws, so put it last", parameter="samplers")
        if self.temperature == 0 and "temperature" in order:
            for name in ("mirostat", "adaptive_target", "dynatemp_range"):
                value = getattr(self, name)
                if value != getattr(SamplingParams, name):
                    raise UsageError(
                        f"{name} is {value}, but temperature is 0, which always takes the likeliest token; choose a "
                        f"higher temperature, or leave {name} out",
                        parameter=name,
                    )
