"""From the word that a person typed to a loaded model, with progress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgellm import hub
from edgellm.cli.progress import Progress
from edgellm.cli.terminal import note, size_text
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
    try:
        return hub.resolve(name)
    except hub.MissingModel:
        return None


def pull(name: str) -> Path:
    """Fetch a model with a progress bar."""
    model = hub.find(name)
    size = f" ({size_text(model.size)}, licence: {model.license})" if model.size else ""
    note(f"pulling {model.name}{size}")
    with Progress() as progress:
        try:
            return hub.pull(name, progress, notice=progress.note)
        except KeyboardInterrupt:
            progress.note(f"stopped; what has come is kept: edgellm pull {name} goes on, edgellm rm {name} deletes it")
            raise


def load(path: Path, runtime: RuntimeConfig, adapters: Mapping[Path, float] | None = None) -> Model:
    """Load a model; kernels that are missing are compiled under a progress line, and what its file lacks is told.

    adapters:  what it is run with, scales by path; they are called as they were typed.
    """
    import edgellm

    with Progress("compiling kernels") as progress:
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
