"""Files are written whole or not at all: crashes, full disks, and targets that cannot be."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgellm import files
from edgellm.convert import writer
from edgellm.convert.parts import Part
from edgellm.convert.rows import Encoder
from edgellm.convert.writer import write_model
from edgellm.errors import FileProblem, FormatError, UsageError
from edgellm.files import atomic_write, refuse_target
from edgellm.formats.gguf import GGUFFile
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS

METADATA = {"general.architecture": "llama"}
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="links and devices are others there")


def weights(n_rows: int = 96, n_cols: int = 256) -> list[Part]:
    rng = np.random.default_rng(0)
    shapes = {"a.weight": (n_rows, n_cols), "b.weight": (7, n_cols), "c.bias": (n_cols,)}
    return [Part(name, Tensor.of(name, rng.normal(size=shape).astype(np.float32))) for name, shape in shapes.items()]


def write(target: Path, parts: list[Part], type_name: str = "Q8_0", **options: Any) -> None:
    formats = {part.name: FORMATS["F32" if part.name == "c.bias" else type_name] for part in parts}
    write_model(target, METADATA, parts, formats, **options)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A target that is there already, alone in its folder."""
    path = tmp_path / "folder" / "out.gguf"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def stayed(old: Path) -> bool:
    return [entry.name for entry in old.parent.iterdir()] == [old.name] and old.read_bytes() == b"old"


@pytest.mark.parametrize("n_threads", [1, 5])
def test_pieces_and_threads_change_nothing(n_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = weights()
    monkeypatch.setattr(writer, "PIECE_WEIGHTS", 1000)
    write(tmp_path / "out.gguf", parts, n_threads=n_threads)
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        for part in parts:
            block_format = FORMATS["F32" if part.name == "c.bias" else "Q8_0"]
            expected = block_format.quantize(part.tensor.dequantize())
            np.testing.assert_array_equal(
                file.tensors[part.name].raw, expected.reshape(file.tensors[part.name].raw.shape)
            )


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    parts = weights()
    write(tmp_path / "out.gguf", parts, progress=lambda *now: told.append(now))
    total = sum(part.tensor.n_bytes for part in parts)
    assert told[-1] == (total, total, "writing out.gguf")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


@pytest.mark.parametrize("crash", [RuntimeError("worker"), MemoryError(), KeyboardInterrupt()])
def test_a_crash_in_a_worker(crash: BaseException, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Encoder.encode

    def encode(self: Encoder, part: Part, *args: Any) -> Any:
        if part.name == "b.weight":
            raise crash
        return usual(self, part, *args)

    monkeypatch.setattr(Encoder, "encode", encode)
    with pytest.raises(type(crash)):
        write(old, weights())
    assert stayed(old)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["F32", "Q4_K"])
def test_weights_that_are_no_numbers(bad: float, type_name: str, old: Path) -> None:
    parts = weights()
    broken = parts[1].tensor.dequantize()
    broken[3, 4] = bad
    parts[1] = Part("b.weight", Tensor.of("theirs", broken))
    with pytest.raises(FormatError, match=r"tensor 'theirs'.*(NaN|infinity)"):
        write(old, parts, type_name)
    assert stayed(old)


@POSIX
def test_a_disk_that_becomes_full(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the file's size fails in the same place, and needs no disk of its own."""
    import resource

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it would be cut off as well
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, usual[1]))
    try:
        with pytest.raises(FileProblem) as raised:
            write(old, weights())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert str(raised.value) == f"{old} cannot be written: File too large"
    assert stayed(old)


def test_a_disk_with_too_little_room(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(FileProblem, match=r"out\.gguf needs \d+\.\d kB, and the disk of .*folder has 1\.0 kB free"):
        write(old, weights())
    assert stayed(old)


@pytest.mark.parametrize("n_threads", [0, -1, 5000])
def test_numbers_of_threads_that_cannot_be(n_threads: int, old: Path) -> None:
    with pytest.raises(UsageError, match="n_threads"):
        write(old, weights(), n_threads=n_threads)
    assert stayed(old)


# --- targets ------------------------------------------------------------------------------------------------


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "out.gguf", weights())
    assert [entry.name for entry in (tmp_path / "a" / "b").iterdir()] == ["out.gguf"]


@POSIX
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_a_link(dangling: bool, tmp_path: Path) -> None:
    """A person who links to a larger disk wants the file there."""
    link, real = tmp_path / "here.gguf", tmp_path / "large" / "there.gguf"
    real.parent.mkdir()
    if not dangling:
        real.write_bytes(b"old")
    link.symlink_to(real)
    write(link, weights())
    assert link.is_symlink()
    assert real.read_bytes().startswith(b"GGUF")
    assert [entry.name for entry in real.parent.iterdir()] == ["there.gguf"]


@POSIX
def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "a device"), (Path(os.devnull), "a device")):
        with pytest.raises(UsageError, match=f"is {kind}; expected the name of a file"):
            refuse_target(target)
        with pytest.raises(FileProblem, match="is a folder or device"):
            write(target, weights())
    assert not Path(os.devnull).is_file()


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"out\.gguf cannot be: .*file is a file"):
        refuse_target(tmp_path / "file" / "out.gguf")
    with pytest.raises(FileProblem, match="cannot be written"):
        write(tmp_path / "file" / "out.gguf", weights())


@POSIX
def test_what_is_being_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(b"GGUF")
    os.link(source, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for target in (
        source,
        Path("in.gguf"),
        tmp_path / ".." / tmp_path.name / "in.gguf",
        Path("hard.gguf"),
        Path("soft.gguf"),
    ):
        with pytest.raises(UsageError, match="is a file that is being read"):
            refuse_target(target, [tmp_path / "missing", source])
    refuse_target(Path("other.gguf"), [source])


@POSIX
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(FileProblem, match=r"locked/out\.gguf cannot be written: Permission denied"):
        write(folder / "out.gguf", weights())


def test_an_error_names_the_target_and_not_the_temporary(tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(OSError, match="No space") as raised, atomic_write(target):
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(target)
    assert not list(tmp_path.iterdir())


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    write(tmp_path / f"{'x' * 250}.gguf"[-255:], weights())
    assert len(list(tmp_path.iterdir())) == 1
