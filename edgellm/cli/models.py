"""From the word that a person typed to a loaded model, with progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm.cli.progress import Progress
from edgellm.cli.terminal import note, size_text
from edgellm.errors import UsageError
from edgellm.files import existing_file
from edgellm.files.tile_files import TASK as TILES_TASK
from edgellm.params import RuntimeConfig

if TYPE_CHECKING:
    from edgellm.engine import Model


def path_of(name: str) -> Path:
    """The file of a model; one that has a name but is not installed yet is pulled first."""
    return find(name) or pull(name)


def find(name: str) -> Path | None:
    """The file of a model; None for one that has a name and must be pulled first. Raises what `hub.resolve` raises.

    What else can be wrong with a command is said before a model is pulled, which takes long.
    """
    if file := existing_file(name):
        return file
    from edgellm import hub  # a path needs no names of models

    try:
        path = hub.resolve(name)
    except hub.MissingModel:
        return None
    return in_folder(path) if path.is_dir() else path


def pull(name: str) -> Path:
    """Fetch a model with a progress bar."""
    from edgellm import hub

    model = hub.find(name)
    size = f" ({size_text(model.size)}, licence: {model.license})" if model.size else ""
    size = size or (f" (about {size_text(model.about)}, licence: {model.license})" if model.about else "")
    note(f"pulling {model.name}{size}")
    with Progress() as progress:
        try:
            from edgellm.convert.pulling import pull as fetch

            return fetch(name, progress, notice=progress.note)
        except KeyboardInterrupt:
            progress.note(f"stopped; what has come is kept: edgellm pull {name} goes on, edgellm rm {name} deletes it")
            raise


def in_folder(folder: Path) -> Path:
    """The only model in a folder. Raises UsageError for several, and for what is no model yet: how it becomes one."""
    models = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if len(models) == 1:
        return models[0]
    if models:
        raise UsageError(f"{folder} holds {len(models)} models: {', '.join(path.name for path in models)}; name one")
    if (folder / "adapter_config.json").is_file():
        raise UsageError(f"{folder} is an adapter: edgellm run BASE --lora {folder} runs its model with it")
    if (folder / "config.json").is_file():
        raise UsageError(
            f"{folder} is a checkpoint: edgellm convert {folder} -o MODEL.gguf makes a model of it, and "
            f"edgellm run {folder} --convert does both"
        )
    raise UsageError(f"{folder} is a folder without a model; expected a GGUF file, or a checkpoint with config.json")


def load(path: Path, runtime: RuntimeConfig, adapters: Mapping[Path, float] | None = None) -> Model:
    """Load a model; kernels that are missing are compiled under a progress line, and what its file lacks is told.

    adapters:  what it is run with, scales by path; they are called as they were typed.
    """
    import edgellm
    from edgellm.graph.tuner import TASK as TUNING_TASK

    if runtime.draft is not None:
        runtime = dataclasses.replace(runtime, draft=path_of(str(runtime.draft)))
    with Progress("compiling kernels") as kernels, Progress() as others:

        def progress(done: int, total: int, what: str) -> None:
            shown, over = (others, kernels) if what in (TILES_TASK, TUNING_TASK) else (kernels, others)
            over.clear()
            shown(done, total, what)

        model = edgellm.load(path, **dataclasses.asdict(runtime), progress=progress)
    for line in model.notes:
        note(f"{path.name}: {line}")
    try:
        _put_on(model, adapters or {})
    except BaseException:
        model.close()
        raise
    return model


def _put_on(model: Model, adapters: Mapping[Path, float]) -> None:
    """Load adapters and use them for all texts; what of their settings was passed over is told."""
    for path in adapters:
        for line in model.adapter_notes(model.load_adapter(path, str(path))):
            note(f"{path}: {line}")
    if adapters:
        model.set_adapters({str(path): scale for path, scale in adapters.items()})
