"""edgellm bench"""

from __future__ import annotations

import json

import click

from edgellm.cli.options import runtime_options
from edgellm.params import DEFAULT_MODEL


@click.command("bench")
@click.argument("model", default=DEFAULT_MODEL)
@click.option("-p", "--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N",
              help="Tokens of the prompt.")  # fmt: skip
@click.option("-n", "--tokens", type=click.IntRange(1), default=64, show_default=True, metavar="N",
              help="Tokens to generate.")  # fmt: skip
@click.option("-d", "--depth", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Tokens that the context holds before either starts.")  # fmt: skip
@click.option("-r", "--repetitions", type=click.IntRange(1), default=3, show_default=True, metavar="N",
              help="Measure so often, and give the median.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@runtime_options
def command(
    model: str,
    prompt_tokens: int,
    tokens: int,
    depth: int,
    repetitions: int,
    as_json: bool,
    n_ctx: int | None,
    n_threads: int | None,
) -> None:
    """Measure the speed of a model.

    Prints the tokens per second of reading a prompt (prefill) and of writing an answer (decode).
    """
    from edgellm.cli import models
    from edgellm.engine import bench

    with models.load(models.path_of(model), n_ctx or depth + prompt_tokens + tokens, n_threads) as loaded:
        result = bench.measure(loaded, prompt_tokens, tokens, repetitions, depth)
    if as_json:
        click.echo(json.dumps(result))
        return
    for name, value in result.items():
        click.echo(f"{name}: {value:.1f}" if isinstance(value, float) else f"{name}: {value}")
