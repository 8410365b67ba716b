"""Mixtures of experts: what transformers computes, with the same bits however a text is cut, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.quantize import quantize_file
from edgellm.errors import EdgellmError, FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.quants import FORMATS
from tests.convert import checkpoints, families
from tests.convert.mixtures import MIXTURES, WINDOW
from tests.train.test_lora import learner_of

# Sums of a few hundred float32 products in another order; logits have a standard deviation near 1.
FLOAT32 = 1e-4
IDS = np.random.default_rng(5).integers(2, checkpoints.N_VOCAB, 3 * WINDOW).tolist()
FEW = ["qwen2moe", "gpt-oss", "deepseek v3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mixtures")


def file_of(folder: Path, family: str, type_name: str = "F32") -> Path:
    """The family's GGUF file, made once."""
    path = folder / f"{family}.{type_name}.gguf"
    if not path.exists():
        if type_name != "F32":
            quantize_file(file_of(folder, family), path, type_name)
        else:
            checkpoints.save(family, folder / family)
            assert convert(folder / family, path) == []
    return path


def logits_of(path: Path, **settings: Any) -> np.ndarray:
    with edgellm.load(path, n_threads=1, kv_type="f32", **settings) as model:
        return model.logits(IDS)


@pytest.mark.parametrize("family", MIXTURES)
def test_what_transformers_computes(family: str, folder: Path) -> None:
    path = file_of(folder, family)
    original = checkpoints.logits(checkpoints.load(folder / family).double(), IDS)
    assert original.std() > 0.3
    np.testing.assert_allclose(logits_of(path, activations="f32"), original, atol=FLOAT32)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize(("type_name", "activations"), [("F32", "f32"), ("Q8_0", "int8"), ("Q8_0", "f32")])
def test_the_same_bits_however_a_text_is_cut(family: str, type_name: str, activations: str, folder: Path) -> None:
    if activations == "f32" and type_name == "Q8_0" and family not in FEW:
        pytest.skip("the same kernels as in others")
    path = file_of(folder, family, type_name)
    whole = logits_of(path, activations=activations)
    assert np.isfinite(whole).all()
    for n_batch, n_threads in [(1, 1), (2, 2), (7, 1), (37, 2)]:
        with edgellm.load(path, n_batch=n_batch, n_threads=n_threads, kv_type="f32", activations=activations) as model:
            np.testing.assert_array_equal(model.logits(IDS), whole, err_msg=f"{n_batch=} {n_threads=}")


@pytest.mark.parametrize("family", FEW)
def test_experts_as_tiles_have_the_same_bits(family: str, folder: Path) -> None:
    path = file_of(folder, family, "Q8_0")
    whole = logits_of(path, layout="file")
    for n_batch in (1, 5, 512):
        with edgellm.load(path, layout="memory", n_batch=n_batch, n_threads=2, kv_type="f32") as model:
            stacks = [weight for weight in model._runner.layout.tiles if len(weight.shape) == 3]
            assert stacks and model.layout == "memory"
            np.testing.assert_array_equal(model.logits(IDS), whole)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_same_after_fork_and_trim(family: str, folder: Path) -> None:
    """A text that shares its beginning with one that was read before, and then the first one again."""
    with edgellm.load(file_of(folder, family, "Q8_0"), n_threads=1) as model:
        first = model.logits(IDS)
        other = IDS[:70] + IDS[:30]
        forked = model.logits(other)
        np.testing.assert_array_equal(model.logits(IDS), first)
        np.testing.assert_array_equal(forked[:70], first[:70])
    with edgellm.load(file_of(folder, family, "Q8_0"), n_threads=1) as model:
        np.testing.assert_array_equal(model.logits(other), forked)


@pytest.mark.parametrize("family", FEW)
def test_rounded_activations_stay_near(family: str, folder: Path) -> None:
    """For most tokens: where two experts are nearly as good, rounding may choose the other."""
    path = file_of(folder, family, "Q8_0")
    exact = logits_of(path, activations="f32")
    differences = np.abs(logits_of(path) - exact).mean(-1)
    assert 0 < np.median(differences) < 0.05 * exact.std()


def test_experts_chosen_can_be_seen(folder: Path) -> None:
    names = [f"blk.1.ffn_moe_{part}" for part in ("topk", "weights", "logits")]
    with edgellm.load(file_of(folder, "qwen3moe"), n_threads=1) as model:
        seen = model.run(IDS, taps=names)
    chosen, weights, logits = (seen[name] for name in names)
    order = np.argsort(-logits, -1, kind="stable")[:, :3]
    np.testing.assert_array_equal(chosen, order)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_before_2025_keys_and_values_were_made_by_one_matrix(folder: Path) -> None:
    """Files with `attn_kv_b` say the same as those in which it is taken apart."""
    path, old = file_of(folder, "deepseek v3"), folder / "old.gguf"
    with GGUFFile.open(path) as file:
        architecture = "deepseek2"
        metadata = {key: value for key, value in file.metadata.items() if not key.endswith("_length_mla")} | {
            f"{architecture}.attention.head_count_kv": file.metadata[f"{architecture}.attention.head_count"],
            f"{architecture}.attention.key_length": file.metadata[f"{architecture}.attention.key_length_mla"],
            f"{architecture}.attention.value_length": file.metadata[f"{architecture}.attention.value_length_mla"],
        }
        entries = []
        for name, tensor in file.tensors.items():
            x = tensor.dequantize()
            if name.endswith("attn_v_b.weight"):
                continue
            if name.endswith("attn_k_b.weight"):
                values = file.tensors[name.replace("attn_k_b", "attn_v_b")].dequantize()
                x = np.concatenate([x.swapaxes(1, 2), values], 1).reshape(-1, x.shape[1])
                name = name.replace("attn_k_b", "attn_kv_b")
            entries.append((name, x.shape, FORMATS["F32"], FORMATS["F32"].quantize(x)))
        GGUFWriter(old, metadata, entries).write()
    np.testing.assert_allclose(
        logits_of(old, activations="f32"), logits_of(path, activations="f32"), rtol=0, atol=FLOAT32
    )


# --- what cannot be -----------------------------------------------------------------------------------------


def changed(path: Path, target: Path, **metadata: Any) -> Path:
    with GGUFFile.open(path) as file:
        values = {key: value for key, value in (dict(file.metadata) | metadata).items() if value is not ...}
        GGUFWriter(target, values, [(t.name, t.shape, t.format, t.raw) for t in file.tensors.values()]).write()
    return target


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("expert_count", 7, r"'blk.0.ffn_gate_inp.weight' has shape \[8, 64\]; expected \[7, 64\]"),
        ("expert_count", 0, "expert_count is 0; expected a number from 1"),
        ("expert_count", 1 << 31, "expert_count is 2147483648; expected a number from 1 to 4096"),
        ("expert_count", ..., "expert_count"),
        ("expert_used_count", 9, "expert_used_count is 9, and there are 8 experts"),
        ("expert_used_count", 0, "expert_used_count is 0"),
        ("expert_feed_forward_length", 48, r"ffn_gate_exps.weight' has shape"),
        ("expert_group_count", 3, "cannot be chosen from"),
        ("expert_gating_func", 9, "expert_gating_func is 9"),
        ("expert_weights_norm", 3, "expert_weights_norm"),
    ],
)
def test_hyperparameters_that_cannot_be(key: str, value: Any, says: str, folder: Path, tmp_path: Path) -> None:
    path = changed(file_of(folder, "qwen3moe"), tmp_path / "wrong.gguf", **{f"qwen3moe.{key}": value})
    with pytest.raises(EdgellmError, match=says) as problem:
        edgellm.load(path)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("expert_count", 7, r"expected \[7, 64\]"),
        ("expert_count", 0, "no place for tensor 'blk.0.ffn_gate_inp"),
        ("expert_count", ..., "no place for tensor 'blk.0.ffn_gate_inp"),
        ("expert_used_count", 9, "expert_used_count is 9, and there are 8 experts"),
    ],
)
def test_experts_beside_a_feed_forward_that_cannot_be(
    key: str, value: Any, says: str, folder: Path, tmp_path: Path
) -> None:
    wrong = changed(file_of(folder, "gemma4"), tmp_path / "wrong.gguf", **{f"gemma4.{key}": value})
    with pytest.raises(EdgellmError, match=says) as problem:
        edgellm.load(wrong)
    assert "\n" not in str(problem.value)


def test_gates_and_ups_in_one_stack_are_those_of_two(folder: Path, tmp_path: Path) -> None:
    """As files may have them of any family."""
    path, fused = file_of(folder, "qwen3moe", "Q8_0"), tmp_path / "fused.gguf"
    with GGUFFile.open(path) as file:
        entries: list[Any] = []
        for name, tensor in file.tensors.items():
            if "ffn_gate_exps" in name:
                up = file.tensors[name.replace("gate", "up")]
                raw = np.concatenate([x.raw.reshape(8, 32, -1) for x in (tensor, up)], 1)
                entries.append((name.replace("gate", "gate_up"), (8, 64, 64), tensor.format, raw.reshape(8 * 64, -1)))
            elif "ffn_up_exps" not in name:
                entries.append((name, tensor.shape, tensor.format, tensor.raw))
        GGUFWriter(fused, dict(file.metadata), entries).write()
    np.testing.assert_array_equal(logits_of(fused), logits_of(path))


def test_experts_in_a_family_that_has_none(folder: Path, tmp_path: Path) -> None:
    checkpoints.save("qwen3", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "dense.gguf")
    wrong = changed(tmp_path / "dense.gguf", tmp_path / "wrong.gguf", **{"qwen3.expert_count": 8})
    with pytest.raises(UnsupportedError, match="a mixture of experts"):
        edgellm.load(wrong)


def test_training_is_refused_by_name(folder: Path) -> None:
    """Where keys and values are made of what the cache keeps."""
    says = r"training through a node of the kind \w+ is not built yet"
    with (
        edgellm.load(file_of(folder, "deepseek v3"), n_threads=1) as model,
        pytest.raises(UnsupportedError, match=says),
    ):
        learner_of(model).close()


def test_a_missing_router(folder: Path, tmp_path: Path) -> None:
    with GGUFFile.open(file_of(folder, "olmoe")) as file:
        entries = [
            (t.name, t.shape, t.format, t.raw) for t in file.tensors.values() if "blk.1.ffn_gate_inp" not in t.name
        ]
        GGUFWriter(tmp_path / "wrong.gguf", dict(file.metadata), entries).write()
    with pytest.raises(FormatError, match=r"no tensor 'blk.1.ffn_gate"):
        edgellm.load(tmp_path / "wrong.gguf")


@pytest.mark.parametrize("family", ["llama", "gemma4"])
def test_a_dense_model_starts_without_any_of_it(family: str, tmp_path: Path) -> None:
    """Though files with experts may have the same architecture."""
    if family == "llama":
        checkpoints.save(family, tmp_path / "model")
    else:
        families.model_of(family).save_pretrained(tmp_path / "model")
        checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "dense.gguf")
    program = (
        "import sys, edgellm; edgellm.load(sys.argv[1], n_threads=1).logits([2, 3]);"
        "print([name for name in sys.modules if 'experts' in name or 'mixt' in name])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "dense.gguf"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


def test_a_tensor_for_each_expert_as_in_files_of_2023(folder: Path, tmp_path: Path) -> None:
    with GGUFFile.open(file_of(folder, "mixtral")) as file:
        entries: list[Any] = []
        for name, x in file.tensors.items():
            if "_exps" not in name:
                entries.append((name, x.shape, x.format, x.raw))
                continue
            for expert, raw in enumerate(x.raw.reshape(x.shape[0], x.shape[1], -1)):
                entries.append((name.replace("_exps", f".{expert}"), x.shape[1:], x.format, np.ascontiguousarray(raw)))
        GGUFWriter(tmp_path / "old.gguf", dict(file.metadata), entries).write()
    with pytest.raises(UnsupportedError, match=r"a tensor for each expert \('blk\.0\.ffn_gate\.0\.weight' and so on\)"):
        edgellm.load(tmp_path / "old.gguf")
