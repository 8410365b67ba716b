"""Fetching a model by its name, of whatever form: one that is a checkpoint is converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgellm import hub

Progress = Callable[[int, int, str], None]


def pull(
    name: str,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Path:
    """Fetch a model unless it is there and every byte of it is right, and return its path.

    name:  of the catalogue, hf:ORG/REPO, hf:ORG/REPO:TYPE or hf:ORG/REPO/FILE.gguf.

    A model that is damaged is fetched again; one whose download was stopped goes on where it ended. progress(done,
    total, what) hears of bytes as they come; total is 0 while unknown. notice(line) hears what a person may want to
    know: what else a repository holds, a source that failed before the next one is tried.

    Raises DownloadError (HashMismatchError) when no source delivers or the disk has no room, UsageError for a name
    nobody knows.
    """
    return hub.pull(name, progress, notice, _converted)


def _converted(folder: Path, target: Path, type_name: str, progress: Progress) -> list[str]:
    from edgellm.convert.checkpoints import convert_checkpoint  # only few models need it

    return convert_checkpoint(folder, target, type_name, progress=progress)
