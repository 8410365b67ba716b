"""edgellm quantize"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgellm.cli.options import threads_option


class _WithTypes(click.Command):
    """Shows the recipes below the options, without importing them for anything else."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from edgellm.convert.recipes import RECIPES

        with formatter.section("Types"):
            formatter.write_dl([(recipe.name, recipe.about) for recipe in RECIPES.values()])


@click.command("quantize", cls=_WithTypes)
@click.argument("source", metavar="IN.gguf")
@click.argument("target", metavar="OUT.gguf", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="TYPE")
@click.option("--tensor-type", "overrides", multiple=True, metavar="PATTERN=TYPE",
              help="Another type for the tensors that PATTERN finds (a part of their name, a regular expression, or a "
              "shell pattern of all of it); may stand several times, and the first that fits counts.")  # fmt: skip
@click.option("--imatrix", "imatrix_file", type=click.Path(path_type=Path), metavar="FILE",
              help="An importance matrix, from `edgellm imatrix` or from llama.cpp.")  # fmt: skip
@threads_option
def command(
    source: str,
    target: Path,
    type_name: str,
    overrides: tuple[str, ...],
    imatrix_file: Path | None,
    n_threads: int | None,
) -> None:
    """Make a GGUF file smaller.

    IN.gguf, or a model by its name, should hold the original weights in F32, F16 or BF16 (from `edgellm convert`).
    The mixes (_S, _M, _L) mean what they mean in llama.cpp.

    \b
      edgellm quantize smollm2-f16.gguf smollm2.gguf Q4_K_M
      edgellm quantize in.gguf out.gguf Q4_K_M --imatrix in.imatrix
      edgellm quantize in.gguf out.gguf Q4_0 --tensor-type ffn_down=q6_k
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note
    from edgellm.convert.quantize import quantize_file

    path = models.path_of(source)
    settings: dict[str, Any] = {"overrides": overrides, "n_threads": n_threads}
    if imatrix_file is not None:
        from edgellm.formats.imatrix import read_imatrix

        settings["importance"] = read_imatrix(imatrix_file).tensors
    with Progress() as progress:
        done = quantize_file(path, target, type_name, progress=progress, **settings)
    for line in done.warnings:
        note(line)
    note(_summary(path.stat().st_size, done))


def _summary(n_bytes_before: int, done: Any) -> str:
    from edgellm.cli.terminal import size_text

    share = 100 * done.n_bytes / n_bytes_before
    return f"wrote {done.path}, {size_text(done.n_bytes)} ({share:.0f} %), {done.bits_per_weight:.2f} bits per weight"
