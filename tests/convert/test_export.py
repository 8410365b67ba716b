"""An exported folder is whole or not there; where it may be written; what else goes along."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgellm.convert import export as module
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.export import export_checkpoint as export
from edgellm.convert.model_card import model_card, write_model_card
from edgellm.errors import FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.quants import FORMATS

from . import checkpoints

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CARD = "---\nlicense: apache-2.0\nlanguage:\n- no\n- en\ntags: [a, 2024-99-99]\nbase_model: some/base\n---\n# A model\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted("llama", tmp_path_factory.mktemp("source"))


def converted(family: str, folder: Path) -> Path:
    checkpoints.save(family, folder / "tiny")
    (folder / "tiny" / "README.md").write_text(CARD)
    convert(folder / "tiny", folder / "in.gguf")
    return folder / "in.gguf"


def changed(source: Path, target: Path, **metadata: Any) -> Path:
    """A copy with other metadata; `...` takes a key away."""
    with GGUFFile.open(source) as file:
        values = {key: value for key, value in (dict(file.metadata) | metadata).items() if value is not ...}
        GGUFWriter(target, values, [(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]).write()
    return target


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_new_folder(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == FILES
    assert names(tmp_path / "a") == {"b"}


def test_an_empty_folder_stays_the_same_folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a mount, or where the user stands."""
    before = tmp_path.stat().st_ino
    monkeypatch.chdir(tmp_path)
    export(source, Path("."))
    assert names(tmp_path) == FILES
    assert tmp_path.stat().st_ino == before


@pytest.mark.skipif(sys.platform == "win32", reason="links are others there")
def test_a_link_to_a_folder_is_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(source, tmp_path / "link")
    assert names(tmp_path / "real") == FILES


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("moment", ["write_tokenizer", "write_model_card", "os.replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_failure(
    is_there: bool, moment: str, error: BaseException, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    if is_there:
        folder.mkdir()
    usual, calls = os.replace, 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if moment == "os.replace" and calls < (4 if is_there else 2):  # weights take their name by one too
            return usual(*args)
        raise error

    monkeypatch.setattr(f"{module.__name__}.{moment}", fail)
    kind = FileProblem if isinstance(error, OSError) else type(error)
    with pytest.raises(kind) as raised:
        export(source, folder)
    if kind is FileProblem:
        assert str(raised.value) == f"{folder} cannot be written: No space left on device"
    monkeypatch.undo()
    assert names(tmp_path) == ({"out"} if is_there else set())
    assert not is_there or names(folder) == set()


def test_folders_that_cannot_be(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    for target in (tmp_path / "file", tmp_path / "full", tmp_path / "file" / "out", Path(os.devnull)):
        with pytest.raises(UsageError):
            export(source, target)
    assert names(tmp_path / "full") == {"notes"}


def test_progress_names_the_folder(source: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    export(source, tmp_path / "out", progress=lambda *now: told.append(now))
    assert {what for _, _, what in told} == {f"writing {tmp_path / 'out'}"}
    assert told[-1][0] == told[-1][1]


def test_licence_and_origin_go_along_and_back(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "f32")
    convert(tmp_path / "out", tmp_path / "again.gguf")
    with GGUFFile.open(source) as first, GGUFFile.open(tmp_path / "again.gguf") as second:
        ours = {key: value for key, value in first.metadata.items() if key.startswith("general.")}
        assert ours["general.license"] == "apache-2.0"
        assert list(ours["general.languages"]) == ["no", "en"]
        assert list(ours["general.tags"]) == ["a", "2024-99-99"]
        for key, value in ours.items():
            found = second.metadata[key]
            assert (value if isinstance(value, (str, int)) else list(value)) == (
                found if isinstance(found, (str, int)) else list(found)
            )


@pytest.mark.parametrize(
    "card",
    [
        "license: [" * 20_000,
        "tags: &a [*a]",
        "tags: &a [" + "x," * 100_000,
        "a: &a {k: 1}\n"
        + "".join(f"{b}: &{b} {{<<: [{f'*{a},' * 9}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "license: x\n" * 80_000,
        "license: " + "9" * 10_000 + "\nlanguage: !!python/object/apply:os.system [touch harmed]",
        "license: ~\nbase_model: [{}]",
        "\xff\xfe",
    ],
    ids=range(8),
)
def test_hostile_model_cards(card: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(f"---\n{card}\n---\n".encode("latin-1"))
    found = model_card(tmp_path, {})
    assert all(isinstance(value, (str, list)) for value in found.values())
    assert not (tmp_path / "harmed").exists()


def test_one_entry_that_is_broken_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\r\ntags: [\r\nlicense: mit\r\nlanguage: null\r\n---\r\n", newline="")
    assert model_card(tmp_path, {"_name_or_path": "org/name"}) == {"general.name": "name", "general.license": "mit"}


def test_a_card_of_nothing_is_not_written(tmp_path: Path) -> None:
    write_model_card({"general.license": 7, "general.tags": "x" * 3}, tmp_path)
    assert (tmp_path / "README.md").read_text() == "---\ntags: xxx\n---\n"
    (tmp_path / "README.md").unlink()
    write_model_card({"general.license": 7}, tmp_path)
    assert names(tmp_path) == set()


def test_what_transformers_cannot_say(tmp_path: Path) -> None:
    source = converted("gemma3", tmp_path)
    for scale in (1e-30, 0.3):
        with pytest.raises(UnsupportedError, match="attention is scaled by"):
            export(changed(source, tmp_path / "x.gguf", **{"gemma3.attention.scale": scale}), tmp_path / "out")
    export(changed(source, tmp_path / "x.gguf", **{"gemma3.attention.sliding_window_pattern": 1}), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert set(config["layer_types"]) == {"full_attention"}


@pytest.mark.parametrize(("value", "dtype", "words"), [(float("nan"), "bf16", "NaN"), (float("inf"), "f32", "infinity"),
                                                       (1e9, "f16", "does not fit into F16")])  # fmt: skip
def test_weights_that_are_no_numbers(source: Path, tmp_path: Path, value: float, dtype: str, words: str) -> None:
    with GGUFFile.open(source) as file:
        arrays = {name: tensor.dequantize() for name, tensor in file.tensors.items()}
        arrays["blk.1.ffn_up.weight"][3, 4] = value
        tensors = [(name, x.shape, FORMATS["F32"], x) for name, x in arrays.items()]
        GGUFWriter(tmp_path / "in.gguf", dict(file.metadata), tensors).write()
    with pytest.raises(FormatError, match=f"'blk.1.ffn_up.weight'.*{words}"):
        export(tmp_path / "in.gguf", tmp_path / "out", dtype)
    assert names(tmp_path) == {"in.gguf"}


def test_what_transformers_has_no_place_for(source: Path, tmp_path: Path) -> None:
    """Biases in some layers only, which it would leave out or make up."""
    with GGUFFile.open(source) as file:
        tensors = [(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]
        tensors.append(("blk.1.attn_q.bias", (64,), FORMATS["F32"], np.ones(64, np.float32)))
        GGUFWriter(tmp_path / "in.gguf", dict(file.metadata), tensors).write()
    with pytest.raises(UnsupportedError, match="biases on all of attn_q, attn_k, attn_v, attn_output"):
        export(tmp_path / "in.gguf", tmp_path / "out")
