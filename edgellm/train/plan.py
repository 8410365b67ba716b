"""Advice before training: what size, how much text, how long, and what loss to expect.

Of weights, tokens and hours any one, two or three can be given; the rest follows from the scaling laws (`scaling`) and
from the speed of the machine.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgellm.checks import number
from edgellm.errors import UsageError
from edgellm.train.new.shape import Shape, ShapeSettings
from edgellm.train.scaling import (
    FLOPS_PER_WEIGHT,
    GOOD_EPOCHS,
    HOFFMANN,
    KAPLAN,
    TOKENS_PER_WEIGHT,
    Spent,
    worth_of,
)

if TYPE_CHECKING:
    from edgellm.train.new.config import NewConfig

ASSUMED_SHARE = 0.3  # of the speed of products: attention, norms, the optimizer and small matrices take the rest
DEFAULT_VOCABULARY = 4096
FITTED_WEIGHTS = 7e7  # of the smallest model behind Hoffmann's law
FITTED_VOCABULARY = 32_000
COLUMNS_PER_LAYER = 64  # of GPT-2's and other small models; Kaplan et al. found that it matters little
WIDTH_STEP = 32
LEAST_HOURS = 1e-3
MOST_COLUMNS, MOST_LAYERS = 16_384, 256


@dataclass(frozen=True)
class Speed:
    """How fast training is taken to be.

    flops:     operations a second in training.
    measured:  operations a second of matrix products, as measured here; None where the speed was given.
    share:     flops / measured, which is assumed or given.
    """

    flops: float
    measured: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A training run and what is to be expected of it.

    n_tokens:   read in all. worth: of new text that would be as good, where some is read again.
    losses:     in nats per token, by the name of the law.
    shape:      of such a size; its true number of weights, and of those that a token meets: fewer, if it has experts.
    """

    n_parameters: float
    n_tokens: float
    worth: float
    flops: float
    hours: float
    losses: dict[str, float]
    shape: Shape
    shape_parameters: int
    active_parameters: int

    @property
    def tokens_per_weight(self) -> float:
        return self.n_tokens / self.n_parameters


@dataclass(frozen=True)
class Plan:
    """The advice.

    asked:     the run that was asked for, with what was left open chosen best.
    best:      the best use of as much arithmetic, where `asked` is another; else None.
    kaplan:    the size and tokens that Kaplan et al. would choose for as much.
    n_unique:  tokens of the text, and epochs that the run reads it; None without one.
    notes:     what a person should know.
    """

    asked: Outcome
    best: Outcome | None
    kaplan: Spent
    n_unique: float | None
    epochs: float | None
    speed: Speed
    n_vocab: int
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "formulas": {law.name: law.formula for law in (HOFFMANN, KAPLAN)} | {"flops": "C = 6 N D"},
        }


def make_plan(
    speed: Speed,
    *,
    n_parameters: float | None = None,
    n_tokens: float | None = None,
    hours: float | None = None,
    n_unique: float | None = None,
    n_vocab: int = DEFAULT_VOCABULARY,
    shape: Shape | None = None,
) -> Plan:
    """A plan for what is given; all in whole units, hours in hours.

    n_unique:  tokens of the text at hand; a run that would read it more than GOOD_EPOCHS times is warned of. Alone, a
               run reads it that often.
    shape:     of the very model that shall be trained, in place of n_parameters. Of one with experts, the weights that
               a token meets count.

    Raises UsageError when nothing is given, and for numbers that no training has.
    """
    if shape is not None:
        n_parameters = shape.n_active_parameters(n_vocab)
    for name, value, most in (("params", n_parameters, 10**12), ("tokens", n_tokens, 10**15), ("hours", hours, 10**6)):
        if value is not None:
            number(name, value, LEAST_HOURS if name == "hours" else 1, most)
    if n_parameters is None and n_tokens is None and hours is None:
        if n_unique is None:
            raise UsageError("nothing is known of the training; give one or two of --params, --tokens and --hours")
        n_tokens = GOOD_EPOCHS * n_unique
    spent = _completed(speed, n_parameters, n_tokens, hours)
    asked = _outcome(spent, speed, n_unique, n_vocab, shape)
    best = _outcome(HOFFMANN.best(spent.flops), speed, n_unique, n_vocab)
    is_best = math.isclose(best.n_parameters, asked.n_parameters, rel_tol=0.01)
    notes = list(_notes(asked, hours, n_unique, n_vocab))
    epochs = asked.n_tokens / n_unique if n_unique else None
    return Plan(asked, None if is_best else best, KAPLAN.best(spent.flops), n_unique, epochs, speed, n_vocab, notes)


def _completed(speed: Speed, n_parameters: float | None, n_tokens: float | None, hours: float | None) -> Spent:
    """The run with what was left open chosen best: for a time by Hoffmann's law, or by what is left of it."""
    if n_parameters and n_tokens:
        return Spent(n_parameters, n_tokens)
    if hours:
        flops = speed.flops * hours * 3600
        if n_parameters:
            return Spent(n_parameters, flops / (FLOPS_PER_WEIGHT * n_parameters))
        if n_tokens:
            return Spent(flops / (FLOPS_PER_WEIGHT * n_tokens), n_tokens)
        return HOFFMANN.best(flops)
    if n_parameters:
        return Spent(n_parameters, HOFFMANN.tokens_for(n_parameters))
    assert n_tokens
    return Spent(HOFFMANN.parameters_for(n_tokens), n_tokens)


def _outcome(spent: Spent, speed: Speed, n_unique: float | None, n_vocab: int, shape: Shape | None = None) -> Outcome:
    shape = shape or shape_of_size(spent.n_parameters, n_vocab)
    worth = worth_of(spent.n_tokens, n_unique) if n_unique else spent.n_tokens
    # Kaplan's law counts no embeddings.
    in_layers = max(1.0, spent.n_parameters - n_vocab * shape.n_embd)
    losses = {
        HOFFMANN.name: HOFFMANN.loss(Spent(spent.n_parameters, worth)),
        KAPLAN.name: KAPLAN.loss(Spent(in_layers, worth)),
    }
    hours = spent.flops / speed.flops / 3600
    found = shape.n_parameters(n_vocab), shape.n_active_parameters(n_vocab)
    return Outcome(spent.n_parameters, spent.n_tokens, worth, spent.flops, hours, losses, shape, *found)


def _notes(asked: Outcome, hours: float | None, n_unique: float | None, n_vocab: int) -> list[str]:
    notes = []
    if hours and asked.hours > 1.01 * hours:
        notes.append(f"this takes {asked.hours:.3g} hours, more than the {hours:.3g} that there are")
    if n_unique and asked.n_tokens > GOOD_EPOCHS * n_unique:
        notes.append(
            f"the text would be read {asked.n_tokens / n_unique:.1f} times; up to {GOOD_EPOCHS} times are nearly as "
            "good as new text, and beyond that each time teaches less (Muennighoff et al. 2023): more text would help "
            "more than more time"
        )
    if asked.shape.n_experts:
        notes.append(
            "N are the weights that a token meets: they take the time. Both laws were fitted on models without "
            "experts; the others let one with experts reach a lower loss than they say"
        )
    if not 0.5 < asked.active_parameters / asked.n_parameters < 2:
        notes.append(
            f"no usual shape with a vocabulary of {n_vocab:,} has about {asked.n_parameters:,.0f} weights; "
            "a smaller vocabulary (--vocab) allows for smaller models"
        )
    if asked.n_parameters < FITTED_WEIGHTS or n_vocab < FITTED_VOCABULARY:
        notes.append(
            "both laws were fitted with vocabularies of 32,000 tokens and more on large mixed texts, and Hoffmann's on "
            "models of 70 million weights and more; here they show proportions, and the loss itself will be another: "
            "with a small vocabulary or a narrow text it is lower"
        )
    return notes


def planned_tokens(config: NewConfig, n_unique: float | None) -> float | None:
    """What a run with these settings reads, of a text of n_unique tokens; None when neither says how long it is."""
    training = config.training
    if training.steps is not None:
        return float(training.steps * training.batch_size * training.accumulate * config.shape.n_ctx)
    return None if n_unique is None else training.epochs * n_unique


def shape_of_size(n_parameters: float, n_vocab: int) -> Shape:
    """A usual shape of about so many weights: heads of 32 to 64 columns, COLUMNS_PER_LAYER, tied embeddings.

    Of all widths the one that fits best, in size and then in proportions.
    """

    def unfit(shape: Shape) -> float:
        size = abs(math.log(shape.n_parameters(n_vocab) / n_parameters))
        proportion = abs(math.log(shape.n_embd / shape.n_layers / COLUMNS_PER_LAYER))
        return size + 0.1 * proportion

    return min(_shapes(n_parameters, n_vocab), key=unfit)


def _shapes(n_parameters: float, n_vocab: int) -> list[Shape]:
    """For each width the shape whose layers come nearest to the size."""
    shapes = []
    for n_embd in range(WIDTH_STEP, MOST_COLUMNS + 1, WIDTH_STEP):
        n_heads = n_embd // 64 if n_embd >= 512 and n_embd % 64 == 0 else None
        in_one, in_two = (
            ShapeSettings(n_layers=n, n_embd=n_embd, n_heads=n_heads).shape().n_parameters(n_vocab) for n in (1, 2)
        )
        n_layers = 1 + round((n_parameters - in_one) / (in_two - in_one))
        n_layers = min(max(1, n_layers), MOST_LAYERS)
        shapes.append(ShapeSettings(n_layers=n_layers, n_embd=n_embd, n_heads=n_heads).shape())
        if in_one > 2 * n_parameters:
            break
    return shapes


def rule_of_thumb(n_parameters: float) -> float:
    """Tokens by the rule of 20 for each weight."""
    return TOKENS_PER_WEIGHT * n_parameters
