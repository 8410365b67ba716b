"""What a file recommends is the default; what a person says wins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgellm
from edgellm.engine.prompt import sampling_params
from edgellm.engine.recommended import KEYS, PREFIX, recommended_over_defaults, recommended_sampling
from edgellm.errors import UsageError
from edgellm.params import SamplingParams
from tests.arch import tiny


def keys(**values: Any) -> dict[str, Any]:
    return {PREFIX + key: value for key, value in values.items()}


def test_every_key_of_llama_cpp_is_one_of_the_gguf_package():
    from gguf import Keys

    theirs = {value for name, value in vars(Keys.General).items() if name.startswith("SAMPLING_")}
    assert {PREFIX + key for key in KEYS} == theirs


def test_they_are_read_as_people_wrote_them():
    found, notes = recommended_sampling(
        keys(temp=float(np.float32(0.7)), top_k=20, top_p=float(np.float32(0.95)), penalty_repeat=1.05, min_p=0.0)
        | keys(penalty_last_n=-1, sequence="top_k;top_p;temperature;penalties;min_p")
    )
    assert found == {
        "temperature": 0.7, "top_k": 20, "top_p": 0.95, "repeat_penalty": 1.05, "min_p": 0.0, "repeat_last_n": -1,
        "samplers": ("top_k", "top_p", "temperature", "penalties", "min_p"),
    }  # fmt: skip
    assert notes == []
    assert recommended_sampling(keys(top_k=-1))[0] == {"top_k": 0}
    assert recommended_sampling({"general.name": "x"}) == ({}, [])


@pytest.mark.parametrize(("key", "value"), [
    ("top_p", 5.0), ("temp", "hot"), ("temp", float("nan")), ("top_k", 1.5), ("mirostat", 1), ("sequence", "warp"),
    ("penalty_repeat", 0.0), ("sequence", 7), ("unheard", 1), ("temp", [1.0]),
])  # fmt: skip
def test_what_cannot_be_used_is_told_and_the_rest_kept(key, value):
    found, notes = recommended_sampling(keys(min_p=0.1, **{key: value}))
    assert found == {"min_p": 0.1}
    assert len(notes) == 1 and PREFIX + key in notes[0] and "\n" not in notes[0]


def test_what_a_person_says_wins():
    recommended = {"temperature": 0.6, "top_k": 20, "min_p": 0.2}
    params = recommended_over_defaults(recommended, {"temperature": 1.1, "mirostat": 2})
    assert (params.temperature, params.mirostat, params.min_p) == (1.1, 2, SamplingParams.min_p)
    params = recommended_over_defaults(recommended, {"samplers": "temperature"})
    assert (params.temperature, params.top_k) == (0.6, SamplingParams.top_k)
    params = recommended_over_defaults({"mirostat": 2, "temperature": 0.5}, {"top_k": 3})
    assert (params.mirostat, params.top_k, params.temperature) == (0, 3, 0.5)
    with pytest.raises(UsageError, match="top_p is 3"):
        recommended_over_defaults(recommended, {"top_p": 3})
    with pytest.raises(UsageError, match="did you mean top_k"):
        sampling_params({"topk": 3}, recommended)


settings = st.fixed_dictionaries({}, optional={
    "temperature": st.floats(0, 2), "top_k": st.integers(0, 9), "top_p": st.floats(0, 1), "min_p": st.floats(0, 1),
    "mirostat": st.sampled_from([0, 2]), "adaptive_target": st.sampled_from([-1, 0.3]),
    "samplers": st.sampled_from(["top_k;temperature", "temperature", "mirostat", "adaptive_p;top_k"]),
})  # fmt: skip


@given(settings, settings)
def test_any_of_both_go_together(recommended, typed):
    try:
        alone = SamplingParams(**typed)
    except UsageError:
        return
    params = recommended_over_defaults(recommended, typed)
    assert all(getattr(params, name) == getattr(alone, name) for name in typed)


def test_a_model_answers_as_its_file_recommends(tmp_path):
    made = tiny.llama()
    made.metadata.update(keys(temp=0.0))
    with edgellm.load(made.save(tmp_path / "tiny.gguf"), n_threads=1) as model:
        assert model.recommended_sampling == {"temperature": 0.0} and not model.notes
        greedy = model.generate([1, 2, 3], temperature=0, max_tokens=12)
        assert list(greedy) is not None
        usual = model.generate([1, 2, 3], max_tokens=12)
        "".join(usual)
        assert usual.token_ids == greedy.token_ids
        other = model.generate([1, 2, 3], max_tokens=12, temperature=5, top_k=0, top_p=1, min_p=0, seed=1)
        "".join(other)
        assert other.token_ids != greedy.token_ids
