"""edgellm merge"""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli.options import scales_of, threads_option


@click.command("merge")
@click.argument("model")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER[=SCALE]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.gguf",
              help="The file to write.")  # fmt: skip
@click.option("--type", "type_name", metavar="TYPE",
              help="F32, F16, Q8_0, Q4_K_M, ... (see `edgellm quantize -h`).  [default: each tensor keeps its own]",
              )  # fmt: skip
@threads_option
def command(model: str, adapters: tuple[str, ...], output: Path, type_name: str | None, n_threads: int | None) -> None:
    """Put adapters into a model, as a new GGUF file.

    MODEL is a GGUF file or a model's name; an ADAPTER is a PEFT folder or a GGUF adapter that was made for it. The
    original weights (F16, F32) lose least: quantized ones are quantized anew. The model's file stays as it is.

    \b
      edgellm merge smollm2-f16.gguf ./my-adapter -o mine.gguf --type Q4_K_M
      edgellm merge smollm2-135m ./facts ./style=0.5 -o mine.gguf
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note, size_text
    from edgellm.convert.merge import merge_adapters
    from edgellm.convert.recipes import recipe_of
    from edgellm.convert.targets import check_target

    scales = scales_of(adapters, "ADAPTER")
    if type_name is not None:
        recipe_of(type_name)
    check_target(output)
    path = models.path_of(model)
    with Progress() as progress:
        done = merge_adapters(path, scales, output, type_name, n_threads=n_threads, progress=progress)
    for line in (*done.notes, *done.warnings):
        note(line)
    note(f"wrote {done.path}, {done.type_name}, {size_text(done.n_bytes)}")
