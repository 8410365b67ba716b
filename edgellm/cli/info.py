"""edgellm info"""

from __future__ import annotations

import click


@click.command("info")
@click.argument("file", required=False, metavar="[FILE]")
def command(file: str | None) -> None:
    """Show what is in a model file, or what this machine offers.

    FILE is a GGUF file or an installed model: its metadata and tensors are listed, and nothing is loaded.
    Without FILE: versions, processor, instruction set in use, memory, and where models and kernels are kept.
    """
    from edgellm.cli.terminal import one_line

    if file is None:
        from edgellm.cli.machine import describe_machine

        lines = describe_machine()
    else:
        from edgellm import hub
        from edgellm.cli.model_file import describe_file

        lines = describe_file(hub.resolve(file))
    for line in lines:
        click.echo(one_line(line))
