"""edgellm launch: tell an editor or agent of a server of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgellm.cli.server_client import address_of, ask
from edgellm.errors import EdgellmError, FileProblem, UsageError

if TYPE_CHECKING:
    from edgellm.server.launch import Served


@click.command()
@click.argument("name", required=False)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Where the server is.")
@click.option("--model", help="The model to begin with.  [default: the server's first]")
@click.option(
    "--api-key", envvar="EDGELLM_API_KEY", show_envvar=True, help="The key that the server asks for, if it does."
)
@click.option("--undo", is_flag=True, help="Take back what was written.")
@click.option("--print", "is_shown", is_flag=True, help="Show what would be written, and write nothing.")
def command(name: str | None, url: str, model: str | None, api_key: str | None, undo: bool, is_shown: bool) -> None:
    """Configure an editor or coding agent for this server.

    Writes what NAME needs to use a server that runs (edgellm serve).

    NAME is opencode, claude, codex, continue or zed; without it, all are listed with their files. What else stands in
    the file stays there, and --undo sets back what was written.

    \b
      edgellm serve qwen2.5-coder-1.5b
      edgellm launch opencode
      edgellm launch opencode --undo
    """
    from edgellm.server import launch

    if name is None:
        for known, program in launch.PROGRAMS.items():
            click.echo(f"{known:10} {program.title:12} {_short(program.path())}")
        return
    if name not in launch.PROGRAMS:
        raise UsageError(f"{name!r} is no program that edgellm knows; there are {', '.join(launch.PROGRAMS)}")
    if undo and is_shown:
        raise UsageError("--undo and --print cannot go together; leave one out")
    program = launch.PROGRAMS[name]
    if undo:
        _told("set back", launch.undo(name, program))
        return
    served = _served(url, model, api_key)
    settings = program.settings(served)
    if is_shown:
        click.echo(_alone(settings, program.path()), nl=False)
        return
    try:
        _told("wrote", launch.write(name, program, settings))
    except FileProblem as problem:
        click.echo(_alone(settings, program.path()), nl=False)
        raise FileProblem(f"{problem}; add what stands above to {_short(program.path())} yourself") from None
    click.echo(f"{program.title}: {program.then(served)}. edgellm launch {name} --undo takes it back.")


def _told(verb: str, written: Any) -> None:
    if written.lines:
        click.echo(f"{verb} {', '.join(written.lines)} in {_short(written.path)}")
    elif not written.kept:
        click.echo(f"nothing to change in {_short(written.path)}")
    if written.kept:
        click.echo(f"left alone, for it was changed since: {', '.join(written.kept)}")


def _alone(settings: Any, path: Path) -> str:
    from edgellm.server.launch import documents

    return documents.text_of(documents.nested(settings), path.suffix)


def _served(url: str, model: str | None, key: str | None) -> Served:
    """The server and its models, as it tells. Raises UsageError or EdgellmError when it is none, or lacks the model."""
    from edgellm.server.launch import Served

    url = address_of(url)
    models = _models(url, key)
    if not models:
        raise EdgellmError(f"the server at {url} has no models; edgellm pull fetches one")
    if model is not None and model not in models:
        raise UsageError(f"--model {model}: the server has {', '.join(models)}")
    first = model or next(iter(models))
    return Served(url, {first: models.pop(first), **models}, key)


def _models(url: str, key: str | None) -> dict[str, int | None]:
    """Their names, and how many tokens the context of each holds, if the server says so."""
    found = ask(url, "/v1/models", key)
    try:
        return {str(one["id"]): one.get("max_model_len") for one in found["data"]}
    except (KeyError, TypeError, AttributeError):
        raise EdgellmError(f"what answers at {url} is no edgellm: it does not list models") from None


def _short(path: Path) -> str:
    from edgellm.files import user_folder

    home = user_folder()
    return f"~/{path.relative_to(home).as_posix()}" if home and path.is_relative_to(home) else str(path)
