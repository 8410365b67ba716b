"""The models on this machine: catalogue models lie in the models folder, others under hf/ORG/REPO/."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgellm.errors import FileProblem, UsageError
from edgellm.files import models_folder
from edgellm.hub.catalog import HubSource, NamedModel, catalog

# hf:ORG/REPO/FILE.gguf or hf:ORG/REPO@REVISION/FOLDER/FILE.gguf; every part must be a plain file name.
_HUB_NAME = re.compile(r"hf:(?P<org>[\w.-]+)/(?P<repo>[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>.+\.gguf)")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class InstalledModel:
    """A model file on this machine; n_bytes counts all shards of a split model."""

    name: str
    path: Path
    n_bytes: int
    title: str = ""
    license: str = ""


def find(name: str) -> NamedModel:
    """The model that a catalogue name, one of its aliases, or an hf: reference means.

    Raises UsageError when it is none of these.
    """
    if name.startswith("hf:"):
        return _hub_model(name)
    wanted = name.lower()
    for model in catalog().values():
        if wanted == model.name or wanted in model.aliases:
            return model
    raise UsageError(
        f"no model is named {name!r}; known are {', '.join(catalog())}, "
        "and hf:ORG/REPO/FILE.gguf for a file of the Hugging Face hub"
    )


def path_of(model: NamedModel) -> Path:
    """Where a model lies once it is installed."""
    return models_folder() / model.path


def installed() -> list[InstalledModel]:
    """The models on this machine: those of the catalogue first, then the others by name."""
    found = []
    catalogued = set()
    for model in catalog().values():
        if (path := path_of(model)).is_file():
            catalogued.add(path)
            found.append(InstalledModel(model.name, path, path.stat().st_size, model.title, model.license))
    for path in sorted(models_folder().rglob("*.gguf")):
        name = _name_of(path)
        if path in catalogued or name is None:
            continue
        shards = _shards_of(path)
        if shards[0] == path:
            found.append(InstalledModel(name, path, sum(p.stat().st_size for p in shards if p.is_file())))
    return found


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The file that a person means: an existing path first, then an installed model.

    Raises FileProblem when the file is missing or the model not installed, UsageError for an unknown name.
    """
    path = Path(os.path.expanduser(name_or_path))
    name = str(name_or_path)
    if path.is_file():
        return path
    for model in installed():
        if model.name == name:
            return model.path
    if _looks_like_a_path(name) or path.exists():
        if path.exists():
            return path  # a directory or device: whoever opens it says what is wrong with it
        raise FileProblem(f"{name}: no such file")
    wanted = find(name)
    if (target := path_of(wanted)).is_file():
        return target
    raise FileProblem(f"{wanted.name} is not installed; get it with: edgellm pull {wanted.name}")


def remove(name: str) -> int:
    """Delete an installed model, all shards of it, and return the bytes freed."""
    wanted = {name}
    with contextlib.suppress(UsageError):  # the file of a person's own has no catalogue name
        wanted.add(find(name).name)
    for model in installed():
        if model.name in wanted:
            for shard in _shards_of(model.path):
                shard.unlink(missing_ok=True)
            _prune_empty_folders(model.path.parent)
            return model.n_bytes
    names = ", ".join(model.name for model in installed()) or "none"
    raise UsageError(f"{name!r} is not an installed model; installed: {names}")


def shard_names(file: str) -> list[str]:
    """Every file of a split model, given its first; a file that is not split is its only one."""
    match = _SHARD.fullmatch(file)
    if not match:
        return [file]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _hub_model(name: str) -> NamedModel:
    match = _HUB_NAME.fullmatch(name)
    parts = [match["org"], match["repo"], match["revision"] or "main", *match["file"].split("/")] if match else []
    if not match or not all(_is_plain(part) for part in parts):
        raise UsageError(f"{name!r} does not name a file; expected hf:ORG/REPO/FILE.gguf, "
                         "or hf:ORG/REPO@REVISION/FOLDER/FILE.gguf")  # fmt: skip
    return NamedModel(
        name=name,
        path=name.replace("hf:", "hf/", 1),
        sources=(HubSource(f"{match['org']}/{match['repo']}", match["file"], match["revision"]),),
    )


def _is_plain(part: str) -> bool:
    return part.strip(".") != "" and part.isprintable() and not any(c in part for c in '\\:*?"<>|')


def _name_of(path: Path) -> str | None:
    """The name under which a file outside the catalogue is listed; None for work in progress."""
    parts = path.relative_to(models_folder()).parts
    if parts[0].startswith("."):
        return None
    return f"hf:{'/'.join(parts[1:])}" if parts[0] == "hf" else "/".join(parts)


def _shards_of(path: Path) -> list[Path]:
    match = _SHARD.fullmatch(path.name)
    return [path.with_name(name) for name in shard_names(path.name)] if match else [path]


def _looks_like_a_path(name: str) -> bool:
    return not name.startswith("hf:") and (name.endswith(".gguf") or "/" in name or "\\" in name)


def _prune_empty_folders(folder: Path) -> None:
    with contextlib.suppress(OSError):  # rmdir refuses a folder that still holds something
        while folder != models_folder():
            folder.rmdir()
            folder = folder.parent
