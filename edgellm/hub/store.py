"""Names and places: catalogue models lie in the models folder, others under hf/ORG/REPO/, checkpoints beside."""

from __future__ import annotations

from pathlib import Path

from edgellm.errors import UsageError
from edgellm.files import home, models_folder
from edgellm.hub.catalog import HubSource, NamedModel, catalog
from edgellm.hub.names import did_you_mean, meant_on_the_hub, nearest, parse_file_name, shard_names


def find(name: str) -> NamedModel:
    """The model that a catalogue name, one of its aliases, or an hf: reference means.

    Raises UsageError when it is none of these, with the name that may have been meant.
    """
    if name.startswith("hf:"):
        parsed = parse_file_name(name)
        return NamedModel(
            name=name,
            path=name.replace("hf:", "hf/", 1),
            sources=(HubSource(parsed.repo, parsed.file, parsed.revision),),
        )
    wanted = name.lower()
    for model in catalog().values():
        if wanted == model.name or wanted in model.aliases:
            return model
    known = [spelling for model in catalog().values() for spelling in (model.name, *model.aliases)]
    raise UsageError(
        f"no model is named {name!r}{did_you_mean(meant_on_the_hub(name) or nearest(name, known))}; "
        f"known are {', '.join(catalog())}, and hf:ORG/REPO/FILE.gguf for a file of the Hugging Face hub"
    )


def path_of(model: NamedModel) -> Path:
    """Where a model lies once it is installed; of a split model, its first file."""
    return paths_of(model)[0]


def paths_of(model: NamedModel) -> list[Path]:
    """Where all files of a model lie, in order."""
    return files_beside(models_folder() / model.path)


def files_beside(path: Path) -> list[Path]:
    """All files of the model that a file belongs to, in order."""
    return [path.with_name(name) for name in shard_names(path.name)]


def name_of(path: Path) -> str | None:
    """The name under which what lies at a path in the models folder is listed; None for work in progress."""
    for model in catalog().values():
        if path == path_of(model):
            return model.name
    parts = path.relative_to(models_folder()).parts
    if parts[0].startswith("."):
        return None
    return f"hf:{'/'.join(parts[1:])}" if parts[0] == "hf" else "/".join(parts)


def checkpoints_folder() -> Path:
    """Where the checkpoints of the hub lie that were fetched to be converted."""
    return home() / "checkpoints"
