"""edgellm pull"""

from __future__ import annotations

import click

from edgellm.cli.completing import complete_models


@click.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_models)
def command(names: tuple[str, ...]) -> None:
    """Fetch a model and check it.

    NAME is a model of the catalogue (see `edgellm list`), or one of the Hugging Face hub: hf:ORG/REPO, of which
    Q4_K_M is taken or what is nearest to it, hf:ORG/REPO:Q8_0, hf:ORG/REPO/FOLDER/FILE.gguf, hf:ORG/REPO@REVISION/...,
    or the address of a page. A model that is here already is checked, and fetched again if it is damaged. A pull that
    was stopped goes on where it ended. The path of the model is printed.
    """
    from edgellm import hub
    from edgellm.cli import models
    from edgellm.cli.progress import Progress

    for name in names:
        with Progress(quiet=True) as progress:
            sound = hub.is_sound(name, progress)
        click.echo(hub.resolve(name) if sound else models.pull(name))
