"""What a file of a dense family says that cannot be: one line, which names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgellm
from edgellm.arch import ARCHITECTURES
from edgellm.arch.config import Keys
from edgellm.arch.rope import read_scaling
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.convert.huggingface import family_of
from edgellm.errors import FileProblem, FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from tests.convert import checkpoints, families

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("gemma4", {"attention.shared_kv_layers": 6}, "shared_kv_layers is 6"),
    ("gemma4", {"attention.head_count_kv": [2, 2]}, "head_count_kv"),
    ("gemma4", {"attention.head_count_kv": [2, 3, 2, 2, 2, 2]}, "3 key-value heads"),
    ("gemma4", {"rope.dimension_count_swa": 18}, "dimension_count_swa is 18"),
    ("gemma4", {"expert_count": 4}, "expert_used_count"),
    ("gemma3n", {"altup.active_idx": 4}, "active_idx is 4"),
    ("gemma3n", {"activation_sparsity_scale": [1.0, float("nan")]}, "activation_sparsity_scale"),
    ("gemma3n", {"feed_forward_length": [96] * 5}, "feed_forward_length"),
    ("smollm3", {"rope.layers": [True]}, "rope.layers"),
    ("bitnet", {"hidden_act": "tanh"}, "'tanh'"),
    ("lfm2", {"attention.head_count_kv": [0, 0, 0, 0]}, "head_count_kv is 0 in all layers"),
    ("lfm2", {"attention.head_count_kv": [0, 3, 0, 0]}, "3 key-value heads"),
    ("lfm2", {"shortconv.l_cache": 5}, "shortconv.conv"),
    ("qwen35", {"ssm.time_step_rank": 3}, "ssm.time_step_rank is 3"),
    ("qwen35", {"ssm.state_size": 32}, "attn_qkv"),
    ("qwen35", {"attention.recurrent_layers": False}, "recurrent_layers is False"),
    ("qwen35", {"attention.recurrent_layers": 2}, "attn_q"),
    ("mpt", {"attention.clamp_kqv": 6.0}, "clamp_kqv"),
    ("llama, yarn", {"rope.freq_base": 1.0}, "freq_base is 1.0"),
    ("llama, yarn", {"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5; edgellm runs YaRN with 1"),
    ("llama, yarn", {"rope.scaling.yarn_ext_factor": 0.0}, "yarn_ext_factor is 0; edgellm"),
    ("llama, yarn", {"rope.scaling.yarn_attn_factor": 0.75}, "yarn_attn_factor is 0.75"),
    ("llama, yarn", {"attention.causal": False}, "attention.causal is False; edgellm runs llama with true"),
    ("llama, yarn", {"attention.temperature_scale": 0.1}, "temperature_scale is 0.1"),
    ("falcon", {"attention.clamp_kqv": 6.0}, "clamp_kqv is 6.0; edgellm runs falcon with 0"),
    ("gemma", {"attention.max_alibi_bias": 8.0}, "max_alibi_bias is 8.0"),
    ("olmo2", {"residual_scale": 0.5}, "residual_scale is 0.5; edgellm runs olmo2 with 0 or 1"),
    ("cohere2", {"rope.freq_base_swa": 5e4}, "freq_base_swa is 50000.0; edgellm runs cohere2 with 10000.0"),
    ("gpt2", {"context_length": 600}, "position_embd"),
    ("phi3, long-rope", {"rope.dimension_count": 8}, "rope_factors_"),
    ("granite", {"logit_scale": -1.0}, "logit_scale"),
    ("gemma2", {"final_logit_softcapping": float("inf")}, "final_logit_softcapping"),
]


@pytest.mark.parametrize(("family", "changes", "words"), CASES, ids=lambda x: str(x)[:40])
def test_a_wrong_header(family: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    families.model_of(family).save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "good.gguf")
    with GGUFFile.open(tmp_path / "good.gguf") as file:
        metadata = dict(file.metadata)
        metadata |= {f"{metadata['general.architecture']}.{key}": value for key, value in changes.items()}
        entries = [(name, x.shape, x.format, x.raw) for name, x in file.tensors.items()]
        GGUFWriter(tmp_path / "bad.gguf", metadata, entries).write()
    with pytest.raises(FileProblem) as raised:
        edgellm.load(tmp_path / "bad.gguf")
    assert words in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 400


@pytest.mark.parametrize("value", [-1.0, -1, 1.0])
def test_a_negative_ext_factor_of_yarn_is_the_default(value: float) -> None:
    metadata = {"general.architecture": "llama", "llama.context_length": 64, "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 4.0}  # fmt: skip
    said = metadata | {"llama.rope.scaling.yarn_ext_factor": value}
    assert read_scaling(Keys(said)) == read_scaling(Keys(metadata))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("falcon", {"alibi": True}),
        ("falcon", {"parallel_attn": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("mpt", {"logit_scale": 0.5}),
        ("gptneox", {"hidden_act": "mish"}),
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        *[(family, {"head_dim": 8}) for family in ("falcon", "gpt2", "mpt", "gptneox", "bloom", "stablelm")],
        ("llama, yarn", {"rope_parameters": families.FAMILIES["llama, yarn"][2]["rope_parameters"]
                         | {"truncate": False}}),
    ],
    ids=str,
)  # fmt: skip
def test_a_variant_that_would_be_computed_wrongly(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    families.model_of(family).save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    checkpoints.edit_json(tmp_path / "model" / "config.json", **changes)
    names = [*changes, "truncate"]
    with pytest.raises(UnsupportedError) as raised:
        convert_checkpoint(tmp_path / "model", tmp_path / "out.gguf")
    assert any(name in str(raised.value) for name in names) and "\n" not in str(raised.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("family", "written", "other", "value"),
    [
        ("gpt2", "n_head", "num_attention_heads", 2),  # no shape shows it, and transformers goes by the second
        ("mpt", "n_heads", "num_attention_heads", 2),
        ("bloom", "n_layer", "num_hidden_layers", 2),
        ("gptneox", "partial_rotary_factor", "rotary_pct", 0.25),
    ],
)
def test_two_names_of_one_setting_that_differ(family: str, written: str, other: str, value: float) -> None:
    config = {"architectures": families.FAMILIES[family][0].__name__, written: 4, other: 4}
    (kind,) = (
        f for entry in ARCHITECTURES.values() for f in entry.hugging_face if config["architectures"] in f.classes
    )
    assert kind.settings_of(config).get(kind.aliases.get(other, other)) == 4
    with pytest.raises(FormatError, match=f"({written}|{other}) is .* which are two names of one setting"):
        kind.settings_of(config | {other: value})


@pytest.mark.parametrize(
    ("family", "key"), [("falcon", "layer_norm_epsilon"), ("gpt2", "n_layer"), ("mpt", "n_heads"), ("lfm2", "norm_eps")]
)
def test_a_setting_is_named_as_the_file_names_it(family: str, key: str) -> None:
    config = {**families.config_of(family).to_dict(), "architectures": [families.FAMILIES[family][0].__name__], key: 0}
    with pytest.raises(FormatError, match=f"{key} is 0; expected a"):
        _, kind, settings = family_of(config)
        kind.hyperparameters(settings)
