"""The kernel store: what it finds it can trust, and what it cannot trust it makes again."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgellm.kernels import store as store_module
from edgellm.kernels.isa import GENERIC, available, choose
from edgellm.kernels.isa.base import host_target
from edgellm.kernels.records import ADD, BATCH
from edgellm.kernels.registry import find
from edgellm.kernels.store import KernelStore

KERNEL = find("add")


def two_plus_three(store: KernelStore) -> float:
    """Run the kernel, to see that what was loaded is it."""
    a, b, out = (np.full(16, number, np.float32) for number in (2, 3, 0))
    batch, record = BATCH.new(), ADD.new()
    batch["n_tokens"] = 1
    record[["batch", "a", "b", "out", "stride", "chunk_tokens"]] = (
        *(array.ctypes.data for array in (batch, a, b, out)),
        16,
        1,
    )
    store.function(KERNEL)(record.ctypes.data, 0, 0)
    return float(out[0])


def load(folder: Path) -> list[str]:
    """Load the kernel from a store in `folder`, see that it works, and return what had to be compiled."""
    compiled: list[str] = []
    store = KernelStore(choose(), folder)
    store.load([KERNEL], lambda done, total, name: compiled.append(name))
    assert two_plus_three(store) == 5
    return compiled


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The file of a compiled kernel in a store at tmp_path."""
    assert load(tmp_path) == ["add", ""]
    (file,) = tmp_path.rglob("*.o")
    return file


def test_a_second_start_compiles_nothing(stored: Path, tmp_path: Path) -> None:
    assert load(tmp_path) == []


def test_a_kernel_is_loaded_once(tmp_path: Path) -> None:
    store = KernelStore(choose(), tmp_path)
    store.load([KERNEL, KERNEL])
    address = store.address(KERNEL)
    store.load([KERNEL])
    assert store.address(KERNEL) == address


@pytest.mark.parametrize(
    "damage",
    [
        lambda code: b"",
        lambda code: code[:16],
        lambda code: code[:32],
        lambda code: code[:-1],
        lambda code: code + b"\0",
        lambda code: code[:100] + bytes([code[100] ^ 1]) + code[101:],
        lambda code: bytes([code[0] ^ 128]) + code[1:],
        lambda code: np.random.default_rng(1).bytes(5000),
    ],
    ids=["empty", "half a digest", "digest alone", "truncated", "longer", "flipped bit", "flipped digest", "garbage"],
)
def test_a_damaged_object_is_made_again(stored: Path, tmp_path: Path, damage) -> None:
    stored.write_bytes(damage(stored.read_bytes()))
    assert load(tmp_path) == ["add", ""]
    assert load(tmp_path) == []


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def second_name(path: Path) -> None:
    os.link(path, path.with_suffix(".second"))


def another_kernel(path: Path) -> None:
    """Its digest is right: only the name is not."""
    KernelStore(choose(), path.parents[1]).load([find("sum_squares")])
    path.with_name("sum_squares.o").replace(path)


def another_generation(path: Path) -> None:
    """A sound object of the same kernel, from another folder of the store."""
    (store := KernelStore(GENERIC, path.parents[1])).load([KERNEL])
    (store.folder / path.name).replace(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes and links in folders")
@pytest.mark.parametrize(
    "spoil",
    [
        pipe,
        folder,
        link,
        second_name,
        another_kernel,
        another_generation,
        lambda path: path.chmod(0o666),
        lambda path: path.chmod(0o660),
        lambda path: path.parent.chmod(0o777),
        lambda path: path.parent.chmod(0o770),
    ],
    ids=["pipe", "folder", "link", "second name", "another kernel", "another generation",
         "open to all", "open to a group", "folder open to all", "folder open to a group"],
)  # fmt: skip
def test_what_is_not_ours_alone_is_not_run_but_replaced(spoil: Callable[[Path], object], stored: Path) -> None:
    spoil(stored)
    assert load(stored.parents[1]) == ["add", ""]
    assert load(stored.parents[1]) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_in_a_home_that_all_can_write_nothing_is_kept_or_believed(
    stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    assert load(tmp_path) == ["add", ""]
    assert load(tmp_path) == ["add", ""]
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"others can write in {tmp_path}" in line and "EDGELLM_HOME" in line


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_an_umask_that_hides_nothing(tmp_path: Path) -> None:
    code = f"import os; os.umask(0)\n{LOAD}"
    assert python(code, tmp_path / "home").communicate(timeout=120)[0] == "True\n"
    kernels = tmp_path / "home" / "kernels"
    (generation,) = kernels.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (kernels, generation)] == [0o700] * 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in generation.iterdir()} == {0o600}
    assert python(code, tmp_path / "home").communicate(timeout=60)[0] == "False\n"


@pytest.mark.skipif(sys.platform == "win32", reason="files in use are removed by nobody there")
def test_a_start_clears_what_a_killed_one_left(stored: Path) -> None:
    left = stored.with_name(".rope.o.0123456789abcdef.unfinished")
    left.touch()
    assert load(stored.parents[1]) == []
    assert not left.exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files away")
def test_what_another_user_put_there_is_not_run(stored: Path, tmp_path: Path) -> None:
    os.chown(stored, 12345, 12345)
    assert load(tmp_path) == ["add", ""]


def test_other_sources_have_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One more byte in any file that kernels come from, and nothing old is found."""
    before = KernelStore(GENERIC, tmp_path).folder
    assert KernelStore(GENERIC, tmp_path).folder == before
    read = Path.read_bytes
    for changed in ("linear.py", "q4_k.py", "no_such.py", "x86.py"):
        monkeypatch.setattr(Path, "read_bytes", lambda self, name=changed: read(self) + b" " * (self.name == name))
        assert (KernelStore(GENERIC, tmp_path).folder != before) == (changed != "no_such.py")


def test_another_compiler_has_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = {KernelStore(isa, tmp_path).folder for isa in available()}
    monkeypatch.setattr(store_module, "_numba_version", lambda: "0.0")
    folders |= {KernelStore(isa, tmp_path).folder for isa in available()}
    assert len(folders) == 2 * len(available())


def test_another_cpu_has_another_folder_where_code_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is compiled for all CPUs of a family is the same on each."""
    native = replace(GENERIC, target=host_target)
    of_family = replace(GENERIC, target=lambda cpu, features: ("x86-64-v3", ""))
    here = [KernelStore(isa, tmp_path).folder for isa in (native, of_family)]
    monkeypatch.setattr(store_module, "host", lambda: ("another-cpu", {"avx": True}))
    there = [KernelStore(isa, tmp_path).folder for isa in (native, of_family)]
    assert len({*here, *there}) == 3
    assert here[1] == there[1]


def test_another_system_has_another_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the same CPU: a home that a container or two systems of one computer share."""
    folders = {KernelStore(GENERIC, tmp_path).folder}
    for system, architecture in (("win32", "x86_64"), ("darwin", "x86_64"), ("darwin", "arm64")):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(store_module, "architecture", lambda name=architecture: name)
        folders.add(KernelStore(GENERIC, tmp_path).folder)
    assert len(folders) == 4


def test_a_folder_that_cannot_be_written_costs_time_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is said before anything is compiled, and once."""
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    events: list[str] = []
    monkeypatch.setattr(caplog.handler, "emit", lambda record: events.append(record.getMessage()))
    for _ in range(2):
        store = KernelStore(choose(), blocked)
        store.load([KERNEL], lambda done, total, name: events.append(name))
        assert two_plus_three(store) == 5
    line, *compiled = events
    assert compiled == ["add", "", "add", ""]
    assert str(store.folder) in line and "EDGELLM_HOME can name another folder" in line


def python(code: str, home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "EDGELLM_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


LOAD = """
import sys
from edgellm.kernels.isa import choose
from edgellm.kernels.registry import find
from edgellm.kernels.store import KernelStore
KernelStore(choose()).load([find("add"), find("rope"), find("glu")])
print("numba" in sys.modules)
"""


def test_two_processes_fill_the_store_at_once_and_then_numba_is_not_needed(tmp_path: Path) -> None:
    both = [python(LOAD, tmp_path) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == ["True\n", "True\n"]
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["add.o", "glu.silu.o", "rope.o"]
    assert python(LOAD, tmp_path).communicate(timeout=60)[0] == "False\n"


def test_folders_of_other_versions_go_when_nobody_used_them_for_a_season(tmp_path: Path) -> None:
    ages = {"avx2-old": 91, "avx2-recent": 89}
    for name, days in ages.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "add.o").write_bytes(b"x")
        os.utime(tmp_path / name, times=(time.time() - days * 86400,) * 2)
    load(tmp_path)
    assert not (tmp_path / "avx2-old").exists()
    assert (tmp_path / "avx2-recent" / "add.o").exists()


def test_a_folder_in_use_stays(stored: Path, tmp_path: Path) -> None:
    os.utime(stored.parent, times=(time.time() - 91 * 86400,) * 2)
    assert load(tmp_path) == []
    assert time.time() - stored.parent.stat().st_mtime < 60
