"""What generation_config.json recommends goes into a file, and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.export import export_checkpoint as export
from edgellm.convert.vocabulary.generation_config import FILE, generation_config, sampling_metadata
from edgellm.engine.recommended import recommended_sampling
from edgellm.errors import FormatError
from edgellm.formats.gguf import GGUFFile
from tests.convert import checkpoints


def keys(folder: Path, **values: Any) -> tuple[dict[str, Any], list[str]]:
    (folder / FILE).write_text(json.dumps(values))
    notes: list[str] = []
    found = sampling_metadata(folder, notes)
    return {key.removeprefix("general.sampling."): value for key, value in found.items()}, notes


def test_names_and_values(tmp_path):
    assert sampling_metadata(tmp_path, []) == {}
    assert keys(tmp_path, do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05) == (
        {"temp": 0.7, "top_k": 20, "top_p": 0.8, "penalty_repeat": 1.05},
        [],
    )
    assert keys(tmp_path, min_p=None, top_k=-1, eos_token_id=[1, 2], max_new_tokens=9) == ({"top_k": 0}, [])
    assert keys(tmp_path, do_sample=False, temperature=0.7) == ({"temp": 0.0}, [])
    assert keys(tmp_path, typical_p=1.0, num_beams=1) == ({}, [])
    assert keys(tmp_path, sequence="top_k;temperature", penalty_last_n=-1)[0] == {
        "sequence": "top_k;temperature",
        "penalty_last_n": -1,
    }
    assert keys(tmp_path, bad_words_ids=[], sequence_bias={}, suppress_tokens=[], num_beam_groups=1) == ({}, [])
    _, notes = keys(tmp_path, forced_eos_token_id=3, begin_suppress_tokens=[4])
    assert [note.split(" ")[1] for note in notes] == ["forced_eos_token_id", "begin_suppress_tokens"]
    found, notes = keys(tmp_path, typical_p=0.9, no_repeat_ngram_size=3)
    assert found == {} and len(notes) == 2 and "typical_p 0.9 is left out" in notes[0]


@pytest.mark.parametrize("values", [{"temperature": "hot"}, {"top_p": 7}, {"top_k": 1.5}, {"do_sample": 1}])
def test_what_cannot_be_is_refused_by_name(tmp_path, values):
    with pytest.raises(FormatError, match=rf"{FILE}: {next(iter(values))} is"):
        keys(tmp_path, **values)


def test_there_and_back(tmp_path):
    checkpoints.save("llama", tmp_path / "in")
    GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1).save_pretrained(
        tmp_path / "in"
    )
    convert(tmp_path / "in", tmp_path / "x.gguf")
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        assert recommended_sampling(file.metadata) == (
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repeat_penalty": 1.1},
            [],
        )
    export(tmp_path / "x.gguf", tmp_path / "out")
    back = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (back.do_sample, back.temperature, back.top_k, back.top_p) == (True, 0.6, 20, 0.95)
    assert back.repetition_penalty == 1.1


def test_greedy_comes_back_as_such():
    assert generation_config({"general.sampling.temp": 0.0}) == {"do_sample": False}
    assert generation_config({}) == {}
