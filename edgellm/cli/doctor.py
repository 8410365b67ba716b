"""edgellm doctor"""

from __future__ import annotations

import click


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(as_json: bool) -> None:
    """Say what this machine gives, and which model to choose for it.

    Cores, instruction set, memory and disk; how fast memory is read by all threads and by one, how fast bytes are
    multiplied, and what the kernels reach of that; limits of a container, files that are damaged or half fetched and
    kernels of earlier versions. Takes a few seconds.
    """
    from edgellm.cli.checkup import as_dict, checkup, lines
    from edgellm.cli.terminal import one_line

    found = checkup()
    if as_json:
        import json

        click.echo(json.dumps(as_dict(found)))
    else:
        for line in lines(found):
            click.echo(one_line(line))
