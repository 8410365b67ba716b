"""What config.json leaves out, or gives as null, means what transformers takes it for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Exaone4Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

import edgellm
from edgellm.arch import ARCHITECTURES, ModelConfig
from edgellm.arch.huggingface_rope import llama3_factors
from edgellm.arch.parts import rope_frequencies
from edgellm.arch.rope import frequencies
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.huggingface import family_of
from edgellm.errors import EdgellmError, FormatError, UnsupportedError

from . import checkpoints

CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
    "Gemma3ForCausalLM": Gemma3TextConfig,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def written(name: str, **changes: Any) -> dict[str, Any]:
    """config.json as this version of transformers writes it."""
    shape = {"num_hidden_layers": 7, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 512,
             "head_dim": 64, "rms_norm_eps": 1e-5}  # fmt: skip
    return json.loads(CONFIGS[name](architectures=[name], **(shape | changes)).to_json_string(use_diff=False))


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The same as transformers 4 wrote it: what belongs to rotary embedding stands beside the rest."""
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}


def samples() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in CONFIGS:
        yield f"{name}, new", written(name)
        yield f"{name}, old", older(written(name))
    yield "windows", written("Qwen3ForCausalLM", use_sliding_window=True, sliding_window=9, max_window_layers=2)
    yield "llama 3", written("LlamaForCausalLM", rope_parameters=LLAMA3 | {"original_max_position_embeddings": 99})
    yield "llama 3, old", older(written("Qwen2ForCausalLM", rope_parameters=LLAMA3))
    linear = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    yield "linear", written("MistralForCausalLM", rope_parameters=linear)
    yield "linear, old", older(written("LlamaForCausalLM", rope_parameters=linear))
    yield "gemma linear", older(written("Gemma3ForCausalLM", rope_scaling={"rope_type": "linear", "factor": 8.0}))


SAMPLES = dict(samples())


def ours(config: dict[str, Any]) -> dict[str, Any]:
    """What edgellm makes of a config.json; EdgellmError for what it refuses."""
    architecture, family, said = family_of(config)
    shape = family.hyperparameters(said)
    metadata = {f"{architecture}.{key}": value for key, value in shape.items()}
    c = ARCHITECTURES[architecture].configure(metadata | {"general.architecture": architecture})
    factors = llama3_factors(family.rope(said), c.n_rot)
    return {
        "layers": c.n_layers, "width": c.n_embd, "feed-forward": c.n_ff, "heads": c.n_heads, "kv heads": c.n_kv_heads,
        "head": c.head_dim, "context": c.n_ctx_train, "epsilon": c.epsilon, "windows": list(c.windows),
        "scale": c.attention_scale, "tied": said.flag("tie_word_embeddings"),
        "biases": {part for part, key in family.biases.items() if key is None or said.flag(key)},
        "frequencies": [_frequencies(c, window, factors) for window in c.windows],
    }  # fmt: skip


def _frequencies(c: ModelConfig, window: int | None, factors: Any) -> list[float]:
    if c.architecture == "gemma3" and window:
        return frequencies(c.rope_base_local or 1e4, c.n_rot).tolist()
    return rope_frequencies(c, c.rope_base, factors).tolist()


def theirs(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of it; any error for what it cannot run."""
    c = AutoConfig.for_model(**config)
    with torch.device("meta"):  # no weights are made
        model: Any = AutoModelForCausalLM.from_config(c).model
    window = getattr(c, "sliding_window", None)
    kinds = getattr(c, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * c.num_hidden_layers
    if ("sliding_attention" in kinds and not window) or c.num_attention_heads % c.num_key_value_heads:
        raise ValueError("its forward pass fails")
    rope, attention = type(model.rotary_emb)(config=c), model.layers[0].self_attn
    turns = [getattr(rope, f"{kind}_inv_freq", getattr(rope, "inv_freq", None)).tolist() for kind in kinds]
    linears = {"attn_q": attention.q_proj, "attn_k": attention.k_proj, "attn_v": attention.v_proj,
               "attn_output": attention.o_proj, "ffn_gate": model.layers[0].mlp.gate_proj,
               "ffn_up": model.layers[0].mlp.up_proj, "ffn_down": model.layers[0].mlp.down_proj}  # fmt: skip
    return {
        "layers": len(model.layers), "width": c.hidden_size, "feed-forward": c.intermediate_size,
        "heads": c.num_attention_heads, "kv heads": c.num_key_value_heads, "head": attention.head_dim,
        "context": c.max_position_embeddings, "epsilon": c.rms_norm_eps, "scale": attention.scaling,
        "windows": [window if kind == "sliding_attention" else None for kind in kinds],
        "tied": c.tie_word_embeddings, "biases": {name for name, x in linears.items() if x.bias is not None},
        "frequencies": turns,
    }  # fmt: skip


def assert_same(config: dict[str, Any], what: str = "") -> None:
    """Both understand it alike; what transformers cannot run may be refused or have the family's default."""
    try:
        expected = theirs(config)
    except Exception:
        try:
            ours(config)
        except EdgellmError as refused:
            assert "\n" not in str(refused)
        return
    found = ours(config)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("frequencies", "scale", "epsilon"):
            np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=f"{name} {what}")
        else:
            assert found[name] == value, f"{name} {what}"


@pytest.mark.parametrize("name", SAMPLES)
def test_as_it_is(name: str) -> None:
    assert_same(SAMPLES[name])
    theirs(SAMPLES[name])


@pytest.mark.parametrize("name", SAMPLES)
def test_a_key_left_out_or_null(name: str) -> None:
    for key in SAMPLES[name].keys() - {"architectures"}:
        without = {other: value for other, value in SAMPLES[name].items() if other != key}
        assert_same(without, f"without {key}")
        assert_same(without | {key: None}, f"with {key} null")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_keys_left_out_or_null(data: st.DataObject) -> None:
    config = SAMPLES[data.draw(st.sampled_from(list(SAMPLES)))]
    fate = st.sampled_from(["kept", "kept", "gone", "null"])
    kept: dict[str, Any] = {}
    for key, value in config.items():
        what = "kept" if key == "architectures" else data.draw(fate)
        if what != "gone":
            kept[key] = value if what == "kept" else None
    assert_same(kept)


LINEAR = {"type": "linear", "factor": 4.0}
ROPES: list[dict[str, Any]] = [
    {},
    {"rope_theta": 5e5},
    {"rope_scaling": LINEAR},
    {"rope_scaling": LINEAR, "rope_theta": 5e5},
    {"rope_scaling": LINEAR, "rope_theta": None},
    {"rope_scaling": {}, "rope_theta": 5e5},
    {"rope_parameters": {}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_theta": 3e5}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_type": "linear", "factor": 2}, "rope_theta": 5e5},
    {"rope_parameters": {"rope_theta": 3e5}, "rope_scaling": LINEAR},
    {"rope_parameters": {"rope_theta": None}},
    {"rope_parameters": None, "rope_scaling": None, "rope_theta": None},
    {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 128}},
    {"rope_scaling": LLAMA3, "original_max_position_embeddings": 128},
    {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}, "original_max_position_embeddings": 128},
    {"rope_parameters": LLAMA3, "original_max_position_embeddings": 128, "rope_theta": 5e5},
    {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": None}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": {"type": "default", "factor": 4.0}},
]


@pytest.mark.parametrize("rope", ROPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_wherever_rope_is_said(name: str, rope: dict[str, Any]) -> None:
    plain = {key: value for key, value in written(name).items() if key != "rope_parameters"}
    if name == "Gemma3ForCausalLM":
        if "rope_parameters" in rope:
            full = {"full_attention": rope["rope_parameters"]}
            rope = rope | {"rope_parameters": rope["rope_parameters"] and full}
        if (scaling := rope.get("rope_scaling") or {}) and "type" in scaling:
            # Version 5 overlooks this older name of rope_type, and this family alone; 4 did not.
            rope = rope | {"rope_scaling": {"rope_type" if key == "type" else key: x for key, x in scaling.items()}}
        if "llama3" in str(rope):
            with pytest.raises(UnsupportedError, match="llama3"):
                ours(plain | rope)
            return
    assert_same(plain | rope)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("LlamaForCausalLM", {"rope_scaling": {"type": "unheard", "factor": 2.0}}, "'unheard'"),
        ("Qwen2ForCausalLM", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "'full_attention'"),
        ("LlamaForCausalLM", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 0}}, "factor is 0"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "'rope_type'"),
        ("Gemma3ForCausalLM", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}},
         "'linear'"),
        ("Gemma3ForCausalLM", {"sliding_window": None}, "sliding_window"),
        ("MistralForCausalLM", {"sliding_window": 0}, "sliding_window is 0"),
        ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 7}, "no window"),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "layer_types": None, "max_window_layers": "x"}, "max_window"),
        ("Qwen2ForCausalLM", {"use_sliding_window": "yes"}, "use_sliding_window"),
        ("LlamaForCausalLM", {"attention_bias": 1}, "attention_bias"),
        ("LlamaForCausalLM", {"is_causal": False}, "is_causal is False"),
        ("Gemma3ForCausalLM", {"is_causal": None}, "is_causal is None"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EdgellmError, match=words):
        ours(written(name) | changes)


def test_heads_that_pairs_do_not_fill() -> None:
    with pytest.raises(UnsupportedError, match=r"each head has 15 dimensions \(head_dim, .* expected an even number"):
        ours(written("LlamaForCausalLM") | {"head_dim": 15})


NEOX = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}


def turns_of_neox(**changes: Any) -> tuple[float, float]:
    """The base of a GPT-NeoX, and the part of each head that is turned."""
    _, family, said = family_of({"architectures": ["GPTNeoXForCausalLM"], **NEOX, **changes})
    shape = family.hyperparameters(said)
    return shape["rope.freq_base"], shape["rope.dimension_count"] / 32


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_pct": 0.5, "rotary_emb_base": 500},
        {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor": 1.0},
        {"rope_parameters": {"rope_theta": 500.0}, "rope_theta": 5.0},
        {"partial_rotary_factor": 0.25, "rope_theta": 10000},
        {"partial_rotary_factor": None, "rope_theta": None},
    ],
    ids=str,
)
def test_what_turns_in_gpt_neox(changes: dict[str, Any]) -> None:
    rope: Any = GPTNeoXConfig(**NEOX, **json.loads(json.dumps(changes))).rope_parameters
    assert turns_of_neox(**changes) == (rope["rope_theta"], rope["partial_rotary_factor"])


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"partial_rotary_factor": 0.5}, "rotary_pct"),
        ({"rope_theta": 500.0, "partial_rotary_factor": 0.25}, "rotary_emb_base"),
    ],
    ids=str,
)
def test_names_that_transformers_passes_over_in_gpt_neox(changes: dict[str, Any], name: str) -> None:
    rope: Any = GPTNeoXConfig(**NEOX, **changes).rope_parameters
    assert (rope["rope_theta"], rope["partial_rotary_factor"]) == (10000, 0.25)
    with pytest.raises(FormatError, match=rf"(rope_theta|partial_rotary_factor) is .* calls it {name}: "):
        turns_of_neox(**changes)


def test_the_base_of_olmo_3_that_two_versions_read_otherwise() -> None:
    config = {"architectures": ["Olmo3ForCausalLM"], "num_hidden_layers": 4, "rope_theta": 1e4}
    _, family, said = family_of(config)
    with pytest.raises(UnsupportedError, match=r"rope_theta is 10000\.0: version 4 .* say which in rope_parameters"):
        family.hyperparameters(said)
    sections = {f"{kind}_attention": {"rope_type": "default", "rope_theta": 1e4} for kind in ("full", "sliding")}
    _, family, said = family_of(config | {"rope_parameters": sections})
    assert family.hyperparameters(said)["rope.freq_base"] == 1e4


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("DeepseekV2ForCausalLM", "scoring_func", "sigmoid"),
        ("DeepseekV3ForCausalLM", "scoring_func", "softmax"),
        ("DeepseekV3ForCausalLM", "topk_method", "greedy"),
        ("Exaone4ForCausalLM", "sliding_window_pattern", "LG"),
    ],
)
def test_what_is_refused_of_a_family(name: str, key: str, value: str) -> None:
    """transformers overlooks these, or fails; the programs that the models came with go by them."""
    config = {"architectures": [name], "num_hidden_layers": 4, "num_experts_per_tok": 2}
    _, family, settings = family_of(config)
    family.hyperparameters(settings)
    with pytest.raises(EdgellmError, match=f"{key} is '{value}'"):
        family.hyperparameters(family_of(config | {key: value})[2])


def test_is_causal_of_a_gemma_that_makes_vectors() -> None:
    config = json.loads(Gemma3TextConfig(use_bidirectional_attention=True).to_json_string(use_diff=False))
    for is_causal in (True, False):
        _, family, settings = family_of(config | {"architectures": ["Gemma3TextModel"], "is_causal": is_causal})
        if is_causal:
            family.hyperparameters(settings)
        else:
            with pytest.raises(UnsupportedError, match="is_causal is False"):
                family.hyperparameters(settings)


@pytest.mark.parametrize("period", [1, 2, 3, 4, 9])
def test_layers_of_exaone_by_their_period(period: int) -> None:
    plain = {"num_hidden_layers": 7, "sliding_window_pattern": period}
    expected = [kind == "sliding_attention" for kind in Exaone4Config(**plain).layer_types or []]
    for config in (plain, plain | {"layer_types": None}):
        _, family, settings = family_of(config | {"architectures": ["Exaone4ForCausalLM"]})
        metadata = {f"exaone4.{key}": value for key, value in family.hyperparameters(settings).items()}
        configured = ARCHITECTURES["exaone4"].configure(metadata | {"general.architecture": "exaone4"})
        assert [window is not None for window in configured.windows] == expected
        assert list(configured.rotates) == expected


def test_layers_of_the_first_exaone_by_letters() -> None:
    config = {"architectures": ["Exaone4ForCausalLM"], "num_hidden_layers": 7, "sliding_window_pattern": "LLLG"}
    _, family, settings = family_of(config)
    assert "attention.sliding_window_pattern" not in family.hyperparameters(settings)  # as without a word on it


def test_null_is_the_default_but_where_it_has_a_meaning() -> None:
    mistral = written("MistralForCausalLM")
    assert ours(mistral | {"sliding_window": None})["windows"] == [None] * 7
    assert ours({k: v for k, v in mistral.items() if k != "sliding_window"})["windows"] == [4096] * 7
    assert ours(mistral | {"num_key_value_heads": None})["kv heads"] == 8
    qwen = written("Qwen3ForCausalLM", use_sliding_window=True, max_window_layers=3)
    assert ours(qwen | {"layer_types": None})["windows"] == [None] * 3 + [4096] * 4
    assert ours(qwen | {"layer_types": None, "sliding_window": None})["windows"] == [None] * 7
    gemma = written("Gemma3ForCausalLM")
    assert ours(gemma | {"tie_word_embeddings": None})["tied"]
    everything = {"sliding_window": None, "layer_types": ["full_attention"] * 7}
    assert ours(gemma | everything)["windows"] == [None] * 7


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "rope", [{}, {"rope_scaling": LINEAR}, {"rope_scaling": LLAMA3, "original_max_position_embeddings": 64}], ids=str
)
def test_logits_without_rope_theta(family: str, rope: dict[str, Any], tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    checkpoints.edit_json(tmp_path / "model" / "config.json", rope_parameters=..., **rope)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    convert(tmp_path / "model", tmp_path / "out.gguf")
    ids = list(range(3, 150))
    with edgellm.load(tmp_path / "out.gguf", n_threads=1, kv_type="f32") as own:
        np.testing.assert_allclose(own.logits(ids), checkpoints.logits(model, ids), atol=1e-3)


def alone(classes: str, config: PreTrainedConfig, **changes: Any) -> dict[str, Any]:
    """config.json of a class, with changes."""
    return json.loads(config.to_json_string(use_diff=False)) | {"architectures": [classes]} | changes


@pytest.mark.parametrize("value", [16, 7.5, "8"])
def test_another_largest_bias_of_mpt(value: Any) -> None:
    """transformers computes with 8 whatever config.json says, the models' own code does not: which is meant is open."""
    config = alone("MptForCausalLM", MptConfig())
    ours_of_usual = family_of(config)[1].hyperparameters(family_of(config)[2])
    assert ours_of_usual["attention.max_alibi_bias"] == 8
    config["attn_config"]["alibi_bias_max"] = value
    with pytest.raises(UnsupportedError, match=f"attn_config: alibi_bias_max is {value!r}.*8"):
        _, family, said = family_of(config)
        family.hyperparameters(said)


SCALES = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


@pytest.mark.parametrize("value", [None, "0.5", True, 0, -1.0, [1.0]], ids=str)
@pytest.mark.parametrize("key", SCALES)
@pytest.mark.parametrize("config_class", [GraniteConfig, GraniteMoeConfig])
def test_scales_of_granite_that_are_no_numbers(config_class: Any, key: str, value: Any) -> None:
    """Null is no number in transformers either, which fails or scales otherwise, by how it computes attention."""
    name = config_class.__name__.replace("Config", "ForCausalLM")
    config = alone(name, config_class(), **{key: value})
    _, family, said = family_of(config)
    with pytest.raises(EdgellmError, match=f"config.json: {key} is .*expected"):
        family.hyperparameters(said)
    del config[key]
    _, family, said = family_of(config)
    assert family.hyperparameters(said)["logit_scale"] == 1.0
