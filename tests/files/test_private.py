"""Private files: what anybody else could have written is as good as absent, and never waited for."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.files import notice, private

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders of a user are private there")
ROOT_ONLY = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
SOMEBODY = 54321


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A private file, in a folder and one above it that were made for it."""
    path = tmp_path / "home" / "kernels" / "avx" / "add.o"
    private.keep(path, b"code")
    assert private.read(path) == b"code"
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "edgellm"]


@pytest.mark.usefixtures("umask")
def test_with_an_umask_that_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "home" / "kernels" / "avx" / "add.o"
    private.keep(path, b"code")
    assert private.read(path) == b"code"
    assert [mode(place) for place in (path, *path.parents[:3])] == [0o600, 0o700, 0o700, 0o755]
    assert [entry.name for entry in path.parent.iterdir()] == ["add.o"]


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[3] / "made through the link")


def second_name(path: Path) -> None:
    os.link(path, path.with_name("second"))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").touch()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            bound.bind(f"/proc/self/fd/{here}/{path.name}" if os.path.exists("/proc/self/fd") else str(path))
        finally:
            os.close(here)


BAD_FILES: list[Callable[[Path], object]] = [
    link,
    dangling,
    second_name,
    folder,
    pipe,
    unix_socket,
    lambda path: path.chmod(0o620),
    lambda path: path.chmod(0o602),
    lambda path: path.chmod(0o666),
    Path.unlink,
]


@pytest.mark.parametrize("spoil", BAD_FILES)
def test_what_is_not_a_private_file_is_not_read_and_replaced(spoil: Callable[[Path], object], file: Path) -> None:
    spoil(file)
    assert private.read(file) is None
    private.keep(file, b"new")
    assert private.read(file) == b"new"
    assert mode(file) == 0o600
    assert not (file.parents[3] / "made through the link").exists()


@ROOT_ONLY
def test_devices_and_files_of_others(file: Path) -> None:
    os.chown(file, SOMEBODY, SOMEBODY)
    assert private.read(file) is None
    file.unlink()
    os.mknod(file, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # zeros without an end
    assert private.read(file) is None
    private.keep(file, b"new")
    assert private.read(file) == b"new"


def test_what_a_link_or_second_name_leads_to_stays_as_it_was(file: Path) -> None:
    precious = file.parents[2] / "precious"
    precious.write_bytes(b"precious")
    for make in (os.symlink, os.link):
        file.unlink()
        make(precious, file)
        private.keep(file, b"new")
        assert (precious.read_bytes(), private.read(file)) == (b"precious", b"new")


def linked_folder(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "spoil",
    [linked_folder, *(lambda path, bits=bits: path.chmod(bits) for bits in (0o777, 0o770, 0o702, 0o1777))],
    ids=["link", "all", "group", "others", "sticky"],
)
def test_a_folder_that_others_could_write_is_not_believed(spoil: Callable[[Path], object], file: Path) -> None:
    """Nothing in it can be: whatever there is looks like ours may have been moved there."""
    spoil(file.parent)
    assert private.read(file) is None
    private.keep(file.with_name("rope.o"), b"new")
    assert private.read(file) is None
    assert private.read(file.with_name("rope.o")) == b"new"
    assert mode(file.parent) == 0o700


@pytest.mark.parametrize("place", [1, 2], ids=["kernels", "home"])
@pytest.mark.parametrize("bits", [0o777, 0o757])
def test_a_folder_above_that_others_can_write(
    bits: int, place: int, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They could put another folder in the place of ours."""
    above = file.parents[place]
    above.chmod(bits)
    assert private.read(file) is None
    private.keep(file, b"new")
    (line,) = said(caplog)
    assert f"others can write in {above} (chmod go-w ends that)" in line
    above.chmod(0o755)
    assert private.read(file) == b"code"
    above.chmod(0o1777)  # like /tmp: they can add, not move
    assert private.read(file) == b"code"


@ROOT_ONLY
@pytest.mark.parametrize("place", [0, 1, 2, 3], ids=["generation", "kernels", "home", "above"])
def test_a_folder_of_another_user(place: int, file: Path) -> None:
    os.chown(file.parents[place], SOMEBODY, SOMEBODY)
    assert private.read(file) is None
    private.keep(file, b"new")
    assert private.read(file) == (b"new" if place == 0 else None)


def test_a_link_above_is_followed_if_it_is_ours(file: Path, tmp_path: Path) -> None:
    """A person who links the cache folder to a larger disk wants it there."""
    (tmp_path / "large").mkdir()
    file.parents[2].rename(tmp_path / "large" / "home")
    (tmp_path / "home").symlink_to(Path("large", "..", "large", "home"))
    assert private.read(file) == b"code"
    (tmp_path / "large").chmod(0o777)  # what is on the way counts, not what the name shows
    assert private.read(file) is None
    (tmp_path / "large").chmod(0o755)
    if os.getuid() == 0:
        os.lchown(tmp_path / "home", SOMEBODY, SOMEBODY)
        assert private.read(file) is None


def test_links_that_lead_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert private.read(tmp_path / "a" / "kernels" / "add.o") is None


@pytest.mark.parametrize("members", [[], ["mallory"]])
@pytest.mark.parametrize("gid", [77, 78])
def test_a_group_with_nobody_else_in_it(
    gid: int, members: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each user has a group, umask 002 is usual: then a cache folder is open to a group of one."""
    import grp
    import pwd

    user = SimpleNamespace(pw_uid=1000, pw_gid=77, pw_name="alice")
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name="alice", gr_mem=members))
    real = os.lstat(file.parents[2]).st_gid
    user.pw_gid = real + gid - 77
    file.parents[2].chmod(0o775)
    assert (private.read(file) == b"code") == (gid == 77 and not members)
    file.parents[2].chmod(0o777)
    assert private.read(file) is None


def test_a_file_that_is_replaced_while_it_is_opened(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened is read, although it has no name any more."""
    private.keep(file, b"before")
    opens = os.open

    def opened(*arguments: Any) -> int:
        handle = opens(*arguments)
        if arguments[0] == file:
            monkeypatch.undo()
            private.keep(file, b"after")
        return handle

    monkeypatch.setattr(os, "open", opened)
    assert private.read(file) == b"before"
    assert private.read(file) == b"after"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs a look at what is open")
def test_a_file_that_is_swapped_while_it_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged is what is open, not what has the name by then."""
    usual = os.fstat

    def swap(handle: int) -> os.stat_result:
        file.unlink(missing_ok=True)
        file.write_bytes(b"planted")
        return usual(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", swap)
        found = private.read(file)
    assert found in (b"code", None)  # its only name is gone, or it is what was opened
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        private.read(file)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("spoil", [link, dangling, folder, pipe])
def test_a_file_that_a_library_will_open_by_its_name(spoil: Callable[[Path], object], file: Path) -> None:
    assert private.is_ours_or_nothing(file)
    assert private.is_ours_or_nothing(file.with_name("nothing"))
    spoil(file)
    assert not private.is_ours_or_nothing(file)


# --- what cannot be kept ------------------------------------------------------------------------------------


def test_it_is_said_once_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "kernels" / "avx"
    for _ in range(2):
        private.prepare(folder)
        private.keep(folder / "add.o", b"code")
    (line,) = said(caplog)
    assert str(folder) in line and "Not a directory" in line and "EDGELLM_HOME" in line and "\n" not in line


def test_a_full_disk_is_noticed_before_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut off as well
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    try:
        private.prepare(tmp_path / "kernels" / "avx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert "File too large" in said(caplog)[0]
    assert list((tmp_path / "kernels" / "avx").iterdir()) == []


def test_no_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the folder itself that room is tried."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: pytest.fail("not needed"))
    private.prepare(tmp_path / "kernels")


def test_without_logging_set_up_it_is_a_line_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("edgellm"), "propagate", False)  # pytest's own handlers stand further up
    notice.say_once("100 % of a line")
    notice.say_once("100 % of a line")
    assert capsys.readouterr().err == "100 % of a line\n"


def test_errors_while_reading_are_nothing_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        found = private.read(file)
    assert found is None
