"""edgellm bench"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.options import lora_option, runtime_options
from edgellm.errors import counted
from edgellm.params import DEFAULT_MODEL, RuntimeConfig

if TYPE_CHECKING:
    from edgellm.measure.profile import Profile


@click.command("bench")
@click.argument("model", default=DEFAULT_MODEL, shell_complete=complete_models)
@click.option("-p", "--prompt-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="N",
              help="Tokens of the prompt.")  # fmt: skip
@click.option("-n", "--tokens", type=click.IntRange(1), default=64, show_default=True, metavar="N",
              help="Tokens to generate.")  # fmt: skip
@click.option("-d", "--depth", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Tokens that are in the context before either starts.")  # fmt: skip
@click.option("-r", "--repetitions", type=click.IntRange(1), default=3, show_default=True, metavar="N",
              help="Measure so often, and give the median.")  # fmt: skip
@click.option("--profile", "with_profile", is_flag=True, help="Also show the time of every kind of op.")
@click.option("--tune", is_flag=True, help="First measure again which settings are quickest here, and remember them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@runtime_options
@lora_option
def command(
    model: str,
    prompt_tokens: int,
    tokens: int,
    depth: int,
    repetitions: int,
    with_profile: bool,
    tune: bool,
    as_json: bool,
    runtime: RuntimeConfig,
    adapters: dict[Path, float],
) -> None:
    """Measure the speed of a model.

    Prints the tokens per second of reading a prompt (prefill) and of writing an answer (decode): the median, and
    the slowest and quickest repetition. Beside them stand shares of what this machine could do at most. Prefill is
    bound by how many bytes all threads can multiply, decode by how many they can read from memory; both limits are
    measured.
    """
    from edgellm.cli import models
    from edgellm.cli.terminal import one_line
    from edgellm.measure import bench

    if tune:
        from edgellm.graph.tuner import forget
        from edgellm.kernels.isa import choose
        from edgellm.kernels.store import KernelStore

        forget(KernelStore(choose()))
    if runtime.n_ctx is None:
        runtime = replace(runtime, n_ctx=depth + max(prompt_tokens, tokens))
    profiles: dict[str, Profile] = {}
    with models.load(models.path_of(model), runtime, adapters) as loaded:
        result = bench.measure(loaded, prompt_tokens, tokens, repetitions, depth)
        if with_profile:
            from edgellm.measure.profile import profile

            profiles = profile(loaded, prompt_tokens, repetitions, depth)
    if as_json:
        import json

        if profiles:
            result["profile"] = {name: taken.as_dict() for name, taken in profiles.items()}
        click.echo(json.dumps(result))
        return
    for line in _summary(result):
        click.echo(one_line(line))
    for name, taken in profiles.items():
        for line in ("", *_table(name, taken)):
            click.echo(one_line(line))


def _summary(result: dict[str, Any]) -> Iterator[str]:
    threads = counted(result["n_threads"], "thread")
    depth = f", {result['depth']} tokens deep" if result["depth"] else ""
    with_adapters = "".join(f" + {scale:g} x {name}" for name, scale in result["adapters"].items())
    layout = {"tiles": ", from tiles", "memory": ", from tiles in memory"}.get(result.get("layout", "file"), "")
    yield f"model    {result['model']}{with_adapters}, {threads}, {result['isa']}{layout}{depth}"
    yield (
        f"machine  reads {result['read_gigabytes_per_second']:.1f} GB/s, "
        f"multiplies {result['multiply_gigamacs_per_second']:.0f} GMAC/s (int8)"
    )
    for work, n_tokens, share, limit in (
        ("prefill", "n_prompt", "prefill_share_of_multiply_limit", "multiply"),
        ("decode", "n_generate", "decode_share_of_read_limit", "read"),
    ):
        speed, lowest, highest = (result[f"{work}_tokens_per_second{suffix}"] for suffix in ("", "_lowest", "_highest"))
        yield (
            f"{work:7}  {result[n_tokens]:5} tokens  {speed:8.1f} tok/s  {f'({lowest:.1f} to {highest:.1f})':20}"
            f"  {100 * result[share]:3.0f} % of the {limit} limit"
        )


def _table(name: str, profile: Profile) -> Iterator[str]:
    """One line for each kind of op; the last column is how fast its weights (and cache) were worked through."""
    is_decode = name == "decode"
    tokens = "1 token" if profile.n_tokens == 1 else f"a batch of {profile.n_tokens} tokens"
    yield f"{f'{name}, {tokens}':32}{'ops':>6}{'ms':>10}{'share':>9}{'GB/s' if is_decode else 'GMAC/s':>9}"
    for row in profile.rows:
        work = row.read_bytes if is_decode else row.macs
        rate = f"{work / row.seconds / 1e9:9.1f}" if work else ""
        yield f"  {row.name:30}{row.count:6}{1000 * row.seconds:10.3f}{100 * row.share:7.1f} %{rate}"
    n_ops = sum(row.count for row in profile.rows)
    yield f"  {'together':30}{n_ops:6}{1000 * profile.seconds:10.3f}"
    yield f"  {'an ordinary run, with Python':30}{'':6}{1000 * profile.seconds_unprofiled:10.3f}"
