"""Settings under the names that others give them: a file may say as PEFT does what `edgellm train` has a name for.

What is only alike is not taken, for its values may mean something else (`warmup_ratio`): an error names ours.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from edgellm.checks import flag
from edgellm.errors import UsageError

# Names of one setting: an option's where that is another, and PEFT's.
SAME = {"rslora": "use_rslora", "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
# Flags that choose a method: the option's name, and PEFT's.
DORA = ("dora", "use_dora")

_ALIKE = {
    "adam_epsilon": "epsilon", "bf16": "precision", "encoder_hidden_size": "encoder_width", "eval_steps": "eval_every",
    "fp16": "precision", "gradient_accumulation_steps": "accumulate", "lr": "learning_rate",
    "lr_scheduler_type": "schedule", "max_grad_norm": "clip", "max_seq_length": "max_length", "max_steps": "steps",
    "model_name_or_path": "model", "num_epochs": "epochs", "num_train_epochs": "epochs",
    "num_virtual_tokens": "virtual_tokens", "peft_type": "method", "per_device_train_batch_size": "batch_size",
    "save_steps": "checkpoint_every", "save_total_limit": "keep_checkpoints", "target_parameters": "target_modules",
    "warmup_ratio": "warmup", "warmup_steps": "warmup",
}  # fmt: skip
_NOT_HERE = (
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_bias", "modules_to_save", "rank_pattern", "task_type", "trainable_token_indices",
)  # fmt: skip


class DoraFlag:
    """What a file says by `dora` or `use_dora`, and what that means beside its `method`."""

    def __init__(self, written: str, value: Any, line: int) -> None:
        self.written, self.is_on, self.line = written, flag(written, value), line

    def method(self, said: str | None) -> str | None:
        """The method that is meant where `said` stands in the file. Raises UsageError for two that differ."""
        if said not in (None, "lora", "dora") and self.is_on:
            raise UsageError(f"{self.written} is true, and method is {said!r}; choose one")
        if said == "dora" and not self.is_on:
            raise UsageError(f"{self.written} is false, and method is 'dora'; choose one")
        return "dora" if self.is_on else said


def unknown(name: str, names: Collection[str]) -> str:
    """What to say behind a name that is no setting: which is meant, or which there are."""
    import difflib  # only for a message

    plain = name.replace("-", "_").lower()[:100]
    if plain in _NOT_HERE:
        return ": it is PEFT's, and edgellm trains without it; leave it out"
    ours = SAME.get(plain, _ALIKE.get(plain))
    near = [ours] if ours in names else difflib.get_close_matches(plain, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
