"""edgellm rm"""

from __future__ import annotations

import click

from edgellm.cli.completing import complete_models


@click.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_models)
def command(names: tuple[str, ...]) -> None:
    """Delete models.

    NAME is what `edgellm list` shows: installed, damaged, or fetched in part.
    """
    from edgellm import hub
    from edgellm.cli.terminal import note, size_text

    for name in names:
        note(f"{name} is deleted, {size_text(hub.remove(name))} are free again")
