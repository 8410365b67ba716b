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
    was stopped goes on where it ended. The path of the model is printed. Of several models, one that cannot be fetched
    does not hold up the others.
    """
    from edgellm import hub
    from edgellm.cli import models
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import note
    from edgellm.errors import DownloadError, EdgellmError

    for name in names:  # before an hour is spent on the first
        hub.check_name(name)
    n_problems = 0
    for name in names:
        try:
            with Progress(quiet=True) as progress:
                sound = hub.is_sound(name, progress)
            click.echo(hub.resolve(name) if sound else models.pull(name))
        except EdgellmError as problem:  # noqa: PERF203  # it is rare
            if len(names) == 1:
                raise
            n_problems += 1
            note(str(problem))
    if n_problems:
        raise DownloadError(f"{n_problems} of {len(names)} models were not pulled; the lines above say why")
