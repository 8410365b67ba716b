"""How weights lie changes no bit of what a model computes, and tiles are made where they can be."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.engine import layout, runner
from edgellm.errors import MemoryLimitError, UsageError
from edgellm.files import notice, tile_files
from edgellm.formats.tile_file import Tiles
from edgellm.graph import Tuning
from tests.arch import tiny

LAYOUTS = ("file", "tiles", "memory")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiles in a folder of the test; kernels where they always are."""
    monkeypatch.setattr(tile_files, "folder", lambda: tmp_path / "home" / "tiles")
    monkeypatch.setattr(notice, "_said", set())
    return tmp_path / "home"


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def path(request, tmp_path_factory) -> Path:
    return tiny.llama().save(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(3).integers(3, tiny.N_VOCAB, 70).tolist()


def test_all_layouts_give_the_same_bits(own_home: Path, path: Path, ids: list[int]) -> None:
    found = {}
    for name in LAYOUTS:
        with edgellm.load(path, layout=name, n_threads=2) as model:
            assert model.layout == name
            whole = model.logits(ids)
            alone = [model.logits(ids[: i + 1])[-1] for i in (0, 3, 8)]  # a few tokens behind those of the last text
            in_pieces = np.concatenate(list(model.logits_in_pieces(ids)))
            drawn = "".join(model.generate("a text", max_tokens=12, temperature=0))
            found[name] = (whole.tobytes(), [row.tobytes() for row in alone], in_pieces.tobytes(), drawn)
    assert found["file"] == found["tiles"] == found["memory"]


def test_several_texts_at_once_do_too(own_home: Path, path: Path) -> None:
    texts = ["one", "two of them", "three", "4", "five five", "6", "seven", "8 8 8"]
    found = {}
    for name in LAYOUTS:
        with edgellm.load(path, layout=name, n_threads=2) as model:
            answers = [model.generate(text, max_tokens=9, temperature=0) for text in texts]
            found[name] = ["".join(answer) for answer in answers]
    assert found["file"] == found["tiles"] == found["memory"]


def test_weights_that_are_bound_are_read(own_home: Path, path: Path, ids: list[int]) -> None:
    """Bytes as the file would have them; tiles are made of them."""
    found = {}
    for name in LAYOUTS:
        with edgellm.load(path, layout=name, n_threads=2) as model:
            before = model.logits(ids)
            tensor = model._file.tensors["blk.1.ffn_down.weight"]
            other = tensor.format.quantize(-2 * tensor.dequantize())
            with model.bind(
                {"blk.1.ffn_down.weight": other, "output.weight": model._file.tensors["output.weight"].raw}
            ):
                found[name] = model.logits(ids)
            inside = model.run(ids, taps=["logits"], bind={"blk.1.ffn_down.weight": other})["logits"]
            np.testing.assert_array_equal(inside, found[name])
            assert not np.array_equal(before, found[name])
            np.testing.assert_array_equal(model.logits(ids), before)
    np.testing.assert_array_equal(found["file"], found["tiles"])
    np.testing.assert_array_equal(found["file"], found["memory"])


def test_squares_for_importance_are_the_same(own_home: Path, path: Path, ids: list[int]) -> None:
    found = {}
    for name in LAYOUTS:
        with edgellm.load(path, layout=name, n_threads=2) as model, model.square_sums() as sums:
            model.logits(ids)
            found[name] = {weight: total.tobytes() for weight, total in sums.items()}
    assert found["file"] == found["tiles"] == found["memory"] and len(found["file"]) > 10


@pytest.mark.parametrize("name", ["tiles", "memory"])
def test_norms_beside_tiles_are_read_from_copies(own_home: Path, path: Path, ids: list[int], name: str) -> None:
    """Else each would bring back the pages of the file around it, and memory would be doubled."""
    with edgellm.load(path, layout=name, n_threads=2) as model:
        model.logits(ids)
        copies = model._runner.layout.copies
        norms = {name for name in model._file.tensors if name.endswith("norm.weight")}
        assert norms and norms <= {tensor.name for tensor in copies}
        assert not copies.keys() & model._runner.layout.tiles.keys()
        places = {
            (tensor, int(record[name][0]))
            for program in model._runner.base.programs
            for tensor in copies
            for record, name in program._places_of(tensor)
        }
        assert len(places) >= len(norms)
        assert all(address == copies[tensor].ctypes.data != tensor.address for tensor, address in places)
        assert all(np.array_equal(copy, tensor.raw) for tensor, copy in copies.items())


def test_a_second_start_uses_the_file_that_is_there(own_home: Path, path: Path) -> None:
    heard: list[str] = []
    with edgellm.load(path, layout="tiles", progress=lambda done, total, what: heard.append(what)):
        (file,) = own_home.glob("tiles/*.tiles")
        made = file.stat()
    assert "laying out weights" in heard
    heard.clear()
    with edgellm.load(path, layout="tiles", progress=lambda done, total, what: heard.append(what)) as model:
        assert model.layout == "tiles"
    assert file.stat().st_mtime_ns == made.st_mtime_ns and "laying out weights" not in heard


def test_a_model_that_changes_has_new_tiles(own_home: Path, path: Path, ids: list[int], tmp_path: Path) -> None:
    mine = shutil.copy(path, tmp_path / "mine.gguf")
    with edgellm.load(mine, layout="tiles") as model:
        before = model.logits(ids)
    content = bytearray(Path(mine).read_bytes())
    content[-100] ^= 0x55
    Path(mine).write_bytes(content)
    for name in ("tiles", "file"):
        with edgellm.load(mine, layout=name) as model:
            after = model.logits(ids)
        assert not np.array_equal(before, after)
    assert len(list(own_home.glob("tiles/*.tiles"))) == 1


def test_float32_activations_read_the_file(own_home: Path, path: Path) -> None:
    with edgellm.load(path, activations="f32") as model:
        assert model.layout == "file"
    for name in ("tiles", "memory"):
        with pytest.raises(UsageError, match=r"layout is .*activations 'f32'.*choose layout 'file'"):
            edgellm.load(path, activations="f32", layout=name)
    with pytest.raises(UsageError, match="layout"):
        edgellm.load(path, layout="rows")


def test_float_weights_have_no_tiles(own_home: Path, tiny_path: Path) -> None:
    with edgellm.load(tiny_path, layout="tiles") as model:
        assert model.layout == "file"


@pytest.mark.parametrize("pays", [False, True])
def test_auto_takes_tiles_where_they_pay(own_home: Path, path: Path, monkeypatch, pays: bool) -> None:
    monkeypatch.setattr(runner, "remembered", lambda *a: Tuning(2, tiles=pays))
    with edgellm.load(path) as model:
        assert model.layout == "file"  # so few weights stay in the caches
    monkeypatch.setattr(layout, "LEAST_BYTES", 0)
    with edgellm.load(path) as model:
        model._runner.wait_for_tiles()
        assert model.layout == ("tiles" if pays else "file")
    assert (own_home / "tiles").exists() == pays


def test_where_tiles_cannot_be_kept_the_file_is_used(own_home: Path, path: Path, monkeypatch, caplog) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "edgellm"):
        patch.setattr(layout, "SPARE_BYTES", 1 << 60)
        with edgellm.load(path, layout="tiles") as model:
            assert model.layout == "file"
        assert "cannot keep tiles" in caplog.text and "B free" in caplog.text
    assert not list(own_home.glob("tiles/*"))


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="needs permissions that hold")
def test_a_folder_that_cannot_be_written(own_home: Path, path: Path, caplog) -> None:
    own_home.mkdir()
    own_home.chmod(0o500)
    with edgellm.load(path, layout="tiles") as model:
        assert model.layout == "file"
    own_home.chmod(0o700)


def test_memory_that_is_not_there(own_home: Path, path: Path, monkeypatch) -> None:
    monkeypatch.setattr(layout, "available_memory", lambda: 1000)
    with pytest.raises(MemoryLimitError, match="choose layout 'tiles' or 'file'"):
        edgellm.load(path, layout="memory")


# --- made while the model answers ----------------------------------------------------------------------------------


@pytest.fixture
def pays(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are quicker, and worth it for small models."""
    monkeypatch.setattr(runner, "remembered", lambda *a: Tuning(2, tiles=True))
    monkeypatch.setattr(layout, "LEAST_BYTES", 0)


def test_auto_answers_at_once_and_goes_on_from_tiles(
    own_home: Path, pays: None, path: Path, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), Tiles.write
    monkeypatch.setattr(Tiles, "write", lambda *a: (may_write.wait(60), write(*a)))
    with edgellm.load(path, layout="file") as model:
        whole = model.logits(ids)
    with edgellm.load(path) as model:
        np.testing.assert_array_equal(model.logits(ids), whole)
        answer = model.generate("a text", max_tokens=20, temperature=0)
        begun = [next(answer) for _ in range(3)]
        assert model.layout == "file" and not list(own_home.glob("tiles/*.tiles"))
        may_write.set()
        model._runner._laying_out.wait()
        with model.bind({}):  # nothing changes under who has the model for itself
            assert model.layout == "file"
        begun += answer
        assert model.layout == "tiles" and list(own_home.glob("tiles/*.tiles"))
        np.testing.assert_array_equal(model.logits(ids), whole)
        assert "".join(model.generate("a text", max_tokens=20, temperature=0)) == "".join(begun)
    assert model.layout == "tiles"  # of a closed model too
    with edgellm.load(path) as model:
        pass
    assert model.layout == "tiles"


def test_a_model_that_is_closed_leaves_no_half_of_a_file(own_home: Path, pays: None, path: Path, monkeypatch) -> None:
    begun, write = threading.Event(), Tiles.write

    def slow(tiles: Tiles, n_threads: int, progress) -> None:
        def note(*news) -> None:
            begun.set()
            time.sleep(0.02)
            progress(0, *news[1:])

        write(tiles, n_threads, note)

    monkeypatch.setattr(Tiles, "write", slow)
    before = {*threading.enumerate()}
    with edgellm.load(path) as model:
        begun.wait(60)
    assert not model.__dict__.get("_runner") and not list(own_home.glob("tiles/*"))
    assert {*threading.enumerate()} <= before


def test_what_goes_wrong_meanwhile_leaves_the_file(own_home: Path, pays: None, path: Path, ids, monkeypatch) -> None:
    def full(*a) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tiles, "write", full)
    with edgellm.load(path) as model:
        model._runner.wait_for_tiles()
        assert model.logits(ids).shape[0] == len(ids) and model.layout == "file"
