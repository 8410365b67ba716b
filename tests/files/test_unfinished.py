"""Files that are being written: no killed process leaves one for ever, and none of a living process is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from edgellm.errors import UsageError
from edgellm.files import atomic_write, check_room, refuse_target
from edgellm.files.unfinished import __file__ as UNFINISHED_FILE
from edgellm.files.unfinished import clear_unfinished
from edgellm.formats.gguf import GGUFWriter
from edgellm.quants import FORMATS

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and links are others there")
ROOT_ONLY = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from pathlib import Path
from edgellm.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    file.write(sys.stdin.buffer.read())
"""


def start(target: Path) -> subprocess.Popen[bytes]:
    """A process that is in the middle of writing the target, and goes on when it is told the rest."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(target: Path, content: bytes = b"whole") -> None:
    with atomic_write(target) as file:
        file.write(content)


@POSIX
def test_the_next_run_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    for _ in range(2):
        process = start(target)
        process.kill()
        process.communicate()
    (left,) = names(tmp_path)  # the second has cleared after the first
    assert left.startswith(".out.gguf.")
    write(target)
    assert names(tmp_path) == ["out.gguf"]


@POSIX
@pytest.mark.parametrize("other", ["out.gguf", "other.gguf"])
def test_two_writers_at_once(other: str, tmp_path: Path) -> None:
    """Whoever comes second leaves the first alone; the last to finish has the name."""
    first = start(tmp_path / "out.gguf")
    second = start(tmp_path / other)
    for _ in range(3):
        clear_unfinished(tmp_path)
    assert len(names(tmp_path)) == 2
    second.communicate(b" second")
    assert (tmp_path / other).read_bytes() == b"half second"
    first.communicate(b" first")
    assert (tmp_path / "out.gguf").read_bytes() == b"half first"
    assert names(tmp_path) == sorted({"out.gguf", other})
    assert (first.returncode, second.returncode) == (0, 0)


@POSIX
def test_a_writer_that_is_stopped_is_alive(tmp_path: Path) -> None:
    process = start(tmp_path / "out.gguf")
    process.send_signal(signal.SIGSTOP)
    write(tmp_path / "out.gguf")
    assert len(names(tmp_path)) == 2
    process.send_signal(signal.SIGCONT)
    process.communicate(b" a file")
    assert (tmp_path / "out.gguf").read_bytes() == b"half a file"


@POSIX
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that was not closed in time
def test_interrupted_at_any_line(tmp_path: Path) -> None:
    """Python answers a signal between two lines, whichever they are; here by an exception at each of them in turn."""
    target = tmp_path / "out.gguf"
    target.write_bytes(b"old")
    n = 0
    while is_interrupted_at(n, target):
        assert names(tmp_path) == ["out.gguf"], n
        n += 1
    assert target.read_bytes() == b"new"
    assert n > 15


def is_interrupted_at(n: int, target: Path) -> bool:
    """Write the target, with an exception at the nth line of the module under test; False if there are fewer lines."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal n
        if frame.f_code.co_filename != UNFINISHED_FILE:
            return None
        n -= event == "line"
        if n < 0:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        write(target, b"new")
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(usual)
    return False


@POSIX
def test_many_writers_and_many_who_clear(tmp_path: Path) -> None:
    """Between the making of a file and its lock is a moment in which it looks abandoned."""
    code = """
import sys, time
from pathlib import Path
from edgellm.files import atomic_write
from edgellm.files.unfinished import clear_unfinished
folder, me = Path(sys.argv[1]), sys.argv[2]
end = time.monotonic() + 1.5
n = 0
while time.monotonic() < end:
    n += 1
    with atomic_write(folder / me) as file:
        file.write(f"{me} {n}".encode())
        clear_unfinished(folder)
    assert (folder / me).read_text() == f"{me} {n}"
print(n)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)], cwd=ROOT, stdout=subprocess.PIPE)
        for i in range(4)
    ]
    assert all(int(process.communicate(timeout=60)[0]) > 5 for process in processes)
    assert names(tmp_path) == ["0", "1", "2", "3"]


@POSIX
def test_what_is_not_of_this_kind_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    kept = [".out.gguf.0123456789abcdef", ".out.gguf.unfinished", "out.gguf.0123456789abcdef.unfinished", ".hidden"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".a.0123456789abcdef.unfinished").mkdir()
    (tmp_path / ".b.0123456789abcdef.unfinished").symlink_to(tmp_path / ".hidden")
    os.mkfifo(tmp_path / ".c.0123456789abcdef.unfinished")
    before = names(tmp_path)
    write(target)
    assert names(tmp_path) == sorted([*before, "out.gguf"])


@POSIX
@ROOT_ONLY
def test_what_another_user_left_stays(tmp_path: Path) -> None:
    left = tmp_path / ".a.0123456789abcdef.unfinished"
    left.touch()
    os.chown(left, 54321, 54321)
    clear_unfinished(tmp_path)
    assert left.exists()
    os.chown(left, 0, 0)
    clear_unfinished(tmp_path)
    assert not left.exists()


@POSIX
def test_room_is_counted_without_what_nobody_needs(tmp_path: Path) -> None:
    process = start(tmp_path / "out.gguf")
    process.kill()
    process.communicate()
    check_room(tmp_path / "new" / "out.gguf", 1)
    assert names(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    clear_unfinished(tmp_path / "missing")


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "日" * 85, "a\nb", "-"])
def test_any_name_that_a_file_can_have(name: str, tmp_path: Path) -> None:
    if sys.platform == "win32" and "\n" in name:
        pytest.skip("no name of a file")
    for content in (b"one", b"two"):
        write(tmp_path / name, content)
        assert names(tmp_path) == [name]
        assert (tmp_path / name).read_bytes() == content


# --- what atomic_write makes of a target --------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("bits", [0o600, 0o640, 0o444, 0o666, 0o755, 0o4711])
def test_permissions_of_what_is_replaced_are_kept(bits: int, tmp_path: Path) -> None:
    write(tmp_path / "out.gguf")
    (tmp_path / "out.gguf").chmod(bits)
    with atomic_write(tmp_path / "out.gguf") as file:
        half = next(path for path in tmp_path.iterdir() if path.name.endswith(".unfinished"))
        assert half.stat().st_mode & 0o777 == bits & 0o777  # while it is written, too
        file.write(b"new")
    assert (tmp_path / "out.gguf").stat().st_mode & 0o7777 == bits & 0o777


@POSIX
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_new_file_has_the_permissions_of_any_new_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "out.gguf")
    finally:
        os.umask(before)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o666 & ~umask


@POSIX
def test_links_of_our_own_are_followed(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "a.gguf").symlink_to("b.gguf")
    (tmp_path / "b.gguf").symlink_to(Path("large", "..", "large", "c.gguf"))
    write(tmp_path / "a.gguf")
    assert names(tmp_path / "large") == ["c.gguf"]
    assert (tmp_path / "a.gguf").is_symlink() and (tmp_path / "b.gguf").is_symlink()


@POSIX
def test_links_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as raised:
        write(tmp_path / "a")
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(UsageError, match="symbolic links"):
        refuse_target(tmp_path / "a")


@POSIX
@ROOT_ONLY
@pytest.mark.parametrize("hops", [1, 2])
def test_a_link_of_another_user_is_refused(hops: int, tmp_path: Path) -> None:
    precious, planted = tmp_path / "precious", tmp_path / "planted"
    precious.write_bytes(b"precious")
    planted.symlink_to(precious)
    os.lchown(planted, 54321, 54321)
    target = planted
    if hops == 2:
        target = tmp_path / "mine"
        target.symlink_to(planted)
    with pytest.raises(PermissionError, match="a link that another user made") as raised:
        write(target)
    assert raised.value.filename == str(target)
    with pytest.raises(UsageError, match=r"cannot be written: it is a link that another user made; choose another"):
        refuse_target(target)
    assert precious.read_bytes() == b"precious"
    assert names(tmp_path) == sorted({"precious", "planted", target.name})


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(f"sync {os.fstat(handle).st_size}"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    write(tmp_path / "out.gguf", b"12345")
    assert events == ["sync 5", "replace"]


def test_a_lock_that_a_file_system_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are written all the same; what is left behind stays, for nobody can tell whose it is."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    left = tmp_path / ".a.0123456789abcdef.unfinished"
    left.touch()
    write(tmp_path / "out.gguf")
    assert names(tmp_path) == [left.name, "out.gguf"]


@POSIX
def test_a_killed_command_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    """From the outside: `edgellm quantize`, killed while it writes, then run again."""
    source = tmp_path / "in.gguf"
    weights = np.random.default_rng(0).standard_normal((512, 256), np.float32)
    matrices = [(f"blk.{i}.ffn_up.weight", weights.shape, FORMATS["F32"], weights) for i in range(4)]
    GGUFWriter(source, {"general.architecture": "llama"}, matrices).write()
    target = tmp_path / "out" / "out.gguf"
    target.parent.mkdir()
    slow = (
        "import sys, time\n"
        "from edgellm.convert import rows\n"
        "usual = rows.Encoder.encode\n"
        "rows.Encoder.encode = lambda *given: (time.sleep(0.3), usual(*given))[1]\n"
        "from edgellm.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = ["quantize", str(source), str(target), "Q8_0"]
    process = subprocess.Popen([sys.executable, "-c", slow, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not names(target.parent) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert [name.startswith(".out.gguf.") for name in names(target.parent)] == [True]
    subprocess.run([sys.executable, "-m", "edgellm", *command], cwd=ROOT, check=True)
    assert names(target.parent) == ["out.gguf"]
