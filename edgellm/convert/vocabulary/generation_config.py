"""generation_config.json of a checkpoint: how its makers would have tokens chosen, as keys of GGUF and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.convert.vocabulary.files import Files, shown
from edgellm.engine.recommended import KEYS, PREFIX, recommended_sampling
from edgellm.errors import UsageError
from edgellm.params import SamplingParams

FILE = "generation_config.json"
# What `transformers` calls them; other names are those of GGUF's keys, as llama.cpp reads them.
_NAMES = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
# Settings of the file that choose tokens and have no key, with the values that mean nothing, beside an empty list.
_NO_KEY: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "no_repeat_ngram_size": (0,), "num_beams": (1,),
    "penalty_alpha": (0,), "top_h": (), "encoder_repetition_penalty": (1,), "bad_words_ids": (), "suppress_tokens": (),
    "presence_penalty": (0,), "frequency_penalty": (0,), "sequence_bias": (), "guidance_scale": (1,),
    "renormalize_logits": (False,), "min_new_tokens": (0,), "min_length": (0,), "begin_suppress_tokens": (),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "exponential_decay_length_penalty": (), "constraints": (),
    "force_words_ids": (), "num_beam_groups": (1,), "diversity_penalty": (0,), "encoder_no_repeat_ngram_size": (0,),
    "dola_layers": (), "watermarking_config": (), "token_healing": (False,),
}  # fmt: skip


def sampling_metadata(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The keys `general.sampling.*` for a checkpoint's folder; what cannot be kept is added to `notes`.

    do_sample false means the likeliest token, whatever else is said. Raises FormatError for a value that cannot be.
    """
    record = Files(folder).json(FILE)
    found: dict[str, Any] = {}
    for name, value in record.values.items():
        key = _NAMES.get(name, name)
        if value is None:
            continue
        if key in KEYS:
            found[key] = _checked(record, name, KEYS[key], value)
        elif name in _NO_KEY and value not in (*_NO_KEY[name], [], {}):
            notes.append(f"{FILE}: {name} {shown(value)} is left out: a GGUF file has no key for it")
    if record.flag("do_sample") is False:
        found["temp"] = 0.0
    return {PREFIX + key: value for key, value in found.items()}


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same on the way back: what of generation_config.json a file's keys mean."""
    recommended, _ = recommended_sampling(metadata)
    if not recommended:
        return {}
    names = {KEYS[key]: name for name, key in _NAMES.items()} | {"repeat_last_n": "penalty_last_n"}
    found = {names.get(name, name): value for name, value in recommended.items()}
    if "samplers" in found:
        found["sequence"] = ";".join(found.pop("samplers"))
    if found.get("temperature") == 0:
        return {**{name: value for name, value in found.items() if name != "temperature"}, "do_sample": False}
    return {"do_sample": True, **found}


def _checked(record: Any, name: str, parameter: str, value: Any) -> Any:
    if parameter == "top_k" and type(value) is int and value < 0:  # off, as some spell it
        value = 0
    try:
        taken = getattr(SamplingParams(**{parameter: value}), parameter)
    except UsageError as error:
        raise record.wrong(name, str(error).partition("; expected ")[2] or "a setting that edgellm knows") from None
    return ";".join(taken) if parameter == "samplers" else taken
