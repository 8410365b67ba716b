"""What adapter_config.json says: which scale each matrix of a PEFT adapter has, and what edgellm does not know."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.formats.adapters.naming import Naming
from edgellm.formats.adapters.patterns import check_key, fitting
from edgellm.formats.adapters.peft_claims import CONFIG, Held, check_claims
from edgellm.formats.settings import Settings

STEM = "adapter_model"  # of the file with the tensors
DEFAULT_RANK, DEFAULT_ALPHA = 8, 8  # PEFT's, for what the file leaves out

# Settings that change what an adapter computes in ways that edgellm does not have.
_REFUSED = {
    "alora_invocation_tokens": "an adapter that is switched on by tokens (activated LoRA)",
    "arrow_config": "a router over adapters (Arrow)",
    "kasa_config": "singular values that are learnt (KaSA)",
    "layer_replication": "layers that stand several times",
    "lora_bias": "a bias of lora_B",
    "monteclora_config": "weights that are drawn at random (MonteCLoRA)",
    "trainable_token_indices": "single tokens that were trained",
    "use_bdlora": "block-diagonal matrices",
    "use_qalora": "grouped inputs (QALoRA)",
}
# How the matrices were begun; the others change the base model's own weights at the beginning.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva", "mini", "eva_init")
# Settings of the training, or of how an adapter is put on, that change nothing in what its tensors mean.
_PASSED_OVER = (
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "alpha_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type",
    "use_dora", "use_rslora", "velora_config",
)  # fmt: skip


class PeftSettings:
    """The settings of a LoRA adapter, checked. Raises FormatError or UnsupportedError naming the setting.

    notes:    what a person should know.
    version:  of PEFT that wrote it, as three numbers; None where the file does not say it.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._s = s = Settings(values, {"r": DEFAULT_RANK, "lora_alpha": DEFAULT_ALPHA}, CONFIG)
        self.notes: list[str] = []
        if s.get("peft_type") != "LORA":
            raise UnsupportedError(f"{CONFIG}: the adapter is {shown(s.get('peft_type'))}; edgellm reads LORA, "
                                   "PROMPT_TUNING, P_TUNING and PREFIX_TUNING")  # fmt: skip
        for name, what in _REFUSED.items():
            if s.get(name) not in (None, False, [], {}):
                raise UnsupportedError(f"{CONFIG}: {name} is {shown(s.get(name))}: {what}, which edgellm does not have")
        if s.get("init_lora_weights") not in _PLAIN_BEGINNINGS:
            raise UnsupportedError(
                f"{CONFIG}: init_lora_weights is {shown(s.get('init_lora_weights'))}, which changed the base model's "
                "own weights: save the adapter with path_initial_model_for_weight_conversion, which makes it plain LoRA"
            )
        if s.flag("fan_in_fan_out"):
            self.notes.append(f"{CONFIG}: fan_in_fan_out is true; as in PEFT, it means nothing for linears")
        self.notes += notes_of(values, (*_PASSED_OVER, *_REFUSED))
        self.is_dora = s.flag("use_dora")
        self.rank_stabilized = s.flag("use_rslora")
        self.dropout = self._share("lora_dropout")
        self.ties_weights = s.flag("ensure_weight_tying")
        self.target_parameters = _names(s, "target_parameters")
        said = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", str(s.get("peft_version", "")))
        self.version = None if said is None else tuple(map(int, said.groups()))
        self._ranks, self._alphas = s.section("rank_pattern"), s.section("alpha_pattern")
        for section in (self._ranks, self._alphas):
            for pattern in section.values:
                check_key(section.file, pattern)

    @property
    def base_name(self) -> str:
        """The last part of the base model's name or path."""
        return base_name_of(self._s)

    @property
    def base_path(self) -> str | None:
        """The base model as the file names it."""
        name = self._s.get("base_model_name_or_path")
        return name if isinstance(name, str) and name else None

    def scale(self, module: str, rank: int) -> float:
        """Of the product of two matrices of that rank. Raises FormatError when the rank is not what the file says.

        module:  or a parameter; a module whose weight is among the target_parameters goes by the weight's name.
        """
        if any(is_meant(f"{module}.weight", name) for name in self.target_parameters):
            module = f"{module}.weight"
        ranks, alphas = fitting(self._ranks.values, module), fitting(self._alphas.values, module)
        wanted = self._ranks.count(ranks[0]) if ranks else self._s.count("r")
        if rank != wanted:
            says, meant = f"rank_pattern: {ranks[0]}" if ranks else "r", self._meant(ranks, rank)
            raise FormatError(f"{module}: its matrices have rank {rank}, and {CONFIG} says {wanted} ({says}){meant}")
        alpha = self._alphas.number(alphas[0]) if alphas else self._s.number("lora_alpha")
        if any(self._alphas.number(other) != alpha for other in alphas[1:]):
            note = f"{CONFIG}: alpha_pattern has {_some(alphas)} for the same modules; as in PEFT, the first counts"
            self.notes += [] if note in self.notes else [note]
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def _meant(self, keys: list[str], rank: int) -> str:
        """What to do where another key says the rank that is there: PEFT sorts the keys when it saves an adapter, and
        when it reads one, the first that fits counts. So it refuses some that it has made.
        """
        meant = next((key for key in keys[1:] if self._ranks.values[key] == rank), None)
        if meant is None:
            return ""
        return (
            f", as PEFT reads it: of keys that fit, the first counts; {meant} says {rank}: put it before {keys[0]}, in "
            "alpha_pattern too"
        )

    def compare(self, held: Held, naming: Naming, base: Collection[str] | None) -> None:
        """Note or refuse what the file holds otherwise than it says; see `check_claims`."""
        self.notes += check_claims(self._s, held, naming, base)

    def _share(self, name: str) -> float:
        value = self._s.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise FormatError(f"{CONFIG}: {name} is {shown(value)}; expected a number from 0 to 1")
        return float(value)


def _some(keys: list[str]) -> str:
    return " and ".join(f"{key:.60}" for key in keys)


def is_meant(name: str, by: str) -> bool:
    """Whether a parameter is what target_parameters names, by all of its name or by its end."""
    return name == by or name.endswith(f".{by}")


def _names(s: Settings, name: str) -> list[str]:
    """A list of names, empty where there is none."""
    value = s.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise FormatError(f"{s.file}: {name} is {shown(value)}; expected a list of names")
    return value


def notes_of(values: Mapping[str, Any], known: Collection[str]) -> tuple[str, ...]:
    """What a person should know: settings that say something, and nobody here knows what."""
    return tuple(
        f"{CONFIG}: {name:.60} is {shown(value)}; edgellm does not know this setting"
        for name, value in values.items()
        if name not in known and value not in (None, False, [], {})
    )


def base_name_of(s: Settings) -> str:
    """The last part of the base model's name or path."""
    name = s.get("base_model_name_or_path")
    return name.rstrip("/").rpartition("/")[2] if isinstance(name, str) else ""
