"""Named models: where they come from, and where they lie on this machine.

catalog()            the models that models/catalog.toml names
pull(name)           fetch one, check it, and give its path; a name is NAME or hf:ORG/REPO/FILE.gguf
pull_checkpoint(name)  fetch a checkpoint to be converted, hf:ORG/REPO
installed()          what is there already
resolve(name)        the path of a file or of an installed model
remove(name)         delete an installed model
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgellm import checks
from edgellm.hub.catalog import NamedModel, catalog
from edgellm.hub.store import InstalledModel, find, installed, path_of, remove, resolve

__all__ = [
    "InstalledModel",
    "NamedModel",
    "catalog",
    "find",
    "installed",
    "path_of",
    "pull",
    "pull_checkpoint",
    "remove",
    "resolve",
]


def pull(
    name: str,
    progress: Callable[[int, int, str], None] | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a model unless it is there already, and return its path.

    progress(done, total, what) hears of bytes as they come; total is 0 while unknown. notice(line) hears one
    line for each source that failed before the next one is tried.

    Raises DownloadError (HashMismatchError) when no source delivers, UsageError for a name nobody knows.
    """
    from edgellm.hub.puller import pull_model  # networking is imported only when something is fetched

    checks.function("progress", progress)
    checks.function("notice", notice)
    return pull_model(
        find(checks.text("name", name)), progress or (lambda done, total, what: None), notice or (lambda line: None)
    )


def pull_checkpoint(name: str, progress: Callable[[int, int, str], None] | None = None) -> Path:
    """Fetch what a conversion needs of hf:ORG/REPO or hf:ORG/REPO@REVISION, and return the folder it lies in.

    Files that are there already are kept. Raises DownloadError, UsageError for a malformed name.
    """
    from edgellm.hub.checkpoint import fetch_checkpoint

    return fetch_checkpoint(name, progress or (lambda done, total, what: None))
