from __future__ import annotations

from pathlib import Path

import pytest

from edgellm import hub
from edgellm.errors import FileProblem, UsageError
from edgellm.files import tile_files
from edgellm.hub.catalog import CheckpointSource, HubSource, PyPISource, catalog, parse_catalog


def put(home: Path, name: str, data: bytes = b"GGUF") -> Path:
    path = home / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_the_catalogue_is_sound() -> None:
    models = catalog()
    assert list(models)[:2] == ["smollm2-135m", "gemma3-270m"]
    names = [name for model in models.values() for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.lower() for name in names)
    for model in models.values():
        if isinstance(model.sources[0], CheckpointSource):
            assert all(len(sha256) == 64 for _, sha256 in model.sources[0].sha256) and model.path.endswith(".gguf")
        elif model.path:
            assert model.path.endswith(".gguf") and "/" not in model.path
            assert len(model.sha256) == 64 and int(model.sha256, 16)
            assert model.size > 0
        else:  # the hub tells the file, its size and its digest
            (source,) = model.sources
            assert isinstance(source, HubSource) and source.type and model.about
        assert model.title and model.description and model.license
        assert model.license_url.startswith("https://")
        assert isinstance(model.sources[0], PyPISource | CheckpointSource | HubSource)


def test_an_unknown_source_kind_is_refused() -> None:
    text = '[m]\ntitle="t"\ndescription="d"\nlicense="l"\nlicense_url="u"\nfile="f"\nsize=1\nsha256=""\n'
    with pytest.raises(ValueError, match="unknown source kind 'ftp'"):
        parse_catalog(text + '[[m.sources]]\nkind="ftp"\n')


def test_resolve_prefers_an_existing_path(own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = put(own_home, "mine.gguf")
    assert hub.resolve("mine.gguf") == installed
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "mine.gguf"):
        Path(name).write_bytes(b"GGUF")
        assert hub.resolve(name) == Path(name)
    assert hub.resolve(tmp_path) == tmp_path  # whoever opens it says that it is a folder


def test_what_cannot_be_resolved(own_home: Path) -> None:
    with pytest.raises(FileProblem, match="is not installed; get it with: edgellm pull smollm2-135m"):
        hub.resolve("smollm2")
    with pytest.raises(FileProblem, match=r"hf:a/b/c.gguf is not installed; get it with: edgellm pull hf:a/b/c.gguf"):
        hub.resolve("hf:a/b/c.gguf")
    with pytest.raises(FileProblem, match=r"folder/model.gguf: no such file"):
        hub.resolve("folder/model.gguf")
    with pytest.raises(UsageError, match="no model is named 'gpt-9'"):
        hub.resolve("gpt-9")


def test_installed_lists_every_model_once(own_home: Path) -> None:
    put(own_home, "hf/org/repo/sub/x.gguf", b"GGUF22")
    put(own_home, "mine.gguf", b"GGUF333")
    put(own_home, ".partial/tiny/half.gguf")
    put(own_home, "notes.txt")
    found = [(model.name, model.n_bytes, model.license) for model in hub.installed()]
    assert found == [
        ("hf:org/repo/sub/x.gguf", 6, ""),
        ("mine.gguf", 7, ""),
    ]
    for name, _, _ in found:
        assert hub.resolve(name).is_file()


def test_tiles_go_with_their_model(own_home: Path) -> None:
    """Of a model alone: a copy elsewhere keeps its own."""
    path, other = put(own_home, "mine.gguf"), put(own_home, "other.gguf")
    for model in (path, other):
        place = tile_files.path_of(model)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes(1000))
    assert tile_files.path_of(path) != tile_files.path_of(other)
    n_bytes = path.stat().st_size
    assert hub.remove("mine.gguf") == n_bytes + 1000
    assert not tile_files.path_of(path).exists() and tile_files.bytes_of(other) == 1000


def test_remove(own_home: Path) -> None:
    path = put(own_home, "hf/org/repo/x.gguf", b"GGUF22")
    own = put(own_home, "mine.gguf")
    assert hub.remove("hf:org/repo/x.gguf") == 6
    assert not (own_home / "models/hf").exists()
    assert path.parents[3].is_dir()
    hub.remove("mine.gguf")
    assert not own.exists()
    with pytest.raises(UsageError, match=r"'mine\.gguf' is not an installed model; installed: none"):
        hub.remove("mine.gguf")
