"""The settings of a training run, and each of their defaults once.

`LoraConfig` says what is trained, `TrainConfig` how. Both are checked when they are made, so whatever a person, a
file or a program gives is taken as a plain value or refused by its name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from edgellm.checks import flag, number, one_of, positive_number, take, text, texts, whole_number, wrong
from edgellm.errors import UsageError
from edgellm.formats.adapters.parts import ACTIVATIONS as BOTTLENECK_ACTIVATIONS
from edgellm.formats.adapters.parts import PlainActivation
from edgellm.params import ACTIVATIONS

ALL_LINEAR = "all-linear"
_LOW_RANK = ("rank", "alpha", "dropout", "target_modules", "use_rslora")
SETTINGS_OF = {
    "lora": _LOW_RANK,
    "dora": _LOW_RANK,
    "prompt": ("virtual_tokens", "prompt_init", "prompt_text"),
    "p-tuning": ("virtual_tokens", "encoder_width"),
    "prefix": ("virtual_tokens", "prompt_init", "encoder_width"),
    "adapter": ("bottleneck", "bottleneck_at", "bottleneck_activation"),
}
METHODS = tuple(SETTINGS_OF)
PROMPT_INITS = ("random", "vocabulary", "text", "zero")
BOTTLENECK_PLACES = ("ffn", "attention", "both")
MAX_VIRTUAL, MAX_WIDTH = 4096, 1 << 16
SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "mixed")
MAX_RANK = 1024
# Beyond these, a number cannot be meant: such a run would never end, or its first step would destroy every weight.
MOST_STEPS, MOST_AT_ONCE = 100_000_000, 1 << 24
LEAST_RATE, MOST_RATE = 1e-12, 100.0
LEAST_ALPHA, MOST_ALPHA = 1e-9, 1e6
# In float32 gradients and their squares would be 0 with less, or what they are divided by infinite with more.
LEAST_CLIP = 1e-6
LEAST_FACTOR, MOST_FACTOR = 1e-6, 1e6  # by which losses are multiplied
LEAST_EPSILON, MOST_EPSILON = 1e-30, 1e6


@dataclass(frozen=True)
class LoraConfig:
    """Small weights that are trained beside a frozen model: which kind, and its settings, under the names of PEFT.

    method:     "lora": low-rank weights beside linear layers (Hu et al. 2021). A layer W x becomes W x + scale * B A
                dropout(x), with A [rank, n_in] and B [n_out, rank]; beside experts each has its own.
                "dora": these, and the length of each of W's rows (Liu et al. 2024).
                "prompt": embeddings before every text (prompt tuning, Lester et al. 2021); "p-tuning": the same, which
                a small network makes while they are trained (Liu et al. 2021).
                "prefix": keys and values of every layer before every text (prefix tuning, Li & Liang 2021).
                "adapter": small networks behind halves of layers (bottleneck adapters, Houlsby et al. 2019).

    Of "lora" and "dora":
    rank:       of the weights beside each layer.
    alpha:      the scale is alpha / rank, so that another rank needs no other learning rate.
    dropout:    part of the inputs that is left out in each step, at random; 0 is off.
    target_modules: "all-linear", or names of layers ("q_proj", "attn_q"); embeddings and the head are none.
    use_rslora: the scale is alpha / sqrt(rank), which suits high ranks (Kalajdzievski 2023).

    Of "prompt", "p-tuning" and "prefix":
    virtual_tokens: how many stand before a text.
    prompt_init: what they begin with: "random", of a normal distribution; a prompt also "vocabulary", the embeddings of
                any tokens, or "text", those of `prompt_text`; a prefix also "zero".
    encoder_width: of the network that makes them in training. None is the model's own width for "p-tuning", and no
                network for "prefix".

    Of "adapter":
    bottleneck: how narrow it is.
    bottleneck_at: behind "ffn" (Pfeiffer et al. 2021), "attention", or "both".
    bottleneck_activation: "relu", "gelu" or "silu".
    """

    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    use_rslora: bool = False
    virtual_tokens: int = 20
    prompt_init: str = "random"
    prompt_text: str = ""
    encoder_width: int | None = None
    bottleneck: int = 64
    bottleneck_at: str = "ffn"
    bottleneck_activation: PlainActivation = "relu"

    def __post_init__(self) -> None:
        take(self, "method", one_of, METHODS)
        take(self, "rank", whole_number, 1, MAX_RANK)
        take(self, "alpha", positive_number, MOST_ALPHA, LEAST_ALPHA)
        take(self, "dropout", _share)
        take(self, "target_modules", _modules)
        take(self, "use_rslora", flag)
        take(self, "virtual_tokens", whole_number, 1, MAX_VIRTUAL)
        take(self, "prompt_init", one_of, PROMPT_INITS)
        take(self, "prompt_text", _plain_text)
        take(self, "encoder_width", whole_number, 1, MAX_WIDTH, optional=True)
        take(self, "bottleneck", whole_number, 1, MAX_RANK)
        take(self, "bottleneck_at", one_of, BOTTLENECK_PLACES)
        take(self, "bottleneck_activation", one_of, BOTTLENECK_ACTIVATIONS)

    def check(self) -> None:
        """Raise UsageError for settings that do not belong together: each is looked at by itself before."""
        of_method = SETTINGS_OF[self.method]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "method" and field.name not in of_method and value != field.default:
                raise UsageError(
                    f"{field.name} is {value!r:.60}, which method {self.method!r} does not have; it has "
                    f"{', '.join(of_method)}",
                    parameter=field.name,
                )
        inits = {"prompt": ("random", "vocabulary", "text"), "prefix": ("random", "zero")}
        if self.prompt_init not in inits.get(self.method, PROMPT_INITS):
            raise UsageError(
                f"prompt_init is {self.prompt_init!r}; method {self.method!r} begins with "
                f"{' or '.join(inits[self.method])}",
                parameter="prompt_init",
            )
        if self.method == "prefix" and self.encoder_width and self.prompt_init != "random":
            raise UsageError(
                f"prompt_init is {self.prompt_init!r}, and with encoder_width a network makes the prefix; choose one",
                parameter="prompt_init",
            )
        if (self.prompt_init == "text") != bool(self.prompt_text):
            raise UsageError('prompt_text and prompt_init "text" belong together; give both', parameter="prompt_text")

    @property
    def use_dora(self) -> bool:
        return self.method == "dora"

    @property
    def scale(self) -> float:
        """What the small weights' part is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


@dataclass(frozen=True)
class FullConfig:
    """All weights of a model, in float32: four times their number of bytes for each of weights, gradients and AdamW's
    two means.

    freeze:  names of tensors that stay as they are ("token_embd"), or the beginnings of their names ("blk.0").
    """

    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        take(self, "freeze", _names)

    def check(self) -> None:
        """Nothing here can contradict itself."""


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
        take(self, "epochs", positive_number, MOST_STEPS)
        take(self, "steps", whole_number, 1, MOST_STEPS, optional=True)
        take(self, "batch_size", whole_number, 1, MOST_AT_ONCE)
        take(self, "accumulate", whole_number, 1, MOST_AT_ONCE)
        take(self, "learning_rate", _rate)
        take(self, "schedule", one_of, SCHEDULES)
        take(self, "warmup", _share_or_count)
        take(self, "weight_decay", number, 0, MOST_RATE)
        take(self, "betas", _two_shares)
        take(self, "epsilon", positive_number, MOST_EPSILON, LEAST_EPSILON)
        take(self, "clip", _norm)
        take(self, "seed", whole_number, 0, (1 << 63) - 1)
        take(self, "validation", _share_or_count)
        take(self, "eval_every", whole_number, 1, optional=True)
        take(self, "patience", whole_number, 1, optional=True)
        take(self, "checkpoint_every", whole_number, 1)
        take(self, "keep_checkpoints", whole_number, 1)
        take(self, "precision", one_of, PRECISIONS)
        take(self, "gradient_checkpointing", flag)
        take(self, "activations", one_of, ACTIVATIONS, optional=True)

    def check_validation(self, has_data: bool = False) -> None:
        """Raise UsageError for what goes by validations, where nothing is validated with.

        has_data:  whether there are examples of their own to validate with.
        """
        for name in ("eval_every", "patience"):
            if (value := getattr(self, name)) is not None and not self.validation and not has_data:
                raise UsageError(
                    f"{name} is {value}, and there are no examples to validate with; keep some apart for validation, "
                    f"or leave {name} out",
                    parameter=name,
                )

    def check_length(self, n_batches: int) -> None:
        """Raise UsageError for epochs that no run would come to the end of, with data of so many logical batches."""
        if self.steps is None and self.epochs * n_batches > MOST_STEPS:
            raise UsageError(
                f"epochs is {self.epochs:g}, which is {self.epochs * n_batches:.2g} steps with this data; expected up "
                f"to {MOST_STEPS / n_batches:g}",
                parameter="epochs",
            )

    def check_warmup(self, n_steps: int | None = None) -> None:
        """Raise UsageError for a warm-up that lasts as long as the run: its learning rate would never be reached.

        n_steps:  of the run, where more is known than `steps` says.
        """
        n_steps = n_steps or self.steps
        if self.warmup >= 1 and n_steps is not None and self.warmup >= n_steps:
            expected = f"fewer steps than these, or a share below 1, such as {TrainConfig.warmup}"
            raise UsageError(
                f"warmup is {self.warmup:g} steps, and the run has {n_steps}, so its learning rate would never be "
                f"reached; expected {expected}",
                parameter="warmup",
            )

    def n_steps(self, n_batches: int) -> int:
        """Updates of a run whose data make so many logical batches."""
        return self.steps or max(1, math.ceil(round(self.epochs * n_batches, 6)))

    def warmup_steps(self, n_steps: int) -> int:
        """Steps until the learning rate is reached; a share is rounded down, so that a short run has none."""
        return int(self.warmup * n_steps if self.warmup < 1 else self.warmup)


@dataclass(frozen=True)
class MachineConfig:
    """What changes how a run goes on a machine, and no weight.

    threads:      that compute; None takes what is fastest.
    tensorboard:  whether to write event files; None does where TensorBoard is installed.
    """

    threads: int | None = None
    tensorboard: bool | None = None

    def __post_init__(self) -> None:
        take(self, "threads", whole_number, 1, optional=True)
        take(self, "tensorboard", flag, optional=True)


def _plain_text(name: str, value: Any) -> str:
    """A text of Python's own type, which files and processes can hold."""
    return str(text(name, value))


def _rate(name: str, value: Any) -> float:
    """A learning rate at which float32 weights change, and are not all lost in one step."""
    found = positive_number(name, value, MOST_RATE)
    if found < LEAST_RATE:
        raise wrong(name, found, f"a number of at least {LEAST_RATE:g}, for no weight would change")
    return found


def _norm(name: str, value: Any) -> float:
    """0, or a norm at which something is left of gradients."""
    found = number(name, value, 0)
    if 0 < found < LEAST_CLIP:
        raise wrong(name, found, f"0, or a number of at least {LEAST_CLIP:g}, for no gradient would be left")
    return found


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


def _names(name: str, value: Any) -> tuple[str, ...]:
    """Names as a tuple; a text may hold several, with commas between."""
    if isinstance(value, str):
        value = [part.strip() for part in str(value).split(",")]
    names = tuple(texts(name, value)) if isinstance(value, Iterable) else ("",)
    if not all(names):
        raise wrong(name, value, "names of tensors")
    return names


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
