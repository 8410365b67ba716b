"""edgellm list"""

from __future__ import annotations

import click


@click.command("list")
def command() -> None:
    """Show the models of this machine and of the catalogue."""
    from edgellm import hub
    from edgellm.cli.terminal import one_line, size_text

    installed = {model.name: model for model in hub.installed()}
    rows = [
        (name, size_text(installed[name].n_bytes if name in installed else model.size or 0),
         "installed" if name in installed else "-", f"{model.title} ({model.license}). {model.description}")
        for name, model in hub.catalog().items()
    ]  # fmt: skip
    rows += [
        (name, size_text(model.n_bytes), "installed", "")
        for name, model in installed.items()
        if name not in hub.catalog()
    ]
    rows.insert(0, ("NAME", "SIZE", "STATE", "WHAT"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, size, state, what in rows:
        line = f"{name:{widths[0]}}  {size:>{widths[1]}}  {state:{widths[2]}}  {what}"
        click.echo(one_line(line.rstrip()))
