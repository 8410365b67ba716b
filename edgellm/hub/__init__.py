"""Named models: where they come from, and where they lie on this machine.

catalog()            the models that models/catalog.toml names
pull(name)           fetch one, check it, and give its path; a name is NAME, hf:ORG/REPO[:TYPE] or hf:ORG/REPO/FILE.gguf
pull_checkpoint(name)  fetch a checkpoint to be converted, hf:ORG/REPO
is_sound(name)       whether a model is here and every byte of it is right
installed()          what can be run
present()            what lies here, whole, damaged or half fetched
resolve(name)        the path of a file or of an installed model
remove(name)         delete a model, whole, damaged or half fetched
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgellm import checks
from edgellm.errors import UsageError
from edgellm.hub.catalog import NamedModel, catalog
from edgellm.hub.inventory import DamagedModel, InstalledModel, MissingModel, find_to_fetch, installed, present, resolve
from edgellm.hub.names import parse_hub_name
from edgellm.hub.others import PREFIXES, find_of_others
from edgellm.hub.store import NameOfSeveral, find, located, path_of
from edgellm.hub.variants import NoSuchVariant

__all__ = [
    "DamagedModel",
    "InstalledModel",
    "MissingModel",
    "NameOfSeveral",
    "NamedModel",
    "NoSuchVariant",
    "catalog",
    "check_name",
    "find",
    "installed",
    "is_of_the_hub",
    "is_sound",
    "path_of",
    "present",
    "pull",
    "pull_checkpoint",
    "remove",
    "resolve",
]


def pull(
    name: str,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
    convert: Callable[[Path, Path, str, Callable[[int, int, str], None]], list[str]] | None = None,
) -> Path:
    """Fetch a model unless it is there and every byte of it is right, and return its path.

    A model that is damaged is fetched again; one whose download was stopped goes on where it ended.

    progress(done, total, what) hears of bytes as they come; total is 0 while unknown. notice(line) hears one line for
    each source that failed before the next one is tried, for what is damaged, and for a download that goes on.
    convert(folder, target, type, progress) makes a model of a checkpoint, as some of the catalogue are; `edgellm.pull`
    has one.

    Raises DownloadError (HashMismatchError) when no source delivers or the disk has no room, UsageError for a name
    nobody knows.
    """
    from edgellm.hub.puller import look_up_model, pull_model  # networking is imported only when something is fetched

    checks.function("progress", progress)
    checks.function("notice", notice)
    if _is_of_others(name):
        return find_of_others(name).path  # they are here, or their own program fetches them
    tell, wanted = notice or (lambda line: None), find_to_fetch(name)
    model = located(wanted) or look_up_model(wanted, tell)
    return pull_model(model, progress or (lambda done, total, what: None), tell, convert)


def _is_of_others(name: str) -> bool:
    """Whether a name is one of another program's models, as `ollama:NAME` is."""
    return checks.text("name", name).lower().startswith(tuple(PREFIXES))


def check_name(name: str) -> None:
    """Raise UsageError, or FileProblem, for a name of which `pull` could make nothing; nobody is asked."""
    if _is_of_others(name):
        find_of_others(name)
    else:
        find_to_fetch(name)


def is_of_the_hub(name: str) -> bool:
    """Whether a name is one of the Hugging Face hub, in any spelling, well-formed or not."""
    try:
        return parse_hub_name(name) is not None
    except UsageError:
        return True


def is_sound(name: str, progress: Callable[[int, int, str], None] | None = None) -> bool:
    """Whether a model is here and every byte of it is right; it is read once. Raises UsageError.

    One of another program is as its program keeps it; FileProblem says that there is none.
    """
    from edgellm.hub.puller import is_sound_model

    if _is_of_others(name):
        return bool(find_of_others(name))
    model = located(find_to_fetch(name))
    return model is not None and is_sound_model(model, progress or (lambda done, total, what: None), thorough=True)


def pull_checkpoint(
    name: str,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Fetch what a conversion needs of hf:ORG/REPO or hf:ORG/REPO@REVISION, and return the folder it lies in.

    All files are of one commit: the one that the revision stands for now, or that a stopped download began with.
    Files that are there already and are the same at that commit are kept; notice(line) hears what a person may want to
    know. Raises DownloadError, UsageError for a malformed name.
    """
    from edgellm.hub.checkpoint import fetch_checkpoint

    return fetch_checkpoint(name, progress or (lambda done, total, what: None), notice or (lambda line: None))


def remove(name: str) -> int:
    """Delete a model or checkpoint, whole, damaged or half fetched, and return the bytes freed.

    Raises UsageError for what is not here, FileProblem for what is being fetched or is no model.
    """
    from edgellm.hub.removal import remove_named

    return remove_named(name)
