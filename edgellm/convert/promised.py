"""Whether a checkpoint has the tensors that its config.json promises, and no others.

transformers goes by config.json: what a checkpoint lacks it makes up, and what has no place it leaves out, both with a
warning that few read. The model then is another one. So a file and its config.json that contradict each other are
refused, by the tensor and by the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgellm.arch import ModelConfig
from edgellm.arch.encoder_checkpoint import EncoderCheckpoint
from edgellm.arch.huggingface import HuggingFace, Settings
from edgellm.arch.promises import ALWAYS, Promise
from edgellm.arch.stacks import Experts
from edgellm.errors import FormatError

_DENSE = ("ffn_gate", "ffn_up", "ffn_down")
# What a forward pass asks for, and what a checkpoint has in its place where it keeps several together.
_FUSED = dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn_qkv") | {
    "ffn_gate": "ffn_up", "ssm_alpha": "ssm_ba", "ssm_beta": "ssm_ba",
}  # fmt: skip


def check_promises(
    family: HuggingFace,
    settings: Settings,
    config: ModelConfig,
    metadata: Mapping[str, Any],
    theirs: Mapping[str, str],
) -> None:
    """Raise FormatError for the first tensor that is missing or has no place by what config.json says.

    theirs:  GGUF's names of the tensors that are there, and the checkpoint's.
    """
    for part, promise in _promises(family, config, metadata).items():
        keys = [key for key in promise.keys if key in settings.values] or promise.keys[:1]
        says = " and ".join(f"{key} is {_shown(settings.get(key))}" for key in keys)
        in_layers = part not in (f"{ours}.weight" for ours in family.tensors)
        for layer in range(config.n_layers) if in_layers else [0]:
            name, wanted = f"blk.{layer}.{part}" if in_layers else part, promise.holds(settings, layer)
            where = f"layer {layer}" if in_layers else "the model"
            if wanted and name not in theirs:
                why = f"config.json says that {where} has one ({says})" if says else "this family always has it"
                raise FormatError(
                    f"the checkpoint has no tensor {name!r}, and {why}; a file is missing, or config.json is wrong"
                )
            if wanted is False and name in theirs:
                raise FormatError(
                    f"the checkpoint has tensor {name!r}, and config.json says that {where} has none ({says}); "
                    "correct config.json to keep it, or take it out"
                )
    for name, key, wanted in _biases(family, settings, config):
        has_weight = f"{name.removesuffix('bias')}weight" in theirs
        if wanted and has_weight and name not in theirs:
            why = "this family has them" if key is None else f"config.json says that it has them ({key})"
            raise FormatError(f"the checkpoint has no tensor {name!r}, and {why}")
        if name in theirs and not wanted:
            raise FormatError(
                f"the checkpoint has tensor {name!r}, and config.json says that there are no such biases: {key} is "
                "false or missing; make it true to keep them, or take them out"
            )


def _promises(family: HuggingFace, config: ModelConfig, metadata: Mapping[str, Any]) -> dict[str, Promise]:
    """Those of the family by the names of tensors in a layer, and that a layer has experts or a feed-forward."""
    found: dict[str, Promise] = {}
    n_dense = metadata.get(f"{config.architecture}.leading_dense_block_count", 0)
    experts = Promise(lambda s, layer: layer >= n_dense, family.dense_first)
    if config.mixture is not None:
        dense = Promise(lambda s, layer: layer < n_dense, family.dense_first)
        stacks = [name for name, place in family.experts.items() if isinstance(place, Experts)]
        found |= {name.removeprefix("blk.{}.") + ".weight": experts for name in ("ffn_gate_inp", *stacks)}
        found |= {f"{name}.weight": dense for name in _DENSE}
    if isinstance(family, EncoderCheckpoint):  # whose forward pass takes as many parts as there are
        for ours in family.tensors:
            if ours != "output":  # of a decoder that makes vectors
                found[ours.removeprefix("blk.{}.") + ".weight"] = ALWAYS
    for part, promise in family.promises.items():
        is_of_experts = config.mixture is not None and "exp" in part
        found[part if "." in part else f"{part}.weight"] = _both(promise, experts) if is_of_experts else promise
    return found


def _both(a: Promise, b: Promise) -> Promise:
    return Promise(lambda s, layer: a.holds(s, layer) and b.holds(s, layer), (*a.keys, *b.keys))


def _biases(family: HuggingFace, settings: Settings, config: ModelConfig) -> Iterator[tuple[str, str | None, bool]]:
    """The biases that linears and norms can have, the keys that say so, and whether they do."""
    for part, key in family.biases.items():
        wanted = key is None or settings.flag(key)
        if f"blk.{{}}.{part}" in family.tensors:
            yield from ((f"blk.{layer}.{part}.bias", key, wanted) for layer in range(config.n_layers))
        elif part in family.tensors:
            yield f"{part}.bias", key, wanted


def _shown(value: Any) -> str:
    """A value as config.json has it."""
    if value is None:
        return "missing"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def in_their_names(message: str, family: HuggingFace, theirs: Mapping[str, str], n_layers: int) -> str:
    """An error about a tensor of GGUF, told in the checkpoint's names."""
    names = dict(family.names(n_layers))
    return re.sub(r"'([\w.]+)'", lambda match: repr(_their_name(match[1], family, theirs, names)), message, count=1)


def _their_name(ours: str, family: HuggingFace, theirs: Mapping[str, str], names: Mapping[str, str]) -> str:
    """What the checkpoint calls a tensor, or would call it if it had it: as in another layer, if it is in one."""
    if ours in theirs:
        return theirs[ours]
    layer, part = match.groups() if (match := re.fullmatch(r"blk\.(\d+)\.(.+)", ours)) else ("", "")
    if not part:
        return _prefix(theirs, names) * (not ours.startswith("cls")) + names.get(ours, ours)
    for other, name in theirs.items():
        number = re.fullmatch(rf"blk\.(\d+)\.{re.escape(part)}", other)
        if number is not None and f".{number[1]}." in name:
            return name.replace(f".{number[1]}.", f".{layer}.", 1)
    if ours in names:
        return names[ours]
    role, _, kind = part.rpartition(".")
    if (place := family.experts.get(f"blk.{{}}.{role}")) is not None:
        return _name_of_place(place, layer, kind)
    fused = f"blk.{layer}.{_FUSED.get(role, role)}.{kind}"
    return names.get(fused, ours)


def _prefix(theirs: Mapping[str, str], names: Mapping[str, str]) -> str:
    """What the checkpoint puts in front of all names, where the model is a part of a larger one."""
    both = ((name, names[ours]) for ours, name in theirs.items() if ours in names)
    return next((name.removesuffix(usual) for name, usual in both if name != usual and name.endswith(usual)), "")


def _name_of_place(place: Any, layer: str, kind: str) -> str:
    """Of experts that are nowhere: the name that most checkpoints of the family have."""
    if not isinstance(place, Experts):
        return f"{place.name.format(layer)}.weight"
    if place.split is not None:
        return f"{place.split.replace('{}', layer, 1).format('*')}.{kind}"
    return f"{place.stacked.format(layer)}_bias" if kind == "bias" else place.stacked.format(layer)
