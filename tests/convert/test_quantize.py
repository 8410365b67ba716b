"""Quantizing a file: what it holds afterwards, what is refused, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.convert.quantize import quantize_file
from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.formats.imatrix import Importance, write_imatrix
from edgellm.quants import FORMATS

N_COLS = 256
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "small",
    "llama.block_count": 1,
    "llama.attention.head_count": 4,
    "some.large": np.float64(1e300),
    "some.texts": ["a", "é", ""],
    "some.numbers": np.arange(5, dtype=np.int16),
}


def array_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(len(name)).normal(size=shape).astype(np.float32)


SHAPES = {
    "token_embd.weight": (40, N_COLS), "output_norm.weight": (N_COLS,), "output.weight": (40, N_COLS),
    "blk.0.attn_q.weight": (N_COLS, N_COLS), "blk.0.attn_q.bias": (N_COLS,), "blk.0.ffn_down.weight": (N_COLS, 96),
}  # fmt: skip
ARRAYS = {name: array_of(name, shape) for name, shape in SHAPES.items()}


def save(path: Path, arrays: Mapping[str, np.ndarray] = ARRAYS, **metadata: Any) -> Path:
    kept = {key: value for key, value in (METADATA | metadata).items() if value is not ...}
    GGUFWriter(path, kept, [(name, x.shape, FORMATS["F32"], x) for name, x in arrays.items()]).write()
    return path


def save_split(folder: Path) -> Path:
    """The same in two parts, as llama.cpp cuts large files."""
    names = list(ARRAYS)
    paths = [folder / f"m-0000{i + 1}-of-00002.gguf" for i in range(2)]
    for i, (path, some) in enumerate(zip(paths, (names[:3], names[3:]), strict=True)):
        split = {"split.no": np.uint16(i), "split.count": np.uint16(2), "split.tensors.count": np.int32(len(names))}
        save(path, {name: ARRAYS[name] for name in some}, **split)
    return paths[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "in.gguf")


def refused(source: Path, target: Path, kind: type[EdgellmError], *words: str, **options: Any) -> None:
    before = target.read_bytes() if target.is_file() else None
    with pytest.raises(kind) as raised:
        quantize_file(source, target, options.pop("type_name", "Q8_0"), **options)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert (target.read_bytes() if target.is_file() else None) == before
    assert not list(source.parent.glob(".*"))


def test_every_tensor_as_its_format_quantizes_it(source: Path, tmp_path: Path) -> None:
    done = quantize_file(source, tmp_path / "out.gguf", "q4_k_m")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert list(file.tensors) == list(ARRAYS)
        for name, x in ARRAYS.items():
            tensor = file.tensors[name]
            assert tensor.format is done.formats[name]
            np.testing.assert_array_equal(tensor.raw.reshape(-1), tensor.format.quantize(x).reshape(-1))
        found = {name: str(tensor.format) for name, tensor in file.tensors.items()}
        assert found["blk.0.ffn_down.weight"] == "Q8_0"  # rows of 96: no block of 256 divides them
        assert found["blk.0.attn_q.bias"] == found["output_norm.weight"] == "F32"
        assert found["blk.0.attn_q.weight"] == "Q4_K"
    assert done.n_bytes == (tmp_path / "out.gguf").stat().st_size
    assert done.warnings == []


def test_metadata_is_kept(source: Path, tmp_path: Path) -> None:
    quantize_file(source, tmp_path / "out.gguf", "Q8_0")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        expected = METADATA | {"general.file_type": 7, "general.quantization_version": 2}
        assert file.metadata.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(file.metadata[key], value)


def test_the_same_type_copies_the_bytes(source: Path, tmp_path: Path) -> None:
    quantize_file(source, tmp_path / "first.gguf", "Q5_1")
    again = quantize_file(tmp_path / "first.gguf", tmp_path / "again.gguf", "Q5_1")
    with GGUFFile.open(tmp_path / "first.gguf") as first, GGUFFile.open(tmp_path / "again.gguf") as second:
        for name, tensor in first.tensors.items():
            np.testing.assert_array_equal(tensor.raw, second.tensors[name].raw)
    assert again.warnings == []


def test_quantizing_again_is_told(source: Path, tmp_path: Path) -> None:
    quantize_file(source, tmp_path / "q8.gguf", "Q8_0")
    (warning,) = quantize_file(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "Q4_0").warnings
    assert "quantized before (Q8_0)" in warning


def test_parts_become_one_file(source: Path, tmp_path: Path) -> None:
    first = save_split(tmp_path)
    quantize_file(first, tmp_path / "joined.gguf", "Q8_0")
    quantize_file(source, tmp_path / "out.gguf", "Q8_0")
    assert (tmp_path / "joined.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_no_part_is_written_over(tmp_path: Path) -> None:
    first = save_split(tmp_path)
    for part in sorted(tmp_path.glob("m-*.gguf")):
        refused(first, part, UsageError, "being read")


@pytest.mark.skipif(sys.platform == "win32", reason="links are others there")
def test_other_names_of_the_source(source: Path, tmp_path: Path) -> None:
    os.link(source, tmp_path / "hard.gguf")
    (tmp_path / "soft.gguf").symlink_to(source)
    for name in ("in.gguf", "hard.gguf", "soft.gguf", f"../{tmp_path.name}/in.gguf"):
        refused(source, tmp_path / name, UsageError, name, "being read")


def test_targets_that_cannot_be(source: Path, tmp_path: Path) -> None:
    refused(source, tmp_path, UsageError, "is a folder")
    refused(source, source / "out.gguf", UsageError, "in.gguf is a file")
    if sys.platform != "win32":
        refused(source, Path(os.devnull), UsageError, "device")


@pytest.mark.parametrize("value", ["x", 1.5, float("nan"), True, [1, 2], ["a"], []])
@pytest.mark.parametrize("key", ["llama.block_count", "llama.attention.head_count", "llama.attention.head_count_kv"])
def test_counts_that_are_none(key: str, value: Any, tmp_path: Path) -> None:
    source = save(tmp_path / "in.gguf", **{key: value})
    refused(source, tmp_path / "out.gguf", FormatError, str(source), key, "an integer", type_name="Q4_K_M")


@pytest.mark.parametrize("value", [0, -1, -(2**40), 2**63])
def test_counts_that_cannot_be(value: int, tmp_path: Path) -> None:
    """Quantizing takes models that edgellm cannot run; a count may only choose types, and must not crash."""
    keys = ("llama.block_count", "llama.attention.head_count", "llama.attention.head_count_kv")
    source = save(tmp_path / "in.gguf", **dict.fromkeys(keys, value))
    assert quantize_file(source, tmp_path / "out.gguf", "Q4_K_M").formats.keys() == ARRAYS.keys()


def test_files_that_cannot_be_quantized(source: Path, tmp_path: Path) -> None:
    refused(save(tmp_path / "empty.gguf", {}), tmp_path / "out.gguf", FileProblem, "empty.gguf", "no tensors")
    refused(tmp_path / "missing.gguf", tmp_path / "out.gguf", FileProblem, "missing.gguf", "does not exist")
    (tmp_path / "cut.gguf").write_bytes(source.read_bytes()[:-1000])
    refused(tmp_path / "cut.gguf", tmp_path / "out.gguf", FormatError, "cut.gguf")
    broken = ARRAYS | {"output.weight": np.full((40, N_COLS), np.nan, np.float32)}
    refused(save(tmp_path / "nan.gguf", broken), tmp_path / "out.gguf", FormatError, "output.weight", "NaN")
    refused(source, tmp_path / "out.gguf", UsageError, "'Q9'", "Q8_0", type_name="Q9")


def test_an_importance_matrix_of_another_model(source: Path, tmp_path: Path) -> None:
    ones = np.ones(N_COLS + 1, np.float32)
    refused(source, tmp_path / "out.gguf", UsageError, "blk.0.attn_q.weight", "another model",
            importance={"blk.0.attn_q.weight": ones})  # fmt: skip
    refused(source, tmp_path / "out.gguf", UsageError, "none of this model", importance={"other.weight": ones})


def test_an_importance_matrix_that_is_not_quite_of_this_model(source: Path, tmp_path: Path) -> None:
    ones = np.ones(N_COLS, np.float32)
    given = {"blk.0.attn_q.weight": ones, "blk.0.ffn_down.weight": np.ones(96, np.float32)}
    assert quantize_file(source, tmp_path / "out.gguf", "Q8_0", importance=given).warnings == []
    given["blk.0.ffn_up_exps.weight"] = given.pop("blk.0.attn_q.weight")
    lacks, more = quantize_file(source, tmp_path / "out.gguf", "Q8_0", importance=given).warnings
    assert "says nothing of 1 of 2 quantized matrices in layers, blk.0.attn_q.weight first" in lacks
    assert "has 1 tensors that this model does not have, blk.0.ffn_up_exps.weight first" in more


def test_an_importance_matrix_is_no_model(tmp_path: Path) -> None:
    one = {"blk.0.attn_q.weight": np.ones(N_COLS, np.float32)}
    counts = {name: np.array([3], np.int64) for name in one}
    write_imatrix(tmp_path / "a.imatrix", Importance(one, counts))
    refused(tmp_path / "a.imatrix", tmp_path / "out.gguf", UsageError, "is an importance matrix", "--imatrix")
    with pytest.raises(UnsupportedError, match=r"a\.imatrix: the file is an importance matrix; it goes with"):
        edgellm.load(tmp_path / "a.imatrix")


def test_an_existing_target_is_replaced_by_a_whole_file(source: Path, tmp_path: Path) -> None:
    shutil.copy(source, tmp_path / "out.gguf")
    quantize_file(source, tmp_path / "out.gguf", "Q8_0")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert str(file.tensors["output.weight"].format) == "Q8_0"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.gguf", "out.gguf"]


# --- results that are not what was asked for ----------------------------------------------------------------


def test_rows_that_no_block_divides(tmp_path: Path) -> None:
    """The file says what it is, and the result why."""
    narrow = {name: array_of(name, (64, 48)) for name in ("token_embd.weight", "blk.0.attn_q.weight")}
    source = save(tmp_path / "in.gguf", narrow, **{"general.file_type": 15})
    done = quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert file.get("general.file_type", int) == 1
        assert {str(tensor.format) for tensor in file.tensors.values()} == {"F16"}
    assert done.type_name == "F16"
    assert any("blk.0.attn_q.weight has rows of 48 weights" in line and "F16" in line for line in done.notes)
    assert any("Q4_K_M" in line and "F16" in line for line in done.warnings)


def test_rows_that_smaller_blocks_divide(source: Path, tmp_path: Path) -> None:
    done = quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    (note,) = done.notes
    assert "blk.0.ffn_down.weight" in note and "96" in note and "Q8_0" in note
    assert done.type_name == "Q4_K_M" and done.warnings == []


def experts() -> dict[str, np.ndarray]:
    shapes = {"token_embd.weight": (40, N_COLS), "blk.0.ffn_gate_inp.weight": (4, N_COLS),
              "blk.0.ffn_up_exps.weight": (4, 64, N_COLS), "blk.0.ffn_down_exps.weight": (4, 64, N_COLS)}  # fmt: skip
    return {name: array_of(name, shape) for name, shape in shapes.items()}


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    source = save(tmp_path / "in.gguf", experts(), **{"llama.expert_count": 4})
    quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        found = {name: str(tensor.format) for name, tensor in file.tensors.items()}
        assert found["blk.0.ffn_gate_inp.weight"] == "F32"
        np.testing.assert_array_equal(file.tensors["blk.0.ffn_gate_inp.weight"].dequantize(),
                                      experts()["blk.0.ffn_gate_inp.weight"])  # fmt: skip
        assert found["blk.0.ffn_up_exps.weight"] == "Q4_K"
        assert file.tensors["blk.0.ffn_up_exps.weight"].shape == (4, 64, N_COLS)


@pytest.mark.parametrize("flat", [False, True])
def test_experts_have_an_importance_each(flat: bool, tmp_path: Path) -> None:
    name, x = "blk.0.ffn_up_exps.weight", experts()["blk.0.ffn_up_exps.weight"]
    importance = np.random.default_rng(1).uniform(0.01, 9, (4, N_COLS)).astype(np.float32)
    source = save(tmp_path / "in.gguf", experts())
    given = importance.reshape(-1) if flat else importance
    quantize_file(source, tmp_path / "out.gguf", "Q4_K_S", importance={name: given})
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        raw = file.tensors[name].raw.reshape(4, 64, -1)
        for expert in range(4):
            np.testing.assert_array_equal(raw[expert], FORMATS["Q4_K"].quantize(x[expert], importance[expert]))


# --- weights that are no numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_q.bias", "blk.0.attn_q.weight"])
@pytest.mark.parametrize("type_name", ["Q4_K_M", "F32", "F16"])
def test_one_weight_that_is_no_number(value: float, name: str, type_name: str, tmp_path: Path) -> None:
    x = ARRAYS[name].copy()
    x.reshape(-1)[-1] = value
    source = save(tmp_path / "in.gguf", ARRAYS | {name: x})
    refused(source, tmp_path / "out.gguf", FormatError, name, "NaN" if np.isnan(value) else "infinity",
            type_name=type_name)  # fmt: skip


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "F16"])
def test_scales_that_are_no_numbers(kind: str, tmp_path: Path) -> None:
    """Also where the bytes would only be copied."""
    name, x = "blk.0.attn_q.weight", ARRAYS["blk.0.attn_q.weight"]
    raw = FORMATS[kind].quantize(x)
    raw.reshape(-1)[:2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    source = tmp_path / "in.gguf"
    GGUFWriter(source, METADATA, [(name, x.shape, FORMATS[kind], raw)]).write()
    refused(source, tmp_path / "out.gguf", FormatError, name, type_name=kind if kind != "Q4_K" else "Q4_K_S")


def test_weights_too_large_for_the_type(tmp_path: Path) -> None:
    source = save(tmp_path / "in.gguf", ARRAYS | {"blk.0.attn_q.weight": np.full((N_COLS, N_COLS), 1e38, np.float32)})
    for type_name in ("F16", "Q8_0", "Q4_K_M"):
        refused(source, tmp_path / "out.gguf", FormatError, "blk.0.attn_q.weight", type_name=type_name)
    quantize_file(source, tmp_path / "out.gguf", "BF16")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_place_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said before any weight is read."""
    monkeypatch.setattr("edgellm.convert.quantize.GGUFFile.open", lambda path: pytest.fail("too late"))
    refused(source, Path("/proc/out.gguf"), FileProblem, "/proc", "cannot be written")


def test_what_is_written_is_opened_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that go astray are found before the file takes its name."""
    write = GGUFWriter._write_to

    def astray(self: GGUFWriter, file: Any) -> None:
        write(self, file)
        file.seek(30)
        file.write(b"\xff" * 8)

    (tmp_path / "out.gguf").write_bytes(b"old")
    monkeypatch.setattr(GGUFWriter, "_write_to", astray)
    refused(source, tmp_path / "out.gguf", FormatError, "out.gguf")
