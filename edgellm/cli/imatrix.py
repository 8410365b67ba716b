"""edgellm imatrix"""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli.completing import complete_models
from edgellm.cli.texts import window_options
from edgellm.params import RuntimeConfig


@click.command("imatrix")
@click.argument("model", shell_complete=complete_models)
@window_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE",
              help="Where the importance matrix goes.")  # fmt: skip
@click.option("--process-output", "with_head", is_flag=True,
              help="Also for the matrix that makes logits; takes far longer.")  # fmt: skip
def command(
    model: str,
    text_file: Path,
    n_windows: int | None,
    runtime: RuntimeConfig,
    parse_special: bool,
    output: Path,
    with_head: bool,
) -> None:
    """Find out which weights matter, for better quantizing.

    MODEL reads TEXT in windows, and the mean square of every input of its linear layers is written to FILE, a GGUF
    file that `edgellm quantize --imatrix` and llama.cpp's tools take. Text like what the model will be used for is
    best, some 100 windows of it; MODEL should be the one to be quantized, in F16 or Q8_0.
    """
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import counted, one_line
    from edgellm.cli.texts import read_text, shown, tokens_of
    from edgellm.convert.imatrix import collect_imatrix
    from edgellm.convert.targets import check_folder, check_target
    from edgellm.errors import UsageError
    from edgellm.files import atomic_write
    from edgellm.formats.imatrix import write_imatrix

    # What is wrong with the target is said before a model is fetched or loaded.
    if output.is_dir():
        raise UsageError(f"{output} is a folder; expected the name of a file to write")
    check_folder(output.parent)
    check_target(output)
    text = read_text(text_file)
    path = models.path_of(model)
    if output.exists() and any(output.samefile(source) for source in (path, text_file)):
        raise UsageError(f"{output} would be written over what is being read; choose another name")
    with models.load(path, runtime) as loaded, atomic_write(output) as file, Progress("collecting") as progress:
        importance = collect_imatrix(
            loaded,
            tokens_of(loaded, text, parse_special),
            loaded.n_ctx,
            n_windows,
            with_head=with_head,
            datasets=[text_file.name],
            progress=shown(progress),
        )
        write_imatrix(file, importance)
    read = f"{counted(importance.n_chunks, 'window')} of {importance.chunk_size} tokens"
    click.echo(one_line(f"{output}: importance of {len(importance.tensors)} tensors, from {read}"))
