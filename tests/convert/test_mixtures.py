"""Checkpoints of mixtures: split or stacked experts, a wrong number of them, export, importance matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.export import export_checkpoint as export
from edgellm.convert.imatrix import collect_imatrix
from edgellm.convert.measured import quantize_to_budget
from edgellm.convert.parts import Part
from edgellm.convert.quantize import quantize_file
from edgellm.errors import EdgellmError, FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.formats.imatrix import read_imatrix, write_imatrix
from edgellm.formats.tensor import Tensor
from edgellm.quants import FORMATS

from . import checkpoints
from .mixtures import EXPORTED, MIXTURES, WINDOW

IDS = np.random.default_rng(5).integers(2, checkpoints.N_VOCAB, 3 * WINDOW).tolist()
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], Tensors]


def same_file(a: Path, b: Path) -> None:
    with GGUFFile.open(a) as first, GGUFFile.open(b) as second:
        assert set(first.tensors) == set(second.tensors)
        for name, tensor in first.tensors.items():
            np.testing.assert_array_equal(tensor.raw, second.tensors[name].raw, err_msg=name)


def rewritten(folder: Path, change: Change) -> None:
    path = folder / "model.safetensors"
    save_file({name: x.contiguous() for name, x in change(load_file(path)).items()}, path, {"format": "pt"})


def stacked(tensors: Tensors) -> Tensors:
    """As transformers 5 has them in memory: gates and ups of all experts in one tensor."""
    result = {name: x for name, x in tensors.items() if ".experts." not in name}
    for layer in {name.split(".experts.")[0] for name in tensors if ".experts." in name}:
        parts = {}
        for part in ("gate_proj", "up_proj", "down_proj"):
            names = [f"{layer}.experts.{expert}.{part}.weight" for expert in range(8)]
            parts[part] = torch.stack([tensors[name] for name in names])
        result[f"{layer}.experts.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], 1)
        result[f"{layer}.experts.down_proj"] = parts["down_proj"]
    return result


@pytest.mark.parametrize("family", ["qwen3moe", "ernie4_5-moe", "deepseek v3"])
def test_split_and_stacked_experts_are_the_same(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "split.gguf")
    rewritten(tmp_path / "model", stacked)
    convert(tmp_path / "model", tmp_path / "stacked.gguf")
    same_file(tmp_path / "split.gguf", tmp_path / "stacked.gguf")


@pytest.mark.parametrize("family", ["mixtral", "gpt-oss", "granitemoe", "deepseek v2"])
def test_a_checkpoint_in_bfloat16_keeps_every_bit(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model", torch.bfloat16)
    convert(tmp_path / "model", tmp_path / "out.gguf")
    convert(tmp_path / "model", tmp_path / "f32.gguf", "F32")
    with GGUFFile.open(tmp_path / "out.gguf") as file, GGUFFile.open(tmp_path / "f32.gguf") as wide:
        experts = [name for name in file.tensors if name.endswith("_exps.weight")]
        assert experts
        assert {file.tensors[name].format.name for name in experts} == {"BF16"}
        for name, tensor in file.tensors.items():
            np.testing.assert_array_equal(tensor.dequantize(), wide.tensors[name].dequantize(), err_msg=name)


@pytest.mark.parametrize("family", EXPORTED)
def test_export_is_what_was_converted(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out.gguf")
    export(tmp_path / "out.gguf", tmp_path / "again", "f32")
    first, again = (checkpoints.load(tmp_path / name) for name in ("model", "again"))
    assert type(again) is type(first)
    np.testing.assert_allclose(checkpoints.logits(again, IDS), checkpoints.logits(first, IDS), atol=1e-5)
    convert(tmp_path / "again", tmp_path / "again.gguf")
    same_file(tmp_path / "out.gguf", tmp_path / "again.gguf")


def test_transformers_reads_what_export_writes_by_itself(tmp_path: Path) -> None:
    """Without being told how experts are to be computed."""
    checkpoints.save("mixtral", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out.gguf")
    export(tmp_path / "out.gguf", tmp_path / "again", "bf16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.num_local_experts == 4


@pytest.mark.parametrize("family", [name for name in MIXTURES if name not in EXPORTED])
def test_what_is_not_exported_is_refused(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out.gguf")
    with pytest.raises(UnsupportedError) as problem:
        export(tmp_path / "out.gguf", tmp_path / "again")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "again").exists()


# --- experts that are not those of config.json --------------------------------------------------------------

EXPERTS = "model.layers.1.mlp.experts."


def up(expert: int) -> str:
    return f"{EXPERTS}{expert}.up_proj.weight"


def without(part: str) -> Change:
    return lambda tensors: {name: x for name, x in tensors.items() if part not in name}


def with_(name: str, x: Callable[[Tensors], torch.Tensor], base: Change = lambda tensors: tensors) -> Change:
    return lambda tensors: base(tensors) | {name: x(tensors)}


WRONG = [
    (without(up(5)), r"no tensor 'model.layers.1.mlp.experts.5.up_proj.weight', .*num_local_experts is 8"),
    (with_(up(8), lambda t: t[up(0)].clone()), r"has tensor '.*experts.8.up_proj.weight', .*num_local_experts is 8"),
    (with_(up(3), lambda t: t[up(3)][:16]), r"experts.3.up_proj.weight' is F32 of shape \[16, 64\]"),
    (with_(up(3), lambda t: t[up(3)].half()), r"experts.3.up_proj.weight' is F16"),
    (
        with_(f"{EXPERTS}down_proj", lambda t: torch.zeros(7, 64, 32), stacked),
        r"\[7, 64, 32\]; .* num_local_experts is 8",
    ),
    (with_(f"{EXPERTS}gate_up_proj", lambda t: torch.zeros(8, 65, 64), stacked), "expected 2 equal parts"),
    (without(".1.mlp.experts"), "no tensor"),
    (without("model.layers.1.mlp.gate.weight"), "no tensor"),
]


@pytest.mark.parametrize(("change", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_wrong_number_or_shape_of_experts(change: Change, says: str, tmp_path: Path) -> None:
    checkpoints.save("qwen3moe", tmp_path / "model")
    rewritten(tmp_path / "model", change)
    with pytest.raises(FormatError, match=says) as problem:
        convert(tmp_path / "model", tmp_path / "out.gguf")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_local_experts": 6}, "num_local_experts is 6"),
        ({"num_local_experts": ..., "num_experts": 12}, "num_experts is 12"),
        ({"num_local_experts": ...}, "num_experts is missing, so 128 was taken"),
    ],
    ids=str,
)
def test_a_number_of_experts_is_told_by_the_key_that_config_json_has(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    checkpoints.save("qwen3moe", tmp_path / "model")
    checkpoints.edit_json(tmp_path / "model" / "config.json", **changes)
    with pytest.raises(FormatError, match=f"in config.json, {says}"):
        convert(tmp_path / "model", tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3moe", {"num_local_experts": 6}),
        ("qwen3moe", {"num_experts_per_tok": 9}),
        ("qwen3moe", {"num_experts_per_tok": 0}),
        ("qwen3moe", {"num_local_experts": "eight"}),
        ("qwen3moe", {"mlp_only_layers": [1]}),
        ("qwen3moe", {"decoder_sparse_step": 2}),
        ("qwen2moe", {"norm_topk_prob": True}),
        ("olmoe", {"clip_qkv": 3.0}),
        ("gpt-oss", {"swiglu_limit": 5.0}),
        ("deepseek v3", {"n_group": 3}),
        ("deepseek v3", {"topk_group": 9}),
        ("deepseek v3", {"rope_interleave": False}),
        ("deepseek v2", {"topk_method": "noaux_tc"}),
        ("deepseek v2", {"qk_nope_head_dim": 17}),
        (
            "deepseek v2",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "mscale": 0.7,
                    "mscale_all_dim": 0.7,
                    "attention_factor": 1.2,
                }
            },
        ),
        ("ernie4_5-moe", {"moe_layer_interval": 2}),
        ("ernie4_5-moe", {"moe_layer_end_index": 1}),
    ],
    ids=str,
)
def test_settings_that_cannot_be(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    checkpoints.edit_json(tmp_path / "model" / "config.json", **changes)
    with pytest.raises(EdgellmError) as problem:
        convert(tmp_path / "model", tmp_path / "out.gguf")
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "out.gguf").exists()


def test_two_counts_of_experts_that_differ(tmp_path: Path) -> None:
    """transformers goes by top_k_experts here, and no shape shows it."""
    checkpoints.save("gemma4", tmp_path / "model")
    checkpoints.edit_json(tmp_path / "model" / "config.json", num_experts_per_tok=1)
    with pytest.raises(FormatError, match="num_experts_per_tok is 1 and top_k_experts is 3, which are two names"):
        convert(tmp_path / "model", tmp_path / "out.gguf")


@pytest.mark.parametrize("family", ["gpt-oss", "deepseek v2", "deepseek v3"])
def test_a_rope_that_wants_a_factor_for_each_pair_is_refused_by_its_name(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    checkpoints.edit_json(tmp_path / "model" / "config.json", rope_parameters=rope)
    with pytest.raises(UnsupportedError, match="rope scaling of type 'llama3'; edgellm knows default, linear, "):
        convert(tmp_path / "model", tmp_path / "out.gguf")


def test_a_layer_that_config_json_does_not_count_foresees_nothing(tmp_path: Path) -> None:
    """transformers leaves the last layer out, with a warning, as it does with those that foresee."""
    checkpoints.save("deepseek v3", tmp_path / "model")
    changes = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    checkpoints.edit_json(tmp_path / "model" / "config.json", **changes)
    with pytest.raises(UnsupportedError, match=r"no place for tensor 'model\.layers\.2\."):
        convert(tmp_path / "model", tmp_path / "out.gguf")


def test_keys_mean_what_they_mean_to_llama_cpp(tmp_path: Path) -> None:
    """Of DeepSeek 2's YaRN, the multiplier alone is said; of Ling 2's shared experts, the width of one."""
    checkpoints.save("deepseek v2, groups", tmp_path / "deepseek")
    checkpoints.save("bailingmoe2", tmp_path / "ling")
    for name in ("deepseek", "ling"):
        convert(tmp_path / name, tmp_path / f"{name}.gguf")
    with GGUFFile.open(tmp_path / "deepseek.gguf") as file:
        scaling = {key for key in file.metadata if ".rope.scaling." in key}
        assert "deepseek2.rope.scaling.attn_factor" not in scaling
        assert file.metadata["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.07)
    with GGUFFile.open(tmp_path / "ling.gguf") as file:
        assert file.metadata["bailingmoe2.expert_shared_count"] == 2
        assert file.metadata["bailingmoe2.expert_shared_feed_forward_length"] == 32
        assert file.tensors["blk.1.ffn_up_shexp.weight"].shape == (64, 64)


def test_layers_that_foresee_further_tokens_are_left_out_and_said(tmp_path: Path) -> None:
    """As DeepSeek 3's checkpoints have one behind the others. Files that hold one have it passed over."""
    checkpoints.save("deepseek v3", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "plain.gguf")
    names = ("eh_proj", "mlp.experts.0.up_proj")
    more = {f"model.layers.3.{name}.weight": torch.ones(4, 4) for name in names}
    rewritten(tmp_path / "model", lambda tensors: tensors | more)
    checkpoints.edit_json(tmp_path / "model" / "config.json", num_nextn_predict_layers=1)
    (note,) = convert(tmp_path / "model", tmp_path / "out.gguf")
    assert "left out 2 tensors of the layers that foresee further tokens" in note
    same_file(tmp_path / "plain.gguf", tmp_path / "out.gguf")

    with GGUFFile.open(tmp_path / "plain.gguf") as file:
        entries: list[Any] = [(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]
        entries.append(("blk.3.nextn.eh_proj.weight", (4, 4), FORMATS["F32"], np.ones((4, 4), np.float32)))
        metadata = dict(file.metadata) | {"deepseek2.block_count": 4, "deepseek2.nextn_predict_layers": 1}
        GGUFWriter(tmp_path / "more.gguf", metadata, entries).write()
    with edgellm.load(tmp_path / "plain.gguf", n_threads=1) as plain, edgellm.load(tmp_path / "more.gguf") as more_:
        np.testing.assert_array_equal(more_.logits(IDS[:20]), plain.logits(IDS[:20]))


# --- importance ---------------------------------------------------------------------------------------------


def test_an_importance_matrix_of_experts(tmp_path: Path) -> None:
    """Each expert counts the tokens that it has; quantizing with it differs, and reading it back is the same."""
    checkpoints.save("qwen3moe", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "in.gguf")
    names = ["blk.0.ffn_moe_topk", "blk.0.ffn_norm"]
    with edgellm.load(tmp_path / "in.gguf", n_threads=2) as model:
        importance = collect_imatrix(model, IDS, 64)
        with model.square_sums() as sums:
            model.logits(IDS)
        seen = model.run(IDS, taps=names)
    chosen, x = (seen[name] for name in names)
    name = "blk.0.ffn_up_exps.weight"
    for expert in range(8):
        rows = x[(chosen == expert).any(-1)].astype(np.float64)
        assert sums.counts[name][expert] == len(rows)
        np.testing.assert_allclose(sums[name][expert], np.square(rows).sum(0), rtol=1e-12)
    assert importance.tensors["blk.2.ffn_down_exps.weight"].shape == (8, 32)
    assert importance.counts[name].sum() == 3 * 64 * importance.n_chunks

    write_imatrix(tmp_path / "imatrix.gguf", importance)
    again = read_imatrix(tmp_path / "imatrix.gguf")
    for tensor, values in importance.tensors.items():
        np.testing.assert_allclose(again.tensors[tensor], values, rtol=1e-6)
    quantize_file(tmp_path / "in.gguf", tmp_path / "plain.gguf", "Q4_0")
    quantize_file(tmp_path / "in.gguf", tmp_path / "weighed.gguf", "Q4_0", importance=again.tensors)
    with GGUFFile.open(tmp_path / "plain.gguf") as plain, GGUFFile.open(tmp_path / "weighed.gguf") as weighed:
        assert (plain.tensors[name].raw != weighed.tensors[name].raw).any()


def test_a_budget_with_the_importance_of_experts(tmp_path: Path) -> None:
    """Each expert's rows are weighed by its own inputs, in the sample by which errors are estimated too."""
    checkpoints.save("qwen3moe", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "in.gguf")
    with edgellm.load(tmp_path / "in.gguf", n_threads=2) as model:
        importance = collect_imatrix(model, IDS, 64)
    quantize_file(tmp_path / "in.gguf", tmp_path / "small.gguf", "Q8_0")
    n_bytes = (tmp_path / "small.gguf").stat().st_size
    done = quantize_to_budget(tmp_path / "in.gguf", tmp_path / "out.gguf", f"{n_bytes}B", importance=importance.tensors)
    assert done.quantized.n_bytes <= n_bytes
    assert done.quantized.formats["blk.0.ffn_gate_inp.weight"].name == "F32"


def test_a_sample_of_a_stack_keeps_its_matrices() -> None:
    x = np.arange(3 * 10 * 32, dtype=np.float32).reshape(3, 10, 32)
    sample = Part("blk.0.ffn_up_exps.weight", Tensor.of("x", x)).sample(4)
    np.testing.assert_array_equal(sample.tensor.dequantize(), x[:, ::4])
    assert (sample.n_matrices, sample.n_rows) == (3, 9)
