"""edgellm convert"""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgellm.cli.options import threads_option


@click.command("convert")
@click.argument("source")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT.gguf",
              help="The file to write.")  # fmt: skip
@click.option("--type", "type_name", default="auto", show_default=True, metavar="TYPE",
              help="F32, F16, Q8_0, Q4_K_M, ... (see `edgellm quantize -h`); auto keeps the checkpoint's.")  # fmt: skip
@click.option("--tensor-type", "overrides", multiple=True, metavar="PATTERN=TYPE",
              help="Another type for the tensors that PATTERN finds; may stand several times.")  # fmt: skip
@click.option("--base", metavar="MODEL", help="For an adapter: the model it was made for, a folder or a GGUF file.")
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="FILE",
              help="For a llama2.c model: its tokenizer, where it is not beside it.")  # fmt: skip
@threads_option
def command(
    source: str,
    output: Path,
    type_name: str,
    overrides: tuple[str, ...],
    base: str | None,
    tokenizer: Path | None,
    n_threads: int | None,
) -> None:
    """Turn a trained checkpoint into a GGUF file.

    SOURCE is a folder with config.json, tokenizer files and safetensors (or PyTorch .bin files, whose pickles are
    not run); hf:ORG/REPO, which is fetched first; a folder with a PEFT LoRA adapter; or a llama2.c .bin file.

    \b
      edgellm convert ./SmolLM2-135M-Instruct -o smollm2.gguf
      edgellm convert hf:Qwen/Qwen2.5-0.5B-Instruct -o qwen.gguf --type Q4_K_M
      edgellm convert ./my-lora -o my-lora.gguf --base ./SmolLM2-135M-Instruct
    """
    from edgellm import hub
    from edgellm.cli.progress import Progress, reading
    from edgellm.cli.terminal import note, size_text
    from edgellm.convert.checkpoints import check_request, convert_checkpoint

    check_request(output, type_name, overrides)
    with Progress() as progress:
        folder = Path(os.path.expanduser(source))
        if not folder.exists() and hub.is_of_the_hub(source):
            folder = hub.pull_checkpoint(source, progress, progress.note)
        notes = convert_checkpoint(
            folder,
            output,
            type_name,
            base=_base(base),
            tokenizer=tokenizer,
            overrides=overrides,
            n_threads=n_threads,
            progress=reading(progress, folder),
        )
    for line in notes:
        note(line)
    note(f"wrote {output}, {size_text(output.stat().st_size)}")


def _base(name: str | None) -> Path | None:
    """The base model: a folder, a file, or a model of the catalogue."""
    if name is None:
        return None
    from edgellm import hub

    path = Path(os.path.expanduser(name))
    return path if path.is_dir() else hub.resolve(name)
