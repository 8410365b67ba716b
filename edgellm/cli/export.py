"""edgellm export"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export")
@click.argument("model")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER",
              help="The folder to make.")  # fmt: skip
@click.option("--type", "dtype", type=click.Choice(["f16", "bf16", "f32"], case_sensitive=False), default="bf16",
              show_default=True, help="Type of the weights.")  # fmt: skip
@click.option("--base", metavar="MODEL", help="For a GGUF adapter: the GGUF file of the model it was made for.")
def command(model: str, output: Path, dtype: str, base: str | None) -> None:
    """Write a GGUF file as a Hugging Face folder.

    MODEL is a GGUF file or a model's name. The folder holds safetensors, config.json and the tokenizer, as
    `transformers` reads them. Quantized weights become floats; what quantizing lost stays lost. A GGUF adapter becomes
    a PEFT folder.
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note
    from edgellm.convert.export import export_checkpoint

    path, of_base = models.path_of(model), None if base is None else models.path_of(base)
    with Progress() as progress:
        export_checkpoint(path, output, dtype.lower(), progress, base=of_base)
    note(f"wrote {output}")
