"""edgellm train plan"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.checks import number
from edgellm.cli.options import check_threads, threads_option, typed_name
from edgellm.errors import UsageError, shown

if TYPE_CHECKING:
    from edgellm.measure.products import Products
    from edgellm.train.new.config import NewConfig
    from edgellm.train.new.counting import Counted
    from edgellm.train.plan import Outcome, Plan, Speed

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_AMOUNT = re.compile(r"(\d[\d,_]*\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE)


def _amount(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """A number as people say it: 3M, 1.5B, 20_000, 1e9."""
    if value is None:
        return None
    match = _AMOUNT.fullmatch(value.strip())
    number = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2].lower()] if match else 0.0
    if not 0 < number < float("inf"):
        raise UsageError(f"{typed_name(option)} is {shown(value)}; expected a number above 0, such as 3M or 1.5B")
    return number


def _amount_option(flag: str, name: str, text: str) -> Any:
    return click.option(flag, name, metavar="N", callback=_amount, help=text)


@click.command("plan")
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Settings of `edgellm train new`: what that model takes, with its text and steps.")  # fmt: skip
@_amount_option("--params", "params", "Weights of the model: 3M, 1.5B, ...")
@_amount_option("--tokens", "tokens", "Tokens that it is trained on, repetitions included.")
@_amount_option("--hours", "hours", "Time that there is.")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), metavar="TEXT",
              help="The text, whose tokens are counted; a file or a folder, may stand several times.")  # fmt: skip
@_amount_option("--vocab", "vocab", "Tokens of the vocabulary.  [default: 4096]")
@_amount_option("--model-speed", "model_speed",
                "Tokens a second that the model of --params or --config trained at; nothing is measured.")  # fmt: skip
@_amount_option("--share", "share", "The share of the speed of products that training has.  [default: 0.3, assumed]")
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    config_file: Path | None,
    params: float | None,
    tokens: float | None,
    hours: float | None,
    data: tuple[Path, ...],
    vocab: float | None,
    model_speed: float | None,
    share: float | None,
    n_threads: int | None,
    as_json: bool,
) -> None:
    """Say what size, text and time go together.

    Give one or two of --params, --tokens and --hours: the rest is chosen by the scaling laws of Hoffmann et al. (2022)
    and Kaplan et al. (2020), and by the speed of this machine, which is measured in a moment.

    \b
      edgellm train plan --hours 2
      edgellm train plan --params 3M --data shakespeare.txt
      edgellm train plan --params 10M --hours 8 --model-speed 4000
      edgellm train plan --config new.yaml
    """
    from edgellm.cli.progress import Progress
    from edgellm.train.new.counting import count_tokens
    from edgellm.train.new.texts import TextFiles
    from edgellm.train.new.vocabulary import END, MOST_TOKENS
    from edgellm.train.plan import DEFAULT_VOCABULARY, make_plan, planned_tokens

    config = _config(config_file, params, vocab) if config_file else None
    if config is not None:
        vocab = config.tokenizer.most_tokens
        data = data or tuple(Path(name).expanduser() for name in config.data)
        params = config.shape.n_active_parameters(config.tokenizer.most_tokens)
    n_vocab, name = round(vocab or DEFAULT_VOCABULARY), f"{config_file}: n_vocab" if config else "--vocab"
    if not 257 <= n_vocab <= MOST_TOKENS:
        raise UsageError(f"{name} is {n_vocab}; expected from 257, all bytes and the end of a text, to {MOST_TOKENS}")
    for parameter, value, least, most in (("share", share, 1e-3, 1), ("model_speed", model_speed, 1e-3, 10**12)):
        if value is not None:
            number(parameter, value, least, most)
    counted = None
    with Progress(quiet=True) as progress:
        if data:
            counted = count_tokens(TextFiles(data, END), n_vocab, progress)
        if not (params or tokens or hours or counted):
            raise UsageError("nothing is known of the training; give one or two of --params, --tokens and --hours")
        if config is not None and n_threads is None:
            check_threads("threads", config.machine.threads)
        speed, products = _speed(params, model_speed, share, n_threads, config.machine.threads if config else None)
    if config is not None and not (tokens or hours):
        tokens = planned_tokens(config, counted.n_tokens if counted else None)
    plan = make_plan(
        speed,
        n_parameters=params,
        n_tokens=tokens,
        hours=hours,
        n_unique=counted.n_tokens if counted else None,
        n_vocab=n_vocab,
        shape=config.shape if config else None,
    )
    if as_json:
        import json

        machine = {"n_threads": products.n_threads, "isa": products.isa} if products else None
        click.echo(json.dumps(plan.as_dict() | {"machine": machine}))
        return
    for name, line in _lines(plan, products, counted, share is not None):
        click.echo(f"{name:<16}{line}".rstrip())


def _config(path: Path, params: float | None, vocab: float | None) -> NewConfig:
    from edgellm.train.new.config import NewConfig

    for option, value in (("--params", params), ("--vocab", vocab)):
        if value is not None:
            raise UsageError(f"{option} is {value:,.0f}, and --config says it too; choose one")
    return NewConfig.read(path)


def _speed(
    params: float | None,
    model_speed: float | None,
    share: float | None,
    n_threads: int | None,
    threads_of_file: int | None,
) -> tuple[Speed, Products | None]:
    """The speed of training: as it was seen, or as a share of what is measured now."""
    from edgellm.train.plan import ASSUMED_SHARE, Speed
    from edgellm.train.scaling import FLOPS_PER_WEIGHT

    if model_speed is not None:
        if params is None:
            raise UsageError(
                "--model-speed needs --params or --config: how large the model is that trains at this speed"
            )
        if share is not None:
            raise UsageError("--share says what to make of a measured speed, and --model-speed gives one; choose one")
        if n_threads is not None:
            raise UsageError("--threads says how many measure the speed, and --model-speed gives one; choose one")
        return Speed(FLOPS_PER_WEIGHT * params * model_speed), None
    from edgellm.measure.products import measure_products

    products = measure_products(n_threads or threads_of_file)
    return Speed((share or ASSUMED_SHARE) * products.flops, products.flops, share or ASSUMED_SHARE), products


def _lines(
    plan: Plan, products: Products | None, counted: Counted | None, share_is_given: bool
) -> Iterator[tuple[str, str]]:
    from edgellm.train.scaling import HOFFMANN, KAPLAN, TOKENS_PER_WEIGHT

    if products:
        threads = "1 thread" if products.n_threads == 1 else f"{products.n_threads} threads"
        yield "machine", f"{_of(products.flops, 'FLOP/s')} in float32 products of matrices, measured now ({threads})"
        share = f"{100 * (plan.speed.share or 0):.0f} % of that, {'as given' if share_is_given else 'which is assumed'}"
    else:
        share = "from the speed that was given: 6 N x tokens a second"
    yield "in training", f"{_of(plan.speed.flops, 'FLOP/s')}, {share}"
    if counted:
        how = "counted" if counted.is_exact else "reckoned from a part of it"
        yield "text", f"{_of(counted.n_tokens, 'tokens')} with a vocabulary of {plan.n_vocab:,}, {how}"
    yield "", ""
    yield from _outcome("plan", plan.asked)
    if plan.epochs is not None:
        yield "", f"reads the text {plan.epochs:.2g} times: as good as {_of(plan.asked.worth, 'tokens')} of new text"
    rule = f"{_of(TOKENS_PER_WEIGHT * plan.asked.n_parameters, 'tokens')} by the rule of {TOKENS_PER_WEIGHT:.0f}"
    yield "tokens a weight", f"{plan.asked.tokens_per_weight:.3g}; {rule}, which holds for large models"
    yield "", ""
    if plan.best:
        yield from _outcome("better", plan.best)
        yield "", ""
    kaplan = plan.kaplan
    yield "by Kaplan", f"{_of(kaplan.n_parameters, 'weights')}, {_of(kaplan.n_tokens, 'tokens')} for as much arithmetic"
    yield "formulas", "C = 6 N D operations, for N weights and D tokens"
    for law in (HOFFMANN, KAPLAN):
        yield "", f"{law.formula}  ({law.name})"
    yield "", "best: N = 1.34 (C / 6)^0.45, D = C / (6 N)  (Hoffmann et al. 2022)"
    for note in plan.notes:
        yield "note", note


def _outcome(name: str, outcome: Outcome) -> Iterator[tuple[str, str]]:
    shape = outcome.shape
    losses = ", ".join(f"{loss:.2f} by {law}" for law, loss in outcome.losses.items())
    run = f"{_of(outcome.n_parameters, 'weights')}, {_of(outcome.n_tokens, 'tokens')}, {_time(outcome.hours)}"
    yield name, run + f" ({outcome.flops:.2g} operations)"
    yield "loss per token", losses
    names = ("n_layers", "n_embd", "n_heads", "n_ff", "n_experts", "n_experts_used", "n_expert_ff")
    numbers = ", ".join(f"{name}: {found}" for name in names if (found := getattr(shape, name)) is not None)
    active = f", {_of(outcome.active_parameters, 'of them for each token')}" if shape.n_experts else ""
    yield "shape", f"{numbers} ({_of(outcome.shape_parameters, 'weights')}{active})"


def _of(number: float, unit: str) -> str:
    """A number in three digits: 3.14 million weights."""
    names = [(1e12, " trillion "), (1e9, " billion "), (1e6, " million ")]
    if unit == "FLOP/s":
        names = [(1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")]
    for size, name in names:
        if number >= size:
            return f"{number / size:.3g}{name}{unit}"
    return f"{number:,.0f} {unit}"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.3g} hours" if hours >= 1 else f"{hours * 60:.3g} minutes"
