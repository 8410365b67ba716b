"""Names and places: catalogue models lie in the models folder, others under hf/ORG/REPO/, checkpoints beside."""

from __future__ import annotations

from pathlib import Path

from edgellm.errors import UsageError
from edgellm.files import home, models_folder
from edgellm.hub.catalog import HubSource, NamedModel, catalog
from edgellm.hub.names import FORMS, HubName, did_you_mean, nearest, parse_hub_name, shard_names
from edgellm.hub.others import models_of_others
from edgellm.hub.variants import choose, type_of, variants_of


class NameOfSeveral(UsageError):
    """A name that several models begin with; `names` are theirs."""

    def __init__(self, name: str, names: list[str]) -> None:
        super().__init__(f"{name!r:.200} names {len(names)} models: {', '.join(names)}; say which one")
        self.names = names


def find(name: str) -> NamedModel:
    """The model that a catalogue name, one of its aliases, or a name of the hub means; nobody is asked for it.

    Where only the hub can tell which file of a repository it is, its `path` is empty (see `located`).

    Raises UsageError when it is none of these, with the name that may have been meant; NameOfSeveral.
    """
    if hub := parse_hub_name(name):
        return of_hub(hub)
    wanted = name.lower()
    for model in catalog().values():
        if wanted == model.name or wanted in model.aliases:
            return model
    begun = [model.name for model in catalog().values() if wanted and model.name.startswith(f"{wanted}-")]
    if len(begun) > 1:
        raise NameOfSeveral(name, begun)
    known = [spelling for model in catalog().values() for spelling in (model.name, *model.aliases)]
    near = begun[0] if begun else _of_another_program(name) or nearest(name, known)
    what = f"no model is named {name!r}" if name.strip() else "the name of the model is empty"
    raise UsageError(
        f"{what}{did_you_mean(near)}; known are {', '.join(catalog())}, and {FORMS} of the Hugging Face hub"
    )


def of_hub(name: HubName) -> NamedModel:
    """A model of the hub under its own name."""
    source = HubSource(name.repo, name.file, name.revision, name.type)
    return NamedModel(name=str(name), path=_path(source), sources=(source,))


def located(model: NamedModel) -> NamedModel | None:
    """The model with the path that it has here, where the name alone does not tell it; None if it is not here.

    Raises NoSuchVariant for a repository of which several files are here, and none is the one that would be chosen.
    """
    if model.path:
        return model
    source = hub_source(model)
    folder = models_folder() / _folder(source)
    files = [path for path in folder.rglob("*.gguf") if path.is_file()]
    here = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    fitting = [one for one in variants_of(here) if not source.type or one.type == source.type.upper()]
    if not fitting:
        return None
    return with_file(model, choose(named(source), fitting).file)


def with_file(model: NamedModel, file: str) -> NamedModel:
    """The model, now that it is known which file of its repository it is."""
    source = hub_source(model)._replace(file=file)
    return model._replace(path=_path(source), sources=(source,))


def hub_source(model: NamedModel) -> HubSource:
    """The repository that a model comes from, where that is all that is known of it."""
    return next(source for source in model.sources if isinstance(source, HubSource))


def named(source: HubSource) -> HubName:
    return HubName(source.repo, source.revision, source.file, source.type)


def path_of(model: NamedModel) -> Path:
    """Where a model lies once it is installed; of a split model, its first file."""
    return paths_of(model)[0]


def paths_of(model: NamedModel) -> list[Path]:
    """Where all files of a model lie, in order."""
    return files_beside(models_folder() / model.path)


def files_beside(path: Path) -> list[Path]:
    """All files of the model that a file belongs to, in order."""
    return [path.with_name(name) for name in shard_names(path.name)]


def catalogued_at(path: Path) -> NamedModel | None:
    """The model of the catalogue that a file in the models folder is, or will be when it is whole."""
    parts = path.relative_to(models_folder()).parts
    for model in catalog().values():
        if model.path:
            if path == path_of(model):
                return model
        elif parts[0] == "hf":
            source = hub_source(model)
            if "/".join(parts[1:3]) == source.repo and type_of("/".join(parts[3:])) == source.type:
                return model
    return None


def name_of(path: Path) -> str | None:
    """The name under which what lies at a path in the models folder is listed; None for work in progress."""
    if model := catalogued_at(path):
        return model.name
    parts = path.relative_to(models_folder()).parts
    if parts[0].startswith("."):
        return None
    return f"hf:{'/'.join(parts[1:])}" if parts[0] == "hf" else "/".join(parts)


def checkpoints_folder() -> Path:
    """Where the checkpoints of the hub lie that were fetched to be converted."""
    return home() / "checkpoints"


def _folder(source: HubSource) -> str:
    return f"hf/{source.repo}" + (f"@{source.revision}" if source.revision else "")


def _path(source: HubSource) -> str:
    return f"{_folder(source)}/{source.file}" if source.file else ""


def _of_another_program(name: str) -> str | None:
    """How a name that Ollama would know is written here."""
    known = {other.name for other in models_of_others()}
    return next((full for full in (f"ollama:{name}", f"ollama:{name.removesuffix(':latest')}") if full in known), None)
