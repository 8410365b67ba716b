"""Patterns in the settings of PEFT's adapters: which key counts, and which modules are meant, as PEFT itself has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file

from edgellm.arch.adapters import read_adapter
from edgellm.errors import FormatError
from edgellm.formats.adapters import Adapter
from edgellm.formats.adapters.patterns import is_quick
from edgellm.formats.gguf import GGUFFile
from tests import peft_models
from tests.convert.checkpoints import edit_json

FIRST = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    peft_models.save_base("llama", folder)
    return folder


def read(folder: Path, name: str) -> Adapter:
    with GGUFFile.open(folder / "base.gguf") as file:
        return read_adapter(folder / name, file.metadata, file.tensors)


def scales_in_peft(folder: Path, name: str) -> list[float]:
    model = PeftModel.from_pretrained(peft_models.base_of(folder), folder / name)
    return sorted(dict(part.scaling)["default"] for part in model.modules() if hasattr(part, "lora_A"))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "keys",
    [
        {"q_proj": 2, FIRST: 5},
        {FIRST: 5, "q_proj": 2},
        {"self_attn.q_proj": 2, "q_proj": 5},
        {"layers.[0-9]{1}.self_attn.q_proj": 2, "q_proj": 5},
        {"(?:q|v)_proj": 2, "q_proj": 5},
        {r"layers\.[01]\..*_proj": 2, "q_proj": 5},
    ],
)
def test_of_keys_that_fit_the_one_counts_that_does_in_peft(folder: Path, keys: dict[str, int]) -> None:
    peft_models.save_adapter(folder, "a", alpha_pattern=keys)
    adapter = read(folder, "a")
    ours = sorted(change.scale for change in adapter.weights.values())
    np.testing.assert_allclose(ours, scales_in_peft(folder, "a"))
    assert any("alpha_pattern has" in note and "the first counts" in note for note in adapter.notes)


def test_ranks_that_peft_sorted_away_are_refused_as_in_peft_with_the_way_out(folder: Path) -> None:
    """While it trains, the first key as it was written counts; in the file they are sorted."""
    peft_models.save_adapter(folder, "b", rank_pattern={"q_proj": 2, FIRST: 3})
    with pytest.raises(RuntimeError, match="size mismatch"):
        scales_in_peft(folder, "b")
    with pytest.raises(FormatError, match=f"rank 2, and .* says 3 .* q_proj says 2: put it before {FIRST}"):
        read(folder, "b")
    config = folder / "b" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rank_pattern": {"q_proj": 2, FIRST: 3}}))
    assert {change.rank for change in read(folder, "b").weights.values()} == {2, 4}
    assert len(scales_in_peft(folder, "b")) == len(read(folder, "b").weights)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (r".*\.(q|v)_proj", []),
        (r"model\.layers\.\d+\.self_attn\.[qv]_proj", []),
        (r".*q_proj", ["does not name model.layers.0.self_attn.v_proj, "]),
        (r"q_proj|v_proj", ["of which the adapter holds nothing", "does not name model.layers.0.self_attn.q_proj, "]),
        (r".*\.(q|k|v)_proj", ["names model.layers.0.self_attn.k_proj, model.layers.1", "may have lost tensors"]),
        ("(.*)*", ["target_modules is no simple pattern, and is not compared"]),
        ("all-linear", []),
    ],
)
def test_a_pattern_of_targets_is_compared_with_what_is_there(folder: Path, said: str, words: list[str]) -> None:
    peft_models.save_adapter(folder, "c", target_modules=r".*\.(q|v)_proj")
    edit_json(folder / "c" / "adapter_config.json", target_modules=said)
    notes = read(folder, "c").notes
    assert bool(notes) == bool(words) and all(any(word in note for note in notes) for word in words), notes


def test_matrices_that_a_pattern_names_and_that_were_lost_are_told(folder: Path) -> None:
    peft_models.save_adapter(folder, "d", target_modules=r".*\.(q|v)_proj")
    path = folder / "d" / "adapter_model.safetensors"
    save_file({name: x for name, x in load_file(path).items() if "layers.1.self_attn.v_proj" not in name}, path)
    (note,) = read(folder, "d").notes
    assert "target_modules names model.layers.1.self_attn.v_proj, of which the adapter holds nothing" in note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": "q_proj)"}, ("target_modules is 'q_proj)'", "no regular expression")),
        ({"exclude_modules": "["}, ("exclude_modules is '['", "no regular expression")),
    ],
)
def test_what_is_no_pattern_is_refused(folder: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    peft_models.save_adapter(folder, "e")
    edit_json(folder / "e" / "adapter_config.json", **changes)
    with pytest.raises(FormatError) as error:
        read(folder, "e")
    assert all(word in str(error.value) for word in words)


def test_an_excluding_pattern_names_what_is_held(folder: Path) -> None:
    peft_models.save_adapter(folder, "f")
    edit_json(folder / "f" / "adapter_config.json", exclude_modules=r".*0\.mlp\.up_proj")
    (note,) = read(folder, "f").notes
    assert "exclude_modules names model.layers.0.mlp.up_proj, which the adapter holds: it is used" in note


def test_patterns_that_tools_write_are_compared() -> None:
    parts = r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    names = r"(?:k_proj|v_proj|q_proj|o_proj)"
    tool = rf"(?:.*?(?:language|text).*?{parts}.*?{names}.*?)|(?:\bmodel\.layers\.[\d]{{1,}}\.{parts}\.(?:{names}))"
    assert is_quick(tool)
    assert not is_quick("(a+)+$") and not is_quick(".*a" * 6) and not is_quick("a{1000}")
