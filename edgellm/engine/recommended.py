"""How a model's makers would have its tokens chosen: the keys `general.sampling.*` of a GGUF file.

They are defaults. What a person says wins, and what cannot go with that gives way.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from edgellm.errors import UsageError
from edgellm.params import SamplingParams

PREFIX = "general.sampling."
# The keys of llama.cpp, and the parameters that they mean.
KEYS = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repeat_last_n",
    "penalty_repeat": "repeat_penalty",
    "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
    "sequence": "samplers",
}


def recommended_sampling(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The parameters that a file recommends, by name, and what a person should know of those that cannot be used."""
    found: dict[str, Any] = {}
    notes = []
    for key, value in metadata.items():
        if not key.startswith(PREFIX):
            continue
        name = KEYS.get(key.removeprefix(PREFIX))
        if name is None:
            notes.append(f"{key} is not used: edgellm knows no such setting")
            continue
        off = name == "top_k" and isinstance(value, int) and value < 0  # as some spell it
        asked: dict[str, Any] = {name: 0 if off else _plain(value)}
        try:
            found[name] = getattr(SamplingParams(**asked), name)
        except UsageError as error:
            notes.append(f"{key} is not used: {error}")
    fits = fitting(found, {})
    notes += [f"the recommended {name} is not used: it cannot go with the rest" for name in found if name not in fits]
    return fits, notes


def fitting(recommended: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """What is recommended beside parameters that were given, without what contradicts them.

    Raises UsageError for parameters that cannot work by themselves.
    """
    kept = {name: value for name, value in recommended.items() if name not in typed}
    if kept:
        SamplingParams(**typed)
    while kept:
        try:
            SamplingParams(**kept, **typed)
            break
        except UsageError as error:
            gives_way = {error.parameter} if error.parameter in kept else {"samplers", "mirostat"} & kept.keys()
            kept = {name: value for name, value in kept.items() if gives_way and name not in gives_way}
    return kept


def recommended_over_defaults(recommended: Mapping[str, Any], typed: Mapping[str, Any]) -> SamplingParams:
    """Parameters that were given, over recommended ones, over the defaults. Raises UsageError for what cannot work."""
    return SamplingParams(**fitting(recommended, typed), **typed)


def _plain(value: Any) -> Any:
    """A float of a file as people write it: 0.95 is stored as 0.949999988 in float32."""
    return float(f"{value:.7g}") if isinstance(value, float) and isfinite(value) else value
