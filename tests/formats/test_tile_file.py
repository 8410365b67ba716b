"""A file of tiles is what it must be to the last byte, or it is not used."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgellm.files import tile_files
from edgellm.formats import tile_file
from edgellm.formats.tensor import Tensor
from edgellm.formats.tile_file import Tiles
from edgellm.quants import FORMATS
from edgellm.quants.tiles import to_tiles

needs_owners = pytest.mark.skipif(os.name != "posix", reason="Windows has no such permissions")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tile_file, "PIECE_BYTES", 5000)  # several pieces for a tensor
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model of mine.gguf"
    path.write_bytes(b"a model")
    return path


@pytest.fixture
def tensors() -> list[Tensor]:
    rng = np.random.default_rng(5)
    found = []
    for name, n_rows, n_cols in (("Q4_K", 40, 512), ("Q8_0", 16, 64), ("Q6_K", 33, 256)):
        fmt = FORMATS[name]
        raw = rng.integers(0, 256, (n_rows, fmt.row_bytes(n_cols)), np.uint8)
        found.append(Tensor(f"weights.{name}", (n_rows, n_cols), fmt, raw))
    return found


@pytest.fixture
def tiles(tensors: list[Tensor], model: Path) -> Tiles:
    return Tiles(tensors, [model])


def check(found: dict[Tensor, np.ndarray] | None, tensors: list[Tensor]) -> None:
    assert found is not None and list(found) == tensors
    for tensor, laid in found.items():
        np.testing.assert_array_equal(laid, to_tiles(tensor.format, tensor.raw))
        assert laid.ctypes.data % 64 == 0


def test_it_is_read_as_it_was_written(tiles: Tiles, tensors: list[Tensor], home: Path) -> None:
    assert tiles.read(2) is None
    heard: list[tuple[int, int, str]] = []
    tiles.write(2, lambda *said: heard.append(said))
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert heard[-1] == (tiles.n_bytes, tiles.n_bytes, "laying out weights")
    for _ in range(3):
        check(tiles.read(2), tensors)
    (path,) = home.glob("tiles/*.tiles")
    assert path.stat().st_size == tiles.n_bytes == tile_files.bytes_of(tiles.model[0])
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


def test_tiles_in_memory_are_the_same(tiles: Tiles, tensors: list[Tensor], home: Path) -> None:
    check(tiles.in_memory(3), tensors)
    assert not (home / "tiles").exists()


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def changed_at(place: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content, status = bytearray(path.read_bytes()), path.stat()
        content[int(place * (len(content) - 1))] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had been

    return change


def other_version(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"edgellm tiles 1", b"edgellm tiles 0", 1))


@pytest.mark.parametrize(
    "harm", [cut_short, longer, empty, changed_at(0), changed_at(0.001), changed_at(0.6), changed_at(1), other_version],
    ids=lambda harm: harm.__qualname__,
)  # fmt: skip
@pytest.mark.parametrize("was_read", [False, True])
def test_what_is_not_as_written_is_not_used(tiles: Tiles, tensors: list[Tensor], harm, was_read: bool) -> None:
    tiles.write(2)
    if was_read:
        check(tiles.read(2), tensors)
    harm(tiles.path)
    assert tiles.read(2) is None
    assert tiles.read(2) is None
    tiles.write(2)
    check(tiles.read(2), tensors)


def test_tiles_of_another_model_or_other_tensors_are_not_used(tiles: Tiles, tensors: list[Tensor], model: Path) -> None:
    tiles.write(2)
    check(tiles.read(2), tensors)
    assert Tiles(tensors[::-1], [model]).read(2) is None
    assert Tiles(tensors[:2], [model]).read(2) is None
    first = tensors[0]
    renamed = Tensor("weights.other", first.shape, first.format, first.raw)
    assert Tiles([renamed, *tensors[1:]], [model]).read(2) is None
    other = Tensor(first.name, first.shape, first.format, first.raw ^ 1)
    assert Tiles([other, *tensors[1:]], [model]).read(2) is None
    model.write_bytes(b"b model")  # as long as it was
    assert tiles.read(2) is None


def test_a_model_that_is_gone_has_none(tiles: Tiles, model: Path) -> None:
    tiles.write(2)
    model.unlink()
    assert tiles.read(2) is None


def test_it_may_vanish_while_it_is_mapped(tiles: Tiles, tensors: list[Tensor]) -> None:
    tiles.write(2)
    found = tiles.read(2)
    if os.name == "posix":  # Windows keeps what is open
        tile_files.remove(tiles.model[0])
        assert tiles.read(2) is None
    check(found, tensors)


@needs_owners
def test_what_others_can_write_is_not_used(tiles: Tiles, tensors: list[Tensor]) -> None:
    tiles.write(2)
    check(tiles.read(2), tensors)
    tiles.path.chmod(0o666)
    assert tiles.read(2) is None
    tiles.path.chmod(0o600)
    tiles.path.parent.chmod(0o777)
    assert tiles.read(2) is None
    tiles.write(2)  # into a new folder; the other one is put aside
    check(tiles.read(2), tensors)


@needs_owners
def test_a_link_or_pipe_in_its_place(tiles: Tiles, tensors: list[Tensor], tmp_path: Path) -> None:
    tiles.write(2)
    real = tmp_path / "elsewhere"
    tiles.path.rename(real)
    tiles.path.symlink_to(real)
    assert tiles.read(2) is None
    tiles.path.unlink()
    os.mkfifo(tiles.path)
    assert tiles.read(2) is None
    tiles.write(2)
    check(tiles.read(2), tensors)
    assert real.exists()


def test_a_full_disk_leaves_nothing(tiles: Tiles, tensors: list[Tensor], home: Path, monkeypatch) -> None:
    class Full:
        def __init__(self, file) -> None:
            self.file, self.left = file, 9000

        def write(self, content) -> int:
            self.left -= memoryview(content).nbytes
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

        def __getattr__(self, name: str):
            return getattr(self.file, name)

    from contextlib import contextmanager

    plain = tile_file.unfinished

    @contextmanager
    def full(*args, **kwargs):
        with plain(*args, **kwargs) as file:
            yield Full(file)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(tile_file, "unfinished", full)
        tiles.write(2)
    assert list((home / "tiles").iterdir()) == []
    tiles.write(2)
    check(tiles.read(2), tensors)


def test_several_write_at_once(tensors: list[Tensor], model: Path, home: Path) -> None:
    found: list[dict[Tensor, np.ndarray] | None] = []

    def write() -> None:
        own = Tiles(tensors, [model])
        own.write(2)
        found.append(own.read(1))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        check(one, tensors)
    assert len(list(home.glob("tiles/*.tiles"))) == 1 and not list(home.glob("tiles/*unfinished*"))


def test_they_go_with_their_model(tiles: Tiles, tensors: list[Tensor], tmp_path: Path, home: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"x")
    theirs = Tiles(tensors, [other])
    for one in (tiles, theirs):
        one.write(2)
        check(one.read(2), tensors)
    tile_files.clean_up()
    assert len(list(home.glob("tiles/*.tiles"))) == 2
    other.unlink()
    tile_files.clean_up()
    assert [path.name for path in home.glob("tiles/*.tiles")] == [tiles.path.name]
    assert tile_files.remove(tiles.model[0]) == tiles.n_bytes
    assert list((home / "tiles").iterdir()) == [] and tile_files.remove(tiles.model[0]) == 0


def test_what_nobody_has_used_for_a_season_goes(tiles: Tiles, tensors: list[Tensor], home: Path) -> None:
    tiles.write(2)
    check(tiles.read(2), tensors)
    (note,) = home.glob("tiles/*.json")
    os.utime(note, (0, 0))
    check(tiles.read(2), tensors)  # that is a use
    tile_files.clean_up()
    assert tiles.path.exists()
    os.utime(note, (0, 0))
    tile_files.clean_up()
    assert not tiles.path.exists() and not note.exists()
