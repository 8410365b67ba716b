"""Deleting what is on this machine."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from edgellm.errors import FileProblem, UsageError
from edgellm.files import models_folder, tile_files
from edgellm.hub import store
from edgellm.hub.integrity import forget
from edgellm.hub.inventory import bytes_of, checkpoint_folders, files_below, places
from edgellm.hub.lock import only_one
from edgellm.hub.names import did_you_mean, nearest
from edgellm.hub.others import models_of_others
from edgellm.hub.parts import clear, work_folder


def remove_named(name: str) -> int:
    """See `edgellm.hub.remove`."""
    named = {store.name_of(place): place for place in places()} | checkpoint_folders()
    place = named.get(name)
    if place is None:
        with contextlib.suppress(UsageError):  # the file of a person's own has no catalogue name
            found = store.located(store.find(name))
            place = next((place for place in named.values() if found and place == store.path_of(found)), None)
    if place is None:
        if owner := next((other.owner for other in models_of_others() if other.name == name), None):
            raise UsageError(f"{name} belongs to {owner}, which alone may delete it")
        names = [known for known in named if known]
        aliases = [alias for model in store.catalog().values() if model.name in names for alias in model.aliases]
        raise UsageError(
            f"{name!r} is not an installed model{did_you_mean(nearest(name, [*names, *aliases]))}; "
            f"installed: {', '.join(names) or 'none'}"
        )

    def refuse() -> None:
        raise FileProblem(f"{name} is being fetched by another process; stop that first")

    with only_one(place, taken=refuse):
        work = work_folder(place)
        freed = sum(map(bytes_of, files_below(work)))
        if place in checkpoint_folders().values():
            freed += _delete_folder(place)
        else:
            freed += tile_files.remove(place)
            freed += sum(_delete_file(file) for file in store.files_beside(place))
        clear(work)
        _prune_empty_folders(place.parent)
    return freed


def _delete_folder(folder: Path) -> int:
    """Delete the folder of a checkpoint, which may be a link to one elsewhere; returns the bytes freed."""
    files = files_below(folder)
    freed = sum(map(bytes_of, files))
    for file in files:
        forget(file)
    if folder.is_symlink():
        folder.unlink()
        return 0
    if folder.exists():
        shutil.rmtree(folder)
    return freed


def _delete_file(path: Path) -> int:
    """Delete a file, a link, or an empty folder in its place; returns the bytes freed."""
    n_bytes = 0 if path.is_symlink() else bytes_of(path)
    if path.is_dir() and not path.is_symlink():
        try:
            path.rmdir()
        except OSError:
            raise FileProblem(f"{path} is a folder with something in it, no model; move it away yourself") from None
    path.unlink(missing_ok=True)
    forget(path)
    return n_bytes


def _prune_empty_folders(folder: Path) -> None:
    tops = (models_folder(), store.checkpoints_folder())
    with contextlib.suppress(OSError):  # rmdir refuses a folder that still holds something
        while folder not in tops:
            folder.rmdir()
            folder = folder.parent
