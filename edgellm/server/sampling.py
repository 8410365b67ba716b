"""The fields of requests that are the engine's own parameters, whichever interface they come by."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A request, or a part of one: no field that nobody knows, and no text where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Sampling(Strict):
    """How tokens are chosen, in the words of llama.cpp. What is left out is as `edgellm run` has it."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None
    banned_strings: str | list[str] | None = None
    samplers: str | list[str] | None = None
    seed: int | None = None
    when_full: str | None = None
    n_keep: int | None = None

    def sampling(self) -> dict[str, Any]:
        """The keywords that are given."""
        given = {name: value for name in Sampling.model_fields if (value := getattr(self, name)) is not None}
        if (seed := given.get("seed", 0)) < 0:  # any 64-bit number is one for OpenAI; -1 draws one for llama.cpp
            given["seed"] = None if seed == -1 else seed & (2**63 - 1)
        return given
