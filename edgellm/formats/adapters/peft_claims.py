"""What adapter_config.json says that a PEFT adapter holds, beside what it does hold.

Where trained weights that it names are not there, or it is not told which of two is meant, the adapter is refused: it
would be another than the one that was trained. What it holds beyond that is used, as its tensors say, and told.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.formats.adapters.naming import Naming
from edgellm.formats.adapters.peft_targets import Targets, ends_with, names_in
from edgellm.formats.settings import Settings

CONFIG = "adapter_config.json"
BIASES = ("none", "all", "lora_only")
# Tasks whose adapters have heads or whole models that edgellm does not have.
_OTHER_TASKS = ("SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS")
_TASKS = ("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION", *_OTHER_TASKS)
_HEADS = ("classifier", "score")  # PEFT adds both names where one head is trained, whichever the model has
_LAYER = re.compile(r".*?\.[^.]*\.(\d+)\.")  # as PEFT finds it: the first number behind a name
_MOST_NAMED = 3


@dataclass(frozen=True)
class Held:
    """What a file holds, by the checkpoint's names.

    changed:   modules with low-rank matrices. experts: the same, of experts.
    whole:     tensors that take the place of the model's, such as "lm_head.weight".
    has_score: whether there is a head that scores texts.
    theirs:    what the file calls modules with matrices, by the checkpoint's names: in a larger model they have others.
    """

    changed: Sequence[str]
    experts: Sequence[str]
    whole: Sequence[str]
    has_score: bool
    theirs: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole_modules(self) -> set[str]:
        return {name.rpartition(".")[0] for name in self.whole}


def check_claims(settings: Settings, held: Held, naming: Naming, base: Collection[str] | None) -> list[str]:
    """What a person should know. Raises FormatError or UnsupportedError for what contradicts itself.

    base:  the base model's tensors by GGUF's names; None where it is not there.
    """
    _check_task(settings, held)
    saved = names_in(settings, "modules_to_save")
    notes = [*_of_saved(saved, held, naming, base), *_of_biases(settings, saved, held, naming, base)]
    return [
        *notes,
        *_of_layers(settings, held),
        *_of_targets(settings, held),
        *_of_missing(settings, held, naming, base),
    ]


def _check_task(settings: Settings, held: Held) -> None:
    task = settings.get("task_type")
    if task in _OTHER_TASKS:
        raise UnsupportedError(f"{CONFIG}: task_type is {task}; edgellm has adapters of CAUSAL_LM, and reward models")
    if task == "SEQ_CLS" and not held.has_score:
        raise FormatError(
            f"{CONFIG}: task_type is SEQ_CLS, and the adapter holds no score.weight; expected the head that was trained"
        )
    if task not in (None, *_TASKS):
        raise FormatError(f"{CONFIG}: task_type is {shown(task)}; expected one of {', '.join(_TASKS)}")


def _of_saved(saved: list[str], held: Held, naming: Naming, base: Collection[str] | None) -> list[str]:
    notes = []
    whole = held.whole_modules
    for name in saved:
        if name in _HEADS and held.has_score:
            continue
        known = {theirs.rpartition(".")[0]: ours for ours, theirs in naming.names.items() if ours.endswith(".weight")}
        meant = [module for module in known if _is_within(module, name)]
        missing = [module for module in meant if module not in whole and (base is None or known[module] in base)]
        is_any = any(_is_within(module, name) for module in whole)
        if meant and (not is_any or (missing and base is not None)):
            raise FormatError(
                f"{CONFIG}: modules_to_save names {shown(name)}, and the adapter holds no "
                f"{(missing or meant)[0]}.weight; expected what was trained of it: save the adapter again"
            )
        if not is_any:
            notes.append(f"{CONFIG}: modules_to_save names {shown(name)}, of which the adapter holds nothing")
    return notes


def _of_biases(
    settings: Settings, saved: list[str], held: Held, naming: Naming, base: Collection[str] | None
) -> list[str]:
    bias = settings.get("bias", "none") or "none"
    if bias not in BIASES:
        raise FormatError(f"{CONFIG}: bias is {shown(bias)}; expected one of {', '.join(BIASES)}")
    changed = {*held.changed, *held.experts}

    def is_said(theirs: str) -> bool:
        module = theirs.removesuffix(".bias")
        return bias == "all" or (bias == "lora_only" and module in changed)

    found = [name for name in held.whole if name.endswith(".bias")]
    wanted = [
        theirs for ours, theirs in naming.names.items()
        if theirs.endswith(".bias") and base is not None and ours in base and is_said(theirs)
    ]  # fmt: skip
    missing = [theirs for theirs in wanted if theirs not in found]
    if missing and len(missing) == len(wanted):
        raise FormatError(
            f"{CONFIG}: bias is {bias!r}, and the adapter holds no {missing[0]}; expected the trained biases"
        )
    beyond = [name for name in found if not is_said(name) and not any(_is_within(name, one) for one in saved)]
    notes = []
    if missing:
        notes.append(f"{CONFIG}: bias is {bias!r}, and of some the adapter holds nothing: {_some(missing)}")
    if beyond:
        notes.append(f"{CONFIG}: bias is {bias!r}, and the adapter holds {_some(beyond)}, which is used all the same")
    return notes


def _of_layers(settings: Settings, held: Held) -> list[str]:
    given = settings.get("layers_to_transform")
    if given in (None, []):
        return []
    layers = given if isinstance(given, list) else [given]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise FormatError(f"{CONFIG}: layers_to_transform is {shown(given)}; expected numbers of layers")
    found = {int(match[1]): module for module in held.changed if (match := _LAYER.match(module))}
    if beyond := sorted(found.keys() - set(layers)):
        raise FormatError(
            f"{CONFIG}: layers_to_transform is {shown(given)}, and the adapter holds {found[beyond[0]]}; expected "
            "those layers alone"
        )
    missing = [str(layer) for layer in layers if layer not in found]
    if not missing:
        return []
    return [f"{CONFIG}: layers_to_transform names {_some(missing)}, of which the adapter holds nothing"]


def _of_targets(settings: Settings, held: Held) -> list[str]:
    """What target_modules names and the file does not hold, and the other way round."""
    targets, excluded = (Targets.of(settings, name, held.theirs) for name in ("target_modules", "exclude_modules"))
    notes = [*targets.notes, *excluded.notes]
    named = [module for module in held.changed if excluded.mean(module)]
    if named:
        said = [one for one in excluded.each if any(excluded.is_meant(module, one) for module in named)]
        out = named if excluded.is_pattern else said
        notes.append(f"{CONFIG}: exclude_modules names {_some(out)}, which the adapter holds: it is used")
    if not targets.is_told:
        return notes
    every = [*held.changed, *held.experts, *held.whole_modules]
    notes += [
        f"{CONFIG}: target_modules names {one!r:.60}, of which the adapter holds nothing"
        for one in targets.each if not any(targets.is_meant(module, one) for module in every)
    ]  # fmt: skip
    parameters = settings.get("target_parameters")
    beyond = [
        module for module in held.changed
        if not targets.mean(module) and not any(
            ends_with(module, one) or ends_with(f"{module}.weight", one)
            for one in (parameters if isinstance(parameters, list) else [])
        )
    ]  # fmt: skip
    if beyond:
        last = list(dict.fromkeys(module.rpartition(".")[2] for module in beyond))
        named = beyond if targets.is_pattern else last
        notes.append(f"{CONFIG}: target_modules does not name {_some(named)}, which the adapter holds: it is used")
    return notes


def _of_missing(settings: Settings, held: Held, naming: Naming, base: Collection[str] | None) -> list[str]:
    """Single modules that target_modules names and that were lost: others of that name are there."""
    targets = Targets.of(settings, "target_modules", held.theirs)
    is_less = settings.get("layers_to_transform") not in (None, []) or settings.get("exclude_modules")
    if base is None or is_less or not targets.knows_others:
        return []
    every = {*held.changed, *held.experts, *held.whole_modules}
    missing = []
    for target in targets.each:
        if not any(targets.is_meant(module, target) for module in every):
            continue  # told by _of_targets
        missing += [
            module for ours, theirs in naming.names.items()
            if ours.endswith(".weight") and ours in base and ours not in naming.stacks
            and targets.is_meant(module := theirs.removesuffix(".weight"), target) and module not in every
        ]  # fmt: skip
    if not missing:
        return []
    named = _some(list(dict.fromkeys(missing)))
    return [f"{CONFIG}: target_modules names {named}, of which the adapter holds nothing: it may have lost tensors"]


def _is_within(module: str, name: str) -> bool:
    """Whether a module is one of that name, or a part of it."""
    return f".{name}." in f".{module}."


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
