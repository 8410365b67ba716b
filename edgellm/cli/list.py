"""edgellm list"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgellm.errors import FileProblem

if TYPE_CHECKING:
    from edgellm.hub import InstalledModel, NamedModel


@click.command("list")
def command() -> None:
    """Show the models of this machine and of the catalogue.

    Of those that are not here yet, it is said how much memory they take and whether this machine has it. What is
    damaged, or was not fetched to its end, is shown with what is wrong. Models of Ollama, LM Studio and the Hugging
    Face cache stand at the end: they are run where they are.
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
        size = found.n_bytes if found and not (model and found.state == "incomplete") else model.n_bytes if model else 0
        state = "-" if not found else "elsewhere" if found.owner and found.state == "installed" else found.state
        rows.append((name, size_text(size), state, _what(name, model, found)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, much, state, what in rows:
        if tiles := tile_files.bytes_of(here[name].path) if name in here and not here[name].is_checkpoint else 0:
            what = f"{what}; tiles of it take {size_text(tiles)}".removeprefix("; ")
        line = f"{name:{widths[0]}}  {much:>{widths[1]}}  {state:{widths[2]}}  {what}"
        click.echo(one_line(line.rstrip()))


def fitting(memory: int) -> str:
    """Whether this machine has the memory that a model takes."""
    from edgellm.cli.terminal import size_text
    from edgellm.machine import total_memory

    has = total_memory()
    verdict = "fits this machine" if memory <= has else f"too large for this machine, which has {size_text(has)}"
    return f"Takes about {size_text(memory)} of memory: {verdict}."


def _looked_into(model: InstalledModel) -> InstalledModel:
    """A file of which nobody said what its bytes must be is damaged if it cannot be opened."""
    if model.state != "installed" or model.verified or model.is_checkpoint or model.owner:
        return model
    from edgellm.formats.gguf import GGUFFile

    try:
        with GGUFFile.open(model.path):
            return model
    except FileProblem as problem:
        return model._replace(state="damaged", fault=str(problem))


def _what(name: str, model: NamedModel | None, found: InstalledModel | None) -> str:
    """What a model is; of one that is not whole, what is wrong and what to do."""
    if found and found.owner:
        return f"{found.title or 'model'} of {found.owner}{f': {found.fault}' if found.fault else ''}"
    if found is None or not found.fault:
        about = f"{model.title} ({model.license}). {model.description}" if model else found.title if found else ""
        return f"{about} {fitting(model.memory)}" if model and not found else about
    if found.is_checkpoint:
        command = f"convert {name} -o MODEL.gguf"
    elif model or name.startswith("hf:"):
        command = f"pull {name}"
    else:
        return found.fault  # a file of the person's own, which nobody can fetch again
    return f"{found.fault}; {'go on' if found.state == 'incomplete' else 'mend it'} with: edgellm {command}"
