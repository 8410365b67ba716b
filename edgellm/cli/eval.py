"""edgellm eval"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import lora_option
from edgellm.cli.texts import window_options
from edgellm.params import RuntimeConfig

if TYPE_CHECKING:
    from edgellm.evaluate import Divergence, Perplexity


@click.group("eval")
def command() -> None:
    """Measure how good a model is.

    A text is cut into windows of equal length, and the model is scored by how well it foresees the second half of
    each. Perplexity and divergence are those of llama.cpp's tools.
    """


@command.command("perplexity")
@click.argument("model", shell_complete=complete_models)
@window_options
@lora_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def perplexity_command(
    model: str,
    text_file: Path,
    n_windows: int | None,
    runtime: RuntimeConfig,
    adapters: dict[Path, float],
    parse_special: bool,
    as_json: bool,
) -> None:
    """How well a model foresees a text.

    A perplexity of 10 is that of somebody who always has to guess among 10 equally likely tokens. Compare it only
    between models with the same vocabulary, on the same text.
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.texts import read_text, shown, tokens_of
    from edgellm.evaluate import perplexity

    text = read_text(text_file)
    path = models.path_of(model)
    with models.load(path, runtime, adapters) as loaded, Progress("perplexity") as progress:
        result = perplexity(
            loaded,
            tokens_of(loaded, text, parse_special),
            loaded.n_text,
            n_windows,
            shown(progress, digits=4),
        )
        about = {"model": _named(path, adapters), "text": text_file.name, "n_threads": loaded.n_threads}
    _show(about, result, _perplexity_lines(result), as_json)


@command.command("kl")
@click.argument("model", shell_complete=complete_models)
@click.option("--base", required=True, metavar="REFERENCE",
              help="The model to compare with, mostly the one in F16 or F32 that MODEL was made from.")  # fmt: skip
@window_options
@lora_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kl_command(
    model: str,
    base: str,
    text_file: Path,
    n_windows: int | None,
    runtime: RuntimeConfig,
    adapters: dict[Path, float],
    parse_special: bool,
    as_json: bool,
) -> None:
    """How far a model is from another that it was made from.

    For every token, the Kullback-Leibler divergence (in nats) says how much of what REFERENCE knows about the next
    one is lost in MODEL: 0 is nothing. This sees far finer differences than perplexity.
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.texts import read_text, shown, tokens_of
    from edgellm.evaluate import divergence

    text = read_text(text_file)
    path, base_path = models.path_of(model), models.path_of(base)
    with (
        models.load(path, runtime, adapters) as loaded,
        models.load(base_path, runtime) as loaded_base,
        Progress("divergence") as progress,
    ):
        result = divergence(
            loaded,
            loaded_base,
            tokens_of(loaded_base, text, parse_special),
            loaded.n_text,
            n_windows,
            shown(progress, digits=6),
        )
        about = {
            "model": _named(path, adapters),
            "base": base_path.name,
            "text": text_file.name,
            "n_threads": loaded.n_threads,
        }
    _show(about, result, _divergence_lines(result), as_json)


def _named(path: Path, adapters: dict[Path, float]) -> str:
    """A model with what it is run with."""
    return path.name + "".join(f" + {scale:g} x {adapter}" for adapter, scale in adapters.items() if scale)


def _show(
    about: dict[str, Any], result: Perplexity | Divergence, lines: Iterator[tuple[str, str]], as_json: bool
) -> None:
    from edgellm.cli.terminal import counted, one_line

    if as_json:
        import json

        click.echo(json.dumps(about | result.as_dict()))
        return
    names = [(name, about[name]) for name in ("model", "base") if name in about]
    n_windows = counted(result.n_windows, "window")
    text = f"{about['text']}, {n_windows} of {result.n_ctx} tokens, {result.n_scored} tokens scored"
    threads = counted(about["n_threads"], "thread")
    speed = f"{result.tokens_per_second:.0f} tok/s, {result.seconds:.1f} s, {threads}"
    for name, line in (*names, ("text", text), *lines, ("speed", speed)):
        click.echo(one_line(f"{name:<16}{line}"))


def _perplexity_lines(result: Perplexity) -> Iterator[tuple[str, str]]:
    yield "perplexity", f"{result.perplexity:.4f} ± {result.perplexity_error:.4f}"


def _divergence_lines(result: Divergence) -> Iterator[tuple[str, str]]:
    yield "KL divergence", f"{result.mean:.6f} ± {result.mean_error:.6f} mean"
    yield "", f"{result.median:.6f} median"
    yield "", f"{result.percentile_99:.6f} 99th percentile"
    yield "", f"{result.maximum:.6f} maximum"
    yield "same top token", f"{100 * result.same_top:.2f} ± {100 * result.same_top_error:.2f} %"
    yield "true token", f"{100 * result.rms_probability_difference:.3f} % root mean square change of its probability"
    yield "perplexity", f"{result.perplexity:.4f} ± {result.perplexity_error:.4f}"
    yield "", f"{result.base_perplexity:.4f} ± {result.base_perplexity_error:.4f} of the base"
    yield "", f"{result.ln_ratio:+.6f} ± {result.ln_ratio_error:.6f} ln of their ratio"
