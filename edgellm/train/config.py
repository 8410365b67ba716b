"""The settings of a training run, and each of their defaults once.

`LoraConfig` says what is trained, `TrainConfig` how. Both are checked when they are made, so whatever a person, a
file or a program gives is taken as a plain value or refused by its name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edgellm.checks import flag, number, one_of, positive_number, take, texts, whole_number, wrong
from edgellm.errors import UsageError
from edgellm.params import ACTIVATIONS

ALL_LINEAR = "all-linear"
METHODS = ("lora", "dora")
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "mixed")
MAX_RANK = 1024


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank weights beside frozen linear layers (LoRA, Hu et al. 2021), under the names of PEFT.

    A layer W x becomes W x + scale * B A dropout(x), with A [rank, n_in] and B [n_out, rank].

    method:     "lora"; "dora" also learns the length of each of W's rows (DoRA, Liu et al. 2024).
    rank:       of the weights beside each layer.
    alpha:      the scale is alpha / rank, so that another rank needs no other learning rate.
    dropout:    part of the inputs that is left out in each step, at random; 0 is off.
    target_modules: "all-linear", or names of layers ("q_proj", "attn_q"); the head belongs to none unless named.
    use_rslora: the scale is alpha / sqrt(rank), which suits high ranks (Kalajdzievski 2023).
    """

    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False

    def __post_init__(self) -> None:
        take(self, "method", one_of, METHODS)
        take(self, "rank", whole_number, 1, MAX_RANK)
        take(self, "alpha", positive_number)
        take(self, "dropout", _share)
        take(self, "target_modules", _modules)
        take(self, "use_rslora", flag)

    @property
    def use_dora(self) -> bool:
        return self.method == "dora"

    @property
    def scale(self) -> float:
        """What the small weights' part is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    epochs:         how often all examples are seen; parts too. `steps`, where given, counts instead.
    steps:          updates of the weights.
    batch_size:     examples of one update, `accumulate` times. They pass through the model a few at a time, so more
    accumulate:     of them take more time but no more memory.
    learning_rate:  the highest; `schedule` lowers it to 0 along half a cosine or a line, or leaves it.
    warmup:         steps until it is reached, from 0 in a line; below 1, their share of all steps.
    weight_decay:   of AdamW (Loshchilov & Hutter 2019), as are `betas` and `epsilon`.
    clip:           the greatest norm of all gradients together; what is longer is shortened to it. 0 is off.
    seed:           of every random choice: same seed, same data, same settings, same weights.
    validation:     examples kept apart to validate with; below 1, their share of all.
    eval_every:     steps between two validations; None validates at the end of every epoch.
    patience:       stop after so many validations in a row without a lower loss, and take the best weights; None
                    goes on to the end.
    checkpoint_every: steps between two checkpoints.
    keep_checkpoints: how many of the last are kept, beside the best.
    precision:      "float32", or "mixed": what the backward pass needs of the forward one is kept as bfloat16.
    gradient_checkpointing: keep what layers begin with alone, and compute the rest once more on the way back: a third
                    more time, for long examples in little memory.
    activations:    "int8" or "f32", as in `RuntimeConfig`, of the forward pass; None for those of the loaded model.
    """

    epochs: float = 3.0
    steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-4
    schedule: str = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0
    seed: int = 0
    validation: float = 0.0
    eval_every: int | None = None
    patience: int | None = None
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    precision: str = "float32"
    gradient_checkpointing: bool = False
    activations: str | None = None

    def __post_init__(self) -> None:
        take(self, "epochs", positive_number)
        take(self, "steps", whole_number, 1, optional=True)
        take(self, "batch_size", whole_number, 1)
        take(self, "accumulate", whole_number, 1)
        take(self, "learning_rate", positive_number)
        take(self, "schedule", one_of, SCHEDULES)
        take(self, "warmup", _share_or_count)
        take(self, "weight_decay", number, 0)
        take(self, "betas", _two_shares)
        take(self, "epsilon", positive_number)
        take(self, "clip", number, 0)
        take(self, "seed", whole_number, 0, (1 << 63) - 1)
        take(self, "validation", _share_or_count)
        take(self, "eval_every", whole_number, 1, optional=True)
        take(self, "patience", whole_number, 1, optional=True)
        take(self, "checkpoint_every", whole_number, 1)
        take(self, "keep_checkpoints", whole_number, 1)
        take(self, "precision", one_of, PRECISIONS)
        take(self, "gradient_checkpointing", flag)
        take(self, "activations", one_of, ACTIVATIONS, optional=True)

    def n_steps(self, n_batches: int) -> int:
        """Updates of a run whose data make so many logical batches."""
        return self.steps or max(1, math.ceil(round(self.epochs * n_batches, 6)))

    def warmup_steps(self, n_steps: int) -> int:
        """Steps until the learning rate is reached; a share is rounded down, so that a short run has none."""
        return int(self.warmup * n_steps if self.warmup < 1 else self.warmup)


def _share(name: str, value: Any) -> float:
    """A part that leaves something."""
    found = number(name, value, 0)
    if found >= 1:
        raise wrong(name, found, "a number from 0 up to, but not including, 1")
    return found


def _share_or_count(name: str, value: Any) -> float:
    found = number(name, value, 0)
    if found >= 1 and found != int(found):
        raise wrong(name, found, "a share below 1, or a whole number")
    return found


def _two_shares(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise wrong(name, value, "two numbers")
    try:
        first, second = (_share(name, part) for part in value)
    except UsageError:
        raise wrong(name, value, "two numbers from 0 up to, but not including, 1") from None
    return first, second


def _modules(name: str, value: Any) -> str | tuple[str, ...]:
    """ "all-linear", or names of layers as a tuple; a text may hold several, with commas between."""
    if isinstance(value, str):
        value = [part.strip() for part in str(value).split(",")]
    names = tuple(texts(name, value)) if isinstance(value, (list, tuple)) else ()
    if not names or not all(names):
        raise wrong(name, value, f'"{ALL_LINEAR}" or names of layers')
    if ALL_LINEAR in names:
        if len(names) > 1:
            raise wrong(name, value, f'"{ALL_LINEAR}" alone, or names of layers')
        return ALL_LINEAR
    return names
