"""edgellm info"""

from __future__ import annotations

import click

from edgellm.cli.completing import complete_models


@click.command("info")
@click.argument("file", required=False, metavar="[FILE]", shell_complete=complete_models)
@click.option("--values", "with_values", is_flag=True,
              help="Instead, name the values inside the model that `Model.run` can read or replace.")  # fmt: skip
def command(file: str | None, with_values: bool) -> None:
    """Show what is in a model file, or what this machine offers.

    FILE is a GGUF file or an installed model: its metadata and tensors are listed, and nothing is loaded.
    Without FILE: versions, processor, instruction set in use, memory, and where models and kernels are kept.
    """
    from edgellm.cli.terminal import one_line
    from edgellm.errors import UsageError

    if file is None and with_values:
        raise UsageError("--values goes with a FILE; without one there is no model to look into")
    if file is None:
        from edgellm.cli.machine import describe_machine

        lines = describe_machine()
    else:
        from edgellm import hub
        from edgellm.cli.model_file import describe_file, describe_values

        lines = (describe_values if with_values else describe_file)(hub.resolve(file))
    for line in lines:
        click.echo(one_line(line))
