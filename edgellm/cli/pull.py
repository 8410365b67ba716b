"""edgellm pull"""

from __future__ import annotations

import click

from edgellm.cli.completing import complete_models


@click.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_models)
def command(names: tuple[str, ...]) -> None:
    """Fetch a model and check it.

    NAME is a model of the catalogue (see `edgellm list`), or hf:ORG/REPO/FILE.gguf for a file of the Hugging
    Face hub; hf:ORG/REPO@REVISION/FOLDER/FILE.gguf names a revision and a folder. A model that is here already is
    checked, and fetched again if it is damaged. A pull that was stopped goes on where it ended. The path of the
    model is printed.
    """
    from edgellm import hub
    from edgellm.cli import models
    from edgellm.cli.progress import Progress

    for name in names:
        with Progress(quiet=True) as progress:
            sound = hub.is_sound(name, progress)
        click.echo(hub.path_of(hub.find(name)) if sound else models.pull(name))
