"""What is on this machine: models that are whole, damaged or half fetched, and checkpoints."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from edgellm.errors import FileProblem, UsageError, size_text
from edgellm.files import existing_file, models_folder
from edgellm.hub import store
from edgellm.hub.catalog import HubSource, NamedModel
from edgellm.hub.integrity import MISSING, Progress, fault_of, record_of
from edgellm.hub.names import did_you_mean, nearest, parse_hub_name
from edgellm.hub.others import PREFIXES, cached_file, cached_files, find_of_others, models_of_others
from edgellm.hub.parts import unfinished, whole_size, work_folder
from edgellm.hub.variants import choose, variants_of

INSTALLED, DAMAGED, INCOMPLETE = "installed", "damaged", "incomplete"


class DamagedModel(FileProblem):
    """A model lies in its place and is not whole."""


class MissingModel(FileProblem):
    """A model has a name and is not on this machine; `hub.pull` gets it."""


class InstalledModel(NamedTuple):
    """A model on this machine.

    n_bytes:        of all files of a split model; of one that is half fetched, what is there.
    state:          installed, damaged, or incomplete: its download was stopped.
    fault:          what is wrong, for people; empty for a model that is whole.
    verified:       whether it is known what its bytes must be.
    is_checkpoint:  whether it is a checkpoint of the hub, to be converted.
    owner:          the program that keeps it, where that is another one: it is run in place, and not ours to delete.
    """

    name: str
    path: Path
    n_bytes: int
    title: str = ""
    license: str = ""
    state: str = INSTALLED
    fault: str = ""
    verified: bool = False
    is_checkpoint: bool = False
    owner: str = ""


def installed() -> list[InstalledModel]:
    """The models that can be run: those of the catalogue first, then the others by name."""
    return [model for model in present() if model.state == INSTALLED and not model.is_checkpoint]


def present(progress: Progress | None = None) -> list[InstalledModel]:
    """All that lies on this machine, in any state; a file of ours is hashed if it is new or has changed.

    Models of other programs come last, without those that are here under the same name. progress(done, total, what)
    hears of the hashing of large files.
    """
    seen = [_seen(place, model, fetched, progress) for place, (model, fetched) in places().items()]
    seen += _checkpoints()
    ours = {model.name for model in seen}
    return seen + [model for model in _of_others() if model.name not in ours]


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """The file that a person means: an existing path first, then an installed model.

    Raises FileProblem when the file is missing, MissingModel when a model is not installed, DamagedModel when it is not
    whole, UsageError for an unknown name.
    """
    if file := existing_file(name_or_path):
        return file
    name = os.fspath(name_or_path)
    path = os.path.expanduser(name)
    own = models_folder() / name
    if os.path.isfile(own) and ".." not in own.parts and store.name_of(own) == name:
        return own
    if name and os.path.exists(path):
        return Path(path)  # a directory or device: whoever opens it says what is wrong with it
    if name.lower().startswith(tuple(PREFIXES)):
        return find_of_others(name).path
    if _looks_like_a_path(name):
        _refuse_address(name)
        raise FileProblem(f"{name}: no such file{_hint(name)}")
    wanted = store.find(name)
    here = store.located(wanted)
    faults = _faults(here) if here else {}
    if here and not any(faults.values()):
        return store.path_of(here)
    if elsewhere := _in_the_cache(here or wanted):
        return elsewhere
    if all(fault == MISSING for fault in faults.values()):
        raise MissingModel(f"{wanted.name} is not installed; get it with: edgellm pull {wanted.name}")
    fault = next(f"{file.name}: {fault}" for file, fault in faults.items() if fault)
    raise DamagedModel(f"{wanted.name} is damaged ({fault}); mend it with: edgellm pull {wanted.name}")


def find_to_fetch(name: str) -> NamedModel:
    """The model that a name means, for who fetches it.

    Raises what `store.find` raises, and says of a path what it is, and of other programs' models who fetches them.
    """
    try:
        return store.find(name)
    except store.NameOfSeveral:
        raise
    except UsageError:
        if name and (kind := _kind_of(name)):
            raise UsageError(
                f"{name} is a {kind} that is here already, and nobody knows where it is fetched from; expected the "
                "name of a model"
            ) from None
        if _looks_like_a_path(name):
            _refuse_address(name)
            raise UsageError(f"{name} is no name of a model{_hint(name)}; `edgellm list` shows names") from None
        raise


def _kind_of(name: str) -> str | None:
    """What lies at a path, or in the models folder under the name that it is listed by; None where nothing does."""
    path, own = os.path.expanduser(name), models_folder() / name
    if os.path.exists(path):
        return "folder" if os.path.isdir(path) else "file"
    is_below = not os.path.isabs(name) and ".." not in own.parts and os.path.isfile(own)
    return "file" if is_below and store.name_of(own) == name else None


def _refuse_address(name: str) -> None:
    """Raise UsageError for an address that is none of the hub."""
    if "://" in name:
        raise UsageError(
            f"{name} is an address, and models are fetched from those of the Hugging Face hub alone; fetch the file "
            "yourself and name its path"
        ) from None


def _faults(model: NamedModel) -> dict[Path, str | None]:
    return {file: fault_of(file, model.size, model.sha256) for file in store.paths_of(model)}


def _in_the_cache(model: NamedModel) -> Path | None:
    """The file of a model of the hub in the Hugging Face cache, if it is there whole."""
    for source in model.sources:
        if isinstance(source, HubSource):
            file = source.file
            if not file:
                there = variants_of(dict(cached_files(source.repo, source.revision)))
                fitting = [one for one in there if not source.type or one.type == source.type.upper()]
                file = choose(store.named(source), fitting).file if fitting else ""
            if file and (path := cached_file(source.repo, source.revision, file)):
                return path
    return None


def places() -> dict[Path, tuple[NamedModel | None, int]]:
    """Where models lie, wholly or in parts: catalogued ones first; with what was fetched of each so far, in bytes."""
    fetched = unfinished(models_folder())
    order = {name: number for number, name in enumerate(store.catalog())}
    fixed = {store.path_of(model) for model in store.catalog().values() if model.path}
    lying = {store.files_beside(path)[0] for path in models_folder().rglob("*.gguf") if store.name_of(path)}
    here = {place for place in fixed if os.path.lexists(place)} | lying | fetched.keys()
    known = {place: store.catalogued_at(place) for place in here}

    def rank(place: Path) -> tuple[int, Path]:
        model = known[place]
        return (order[model.name] if model else len(order), place)

    return {place: (known[place], fetched.get(place, 0)) for place in sorted(here, key=rank)}


def _seen(place: Path, model: NamedModel | None, fetched: int, progress: Progress | None) -> InstalledModel:
    files = store.files_beside(place)
    size, sha256 = (model.size, model.sha256) if model else (None, None)
    faults = {file.name: fault_of(file, size, sha256, progress=progress) for file in files}
    wrong = {name: fault for name, fault in faults.items() if fault}
    state = INSTALLED if not wrong else INCOMPLETE if set(wrong.values()) == {MISSING} else DAMAGED
    if len(wrong) == len(files) and state == INCOMPLETE:
        whole = size or (whole_size(work_folder(place)) if len(files) == 1 else 0)
        said = f"{size_text(fetched)}{f' of {size_text(whole)}' if whole else ''} are here"
    else:
        said = ", ".join(f"{name}: {fault}" if len(files) > 1 else str(fault) for name, fault in wrong.items())
        said += f"; {size_text(fetched)} of a new one are here" if fetched else ""
    return InstalledModel(
        name=store.name_of(place) or place.name,
        path=place,
        n_bytes=sum(map(bytes_of, files)) or fetched,
        title=model.title if model else "",
        license=model.license if model else "",
        state=state,
        fault=said,
        verified=bool(sha256) or all(record_of(file) for file in files),
    )


def _checkpoints() -> Iterator[InstalledModel]:
    fetched = unfinished(store.checkpoints_folder())
    for name, folder in checkpoint_folders().items():
        there = sum(map(bytes_of, files_below(folder)))
        is_half = folder in fetched
        said = f"{size_text(fetched[folder])} of it are here" if is_half else ""
        state = INCOMPLETE if is_half else INSTALLED
        yield InstalledModel(
            name, folder, there + fetched.get(folder, 0), "checkpoint", state=state, fault=said, is_checkpoint=True
        )


def checkpoint_folders() -> dict[str, Path]:
    """The folders of checkpoints that are here, wholly or in parts, by name."""
    top = store.checkpoints_folder()
    folders = {path for path in top.glob("[!.]*/*") if path.is_dir()} | unfinished(top).keys()
    return {f"hf:{folder.relative_to(top).as_posix()}": folder for folder in sorted(folders)}


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def bytes_of(path: Path) -> int:
    """The bytes of a regular file; 0 for anything else."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    return 0


def _of_others() -> Iterator[InstalledModel]:
    for model in models_of_others():
        yield InstalledModel(
            model.name, model.path, model.n_bytes, "checkpoint" if model.is_checkpoint else "",
            state=DAMAGED if model.fault else INSTALLED, fault=model.fault, is_checkpoint=model.is_checkpoint,
            owner=model.owner,
        )  # fmt: skip


def _looks_like_a_path(name: str) -> bool:
    return parse_hub_name(name) is None and (name.endswith(".gguf") or "/" in name or "\\" in name)


def _hint(name: str) -> str:
    """What a path that is not there may have meant."""
    if near := nearest(name, [str(store.name_of(place)) for place in places()]):
        return did_you_mean(near)
    with contextlib.suppress(UsageError):
        if name.count("/") >= 1 and "://" not in name and (meant := parse_hub_name(f"hf:{name}")):
            what = "file" if meant.file else "repository"
            return f"; a {what} of the Hugging Face hub is {meant}"
    return ""
