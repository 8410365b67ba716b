"""edgellm list"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from edgellm.errors import FileProblem

if TYPE_CHECKING:
    from edgellm.hub import InstalledModel, NamedModel


@click.command("list")
def command() -> None:
    """Show the models of this machine and of the catalogue.

    What is damaged, or was not fetched to its end, is shown with what is wrong.
    """
    from edgellm import hub
    from edgellm.cli.progress import Progress
    from edgellm.cli.terminal import one_line, size_text
    from edgellm.files import tile_files

    with Progress(quiet=True) as progress:
        here = {model.name: _looked_into(model) for model in hub.present(progress)}
    catalogued = hub.catalog()
    rows = [("NAME", "SIZE", "STATE", "WHAT")]
    for name in dict.fromkeys([*catalogued, *here]):
        model, found = catalogued.get(name), here.get(name)
        size = found.n_bytes if found and not (model and found.state == "incomplete") else model.size if model else 0
        rows.append((name, size_text(size or 0), found.state if found else "-", _what(name, model, found)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, much, state, what in rows:
        if tiles := tile_files.bytes_of(here[name].path) if name in here and not here[name].is_checkpoint else 0:
            what = f"{what}; tiles of it take {size_text(tiles)}".removeprefix("; ")
        line = f"{name:{widths[0]}}  {much:>{widths[1]}}  {state:{widths[2]}}  {what}"
        click.echo(one_line(line.rstrip()))


def _looked_into(model: InstalledModel) -> InstalledModel:
    """A file of which nobody said what its bytes must be is damaged if it cannot be opened."""
    if model.state != "installed" or model.verified or model.is_checkpoint:
        return model
    from edgellm.formats.gguf import GGUFFile

    try:
        with GGUFFile.open(model.path):
            return model
    except FileProblem as problem:
        return dataclasses.replace(model, state="damaged", fault=str(problem))


def _what(name: str, model: NamedModel | None, found: InstalledModel | None) -> str:
    """What a model is; of one that is not whole, what is wrong and what to do."""
    if found is None or not found.fault:
        return f"{model.title} ({model.license}). {model.description}" if model else found.title if found else ""
    if found.is_checkpoint:
        command = f"convert {name} -o MODEL.gguf"
    elif model or name.startswith("hf:"):
        command = f"pull {name}"
    else:
        return found.fault  # a file of the person's own, which nobody can fetch again
    return f"{found.fault}; {'go on' if found.state == 'incomplete' else 'mend it'} with: edgellm {command}"
