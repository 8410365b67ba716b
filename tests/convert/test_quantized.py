"""Checkpoints that are quantized already: their weights arrive as they are, or the loss is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.huggingface import read_huggingface
from edgellm.convert.quantized.bits import unpack
from edgellm.convert.quantized.small_floats import values_of
from edgellm.errors import EdgellmError, FormatError, UnsupportedError
from edgellm.formats.gguf import GGUFFile

from . import checkpoints
from .checkpoints import edit_json
from .quantized_folders import AWQ, GROUP, awq, gptq, gptq_config, quantize_folder, words

Weights = dict[str, np.ndarray]
HALF = 2.0**-11  # a number rounded to float16, relative

_OURS = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate", "up": "ffn_up",
         "down": "ffn_down"}  # fmt: skip


def read(path: Path) -> tuple[Weights, dict[str, str]]:
    """The weights of a GGUF file under Hugging Face's names, in its order of rows, and their types."""
    found, types = {}, {}
    with GGUFFile.open(path) as file:
        for name, tensor in file.tensors.items():
            for theirs, ours in _OURS.items():
                if name.endswith(f".{ours}.weight"):
                    block = "mlp" if ours.startswith("ffn") else "self_attn"
                    full = f"model.layers.{name.split('.')[1]}.{block}.{theirs}_proj.weight"
                    x = tensor.dequantize()
                    if ours in ("attn_q", "attn_k"):  # rotary pairs are neighbours in GGUF
                        heads = 4 if ours == "attn_q" else 2
                        x = x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
                    found[full], types[full] = x, tensor.format.name
    return found, types


def check(folder: Path, meant: Weights, has: str, tolerance: float = 0.0, **options: Any) -> list[str]:
    target = folder.parent / "out.gguf"
    notes = convert(folder, target, **options)
    found, types = read(target)
    assert found.keys() == meant.keys() and len(found) == 21
    for name, x in found.items():
        np.testing.assert_allclose(x, meant[name], rtol=0, atol=tolerance * np.abs(meant[name]).max() or 0)
    assert set(types.values()) == {has}
    return notes


@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 70), st.randoms(use_true_random=False))
def test_integers_of_a_few_bits_are_taken_out_of_words(bits: int, n: int, count: int, random: Any) -> None:
    q = np.array([[random.randrange(1 << bits) for _ in range(count)] for _ in range(n)])
    np.testing.assert_array_equal(unpack(words(q, bits).numpy(), bits, count), q)


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize(("bits", "type_name"), [(2, "Q4_0"), (3, "Q4_0"), (4, "Q4_0"), (8, "Q8_0")])
def test_symmetric_gptq_keeps_every_bit(bits: int, type_name: str, form: str, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", gptq(bits, True, form), gptq_config(bits, form))
    assert check(tmp_path / "model", meant, type_name) == []


@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_asymmetric_gptq_rounds_only_its_minima(form: str, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", gptq(4, False, form), gptq_config(4, form))
    (note,) = check(tmp_path / "model", meant, "Q4_1", HALF)
    assert note == "GPTQ: minima of 21 matrices are rounded to float16 (by 0.05 % at most)"
    check(tmp_path / "model", meant, "F32", type_name="F32")  # without a grid nothing is rounded


@pytest.mark.parametrize("bits", [2, 3])
def test_few_bits_with_zeros_of_their_own_keep_every_bit(bits: int, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", gptq(bits, False), gptq_config(bits))
    assert check(tmp_path / "model", meant, "Q4_0") == []


def test_eight_bits_with_zeros_of_their_own_become_floats(tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", gptq(8, False), gptq_config(8))
    (note,) = check(tmp_path / "model", meant, "F16", HALF)
    assert "a range or scales that no type has: model.layers.0" in note and "and 20 more became F16" in note
    check(tmp_path / "model", meant, "Q8_0", 0.01, type_name="Q8_0")


@pytest.mark.parametrize("group", [64, -1])
def test_groups_of_any_number_of_blocks(group: int, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", gptq(4, True, group=group), gptq_config(4, group=group))
    assert check(tmp_path / "model", meant, "Q4_0") == []


def test_an_activation_order(tmp_path: Path) -> None:
    """In whole blocks it is kept; scattered over columns it is refused, and dequantized for whoever names a type."""
    config = gptq_config(4, desc_act=True)
    meant = quantize_folder(tmp_path / "blocks", gptq(4, True, order="blocks"), config)
    assert check(tmp_path / "blocks", meant, "Q4_0") == []
    meant = quantize_folder(tmp_path / "act", gptq(4, True, order="act"), config)
    with pytest.raises(
        UnsupportedError, match=r"GPTQ: tensor 'model\.layers\.\d\..*: desc_act scatters .* --type Q8_0"
    ):
        convert(tmp_path / "act", tmp_path / "out.gguf")
    assert not (tmp_path / "act.gguf").exists()
    check(tmp_path / "act", meant, "F32", type_name="F32")


def test_biases_of_zeros_where_the_family_has_none(tmp_path: Path) -> None:
    """Some quantizers give every linear one; one that says something is not dropped."""
    meant = quantize_folder(tmp_path / "model", gptq(4, True), gptq_config(4))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    biases = {f"{name.removesuffix('.weight')}.bias": torch.zeros(len(x)).half() for name, x in meant.items()}
    save_file(tensors | biases, path)
    assert check(tmp_path / "model", meant, "Q4_0") == []
    biases["model.layers.2.mlp.down_proj.bias"] += 1
    save_file(tensors | biases, path)
    with pytest.raises(FormatError, match=r"has tensor .*down_proj\.bias'.*mlp_bias"):
        convert(tmp_path / "model", tmp_path / "out.gguf")


def test_a_folder_of_the_first_years(tmp_path: Path) -> None:
    """Its settings stand in a file of their own, and g_idx may be missing."""
    meant = quantize_folder(tmp_path / "model", gptq(4, True), None)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors = {name: x for name, x in tensors.items() if not name.endswith("g_idx")}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": GROUP, "sym": True}))
    assert check(tmp_path / "model", meant, "Q4_0") == []


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(symmetric: bool, tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", awq(symmetric), AWQ)
    notes = check(tmp_path / "model", meant, "Q4_0" if symmetric else "Q4_1", 0 if symmetric else HALF)
    assert len(notes) == (not symmetric)


def test_a_quantized_model_says_what_its_weights_mean(tmp_path: Path) -> None:
    """Of every part, rows in another order too: as the model with the dequantized weights says."""
    from . import checkpoints

    meant = quantize_folder(tmp_path / "model", awq(True), AWQ)
    model = checkpoints.model_of("llama").half().float()
    with torch.no_grad():
        for name, x in meant.items():
            model.get_parameter(name).copy_(torch.from_numpy(x))
    convert(tmp_path / "model", tmp_path / "out.gguf")
    ids = list(range(2, 60))
    with edgellm.load(tmp_path / "out.gguf", n_threads=1, kv_type="f32", activations="f32") as loaded:
        np.testing.assert_allclose(
            loaded.logits(ids), checkpoints.logits(model, ids), atol=5e-3
        )  # keys in halves there


def test_a_type_that_is_named_is_made(tmp_path: Path) -> None:
    meant = quantize_folder(tmp_path / "model", gptq(4, True), gptq_config(4))
    check(tmp_path / "model", meant, "Q8_0", 0.01, type_name="Q8_0")
    check(tmp_path / "model", meant, "F16", HALF, type_name="F16")


# --- compressed-tensors and FP8 -----------------------------------------------------------------------------------


def compressed(**weights: Any) -> Any:
    """A packer of compressed-tensors' own; its dequantizer says what the weights mean."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    form = weights.pop("form")
    scale_type = weights.pop("scale_type", torch.float16)
    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)

    def pack(w: np.ndarray, name: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        x = torch.from_numpy(w)
        if args.strategy == "group":
            parts = x.reshape(len(x), -1, args.group_size)
            low, high = parts.amin(2), parts.amax(2)
        elif args.strategy == "channel":
            low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        elif args.strategy == "block":
            rows, columns = args.block_structure
            parts = x.reshape(len(x) // rows, rows, -1, columns)
            low, high = parts.amin((1, 3)), parts.amax((1, 3))
        else:
            low, high = x.amin().reshape(1), x.amax().reshape(1)
        scale, zero = calculate_qparams(low, high, args)
        state = {"weight": x, "weight_scale": scale.to(scale_type), "weight_zero_point": zero.to(torch.int8)}
        state["weight_scale"] = state["weight_scale"].to(torch.float32)  # its arithmetic asks for one type
        packed = compressor.compress(dict(state), scheme)
        meant = compressor.decompress(dict(packed), scheme)["weight"].float().numpy()
        packed["weight_scale"] = packed["weight_scale"].to(scale_type)
        return packed, meant

    return pack


def compressed_config(form: str) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"]}}, "ignore": ["lm_head"]}  # fmt: skip


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_pack_quantized(bits: int, symmetric: bool, tmp_path: Path) -> None:
    pack = compressed(form="pack-quantized", num_bits=bits, symmetric=symmetric, strategy="group", group_size=GROUP)
    meant = quantize_folder(tmp_path / "model", pack, compressed_config("pack-quantized"))
    exact = {2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}
    rounded = {**exact, 4: "Q4_1", 5: "Q5_1", 8: "F16"}
    type_name = exact[bits] if symmetric else rounded[bits]
    check(tmp_path / "model", meant, type_name, 0 if type_name == exact[bits] else HALF)


@pytest.mark.parametrize("strategy", ["channel", "group"])
def test_int_quantized(strategy: str, tmp_path: Path) -> None:
    size = {"group_size": GROUP} if strategy == "group" else {}
    pack = compressed(form="int-quantized", num_bits=8, symmetric=True, strategy=strategy, **size)
    meant = quantize_folder(tmp_path / "model", pack, compressed_config("int-quantized"))
    assert check(tmp_path / "model", meant, "Q8_0") == []


def test_scales_that_are_no_halves_are_rounded_and_that_is_said(tmp_path: Path) -> None:
    pack = compressed(form="int-quantized", num_bits=8, symmetric=True, strategy="channel", scale_type=torch.float32)
    meant = quantize_folder(tmp_path / "model", pack, compressed_config("int-quantized"))
    (note,) = check(tmp_path / "model", meant, "Q8_0", HALF)
    assert note == "compressed-tensors: scales of 21 matrices are rounded to float16 (by 0.05 % at most)"


@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_float_quantized(strategy: str, tmp_path: Path) -> None:
    block = {"block_structure": [16, 32]} if strategy == "block" else {}
    pack = compressed(form="float-quantized", num_bits=8, type="float", symmetric=True, strategy=strategy, **block)
    config = compressed_config("float-quantized")
    meant = quantize_folder(tmp_path / "model", pack, config)
    check(tmp_path / "model", meant, "F32", type_name="F32")
    (note,) = check(tmp_path / "model", meant, "F16", HALF)
    assert "GGUF has no type for FP8" in note


def fp8(block: int) -> Any:
    """DeepSeek's form: a scale for each block of rows and columns, the last ones smaller."""

    def pack(w: np.ndarray, name: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
        padded = np.pad(w, [(0, -n % block) for n in w.shape])
        parts = np.abs(padded).reshape(len(padded) // block, block, -1, block)
        scales = torch.from_numpy(parts.max((1, 3)) / np.float32(448))
        wide = scales.repeat_interleave(block, 0).repeat_interleave(block, 1)[: len(w), : w.shape[1]]
        x = (torch.from_numpy(w) / wide).to(torch.float8_e4m3fn)
        packed = {"weight": x, "weight_scale_inv": scales, "input_scale": torch.ones(1)}
        return packed, (x.float() * wide).numpy()

    return pack


def test_fp8_with_scales_for_blocks(tmp_path: Path) -> None:
    config = {"quant_method": "fp8", "weight_block_size": [40, 40], "activation_scheme": "dynamic"}
    meant = quantize_folder(tmp_path / "model", fp8(40), config)
    notes = check(tmp_path / "model", meant, "F32", type_name="F32")
    assert notes == ["FP8: left out 21 tensors of scales of activations: edgellm chooses how activations and the cache "
                     "are kept"]  # fmt: skip
    check(tmp_path / "model", meant, "BF16", 2.0**-8)
    check(tmp_path / "model", meant, "Q8_0", 0.01, type_name="Q8_0")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "GPTQ"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors"),
        ({"quant_method": "compressed-tensors", "format": "dense"}, None),
    ],
)
def test_floats_of_which_config_json_says_that_they_are_quantized(tmp_path: Path, config, kind: str | None) -> None:
    """They are read as they are, become of the usual type, and that is told."""
    folder = tmp_path / "model"
    checkpoints.save("llama", folder)
    edit_json(folder / "config.json", quantization_config=config)
    source = read_huggingface(folder)
    try:
        told = [note for note in source.notes if "none of them is" in note]
        assert [f"are quantized ({kind})" in note for note in told] == ([True] if kind else [])
        assert not source.keeps_types
    finally:
        source.close()


@pytest.mark.parametrize(("kind", "dtype"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_every_byte_of_a_small_float(kind: str, dtype: torch.dtype) -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(values_of(kind), expected)


# --- matrices that GGUF has in another form -------------------------------------------------------------------------


def test_linears_that_lie_across_do_not_where_they_are_quantized(tmp_path: Path) -> None:
    """GPT-2's are [n_in, n_out]; what quantizes them saves [n_out, n_in], and square ones do not show it."""
    shape = {"vocab_size": checkpoints.N_VOCAB, "n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 128}
    config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    checkpoints.tokenizer().save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))]:
        packed, meant = gptq(4, True)(tensors.pop(name).T.numpy().copy(), name)
        tensors |= {f"{name.removesuffix('.weight')}.{last}": x.contiguous() for last, x in packed.items()}
        with torch.no_grad():
            model.get_parameter(name).copy_(torch.from_numpy(meant).T)
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    edit_json(tmp_path / "model" / "config.json", quantization_config=gptq_config(4))
    assert convert(tmp_path / "model", tmp_path / "out.gguf") == []
    ids = list(range(2, 60))
    with edgellm.load(tmp_path / "out.gguf", n_threads=1, kv_type="f32", activations="f32") as loaded:
        np.testing.assert_allclose(loaded.logits(ids), checkpoints.logits(model, ids), atol=1e-4)


def test_what_is_taken_apart_across_its_blocks_asks_for_a_type(tmp_path: Path) -> None:
    """Keys and values of latent attention are one matrix in a checkpoint and two, one of them across, in GGUF."""
    checkpoints.save("deepseek v3", tmp_path / "model", torch.float16)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("kv_b_proj.weight")]:
        packed, _ = gptq(4, True, group=-1)(tensors.pop(name).float().numpy(), name)
        tensors |= {f"{name.removesuffix('.weight')}.{last}": x.contiguous() for last, x in packed.items()}
    save_file(tensors, path, {"format": "pt"})
    edit_json(tmp_path / "model" / "config.json", quantization_config=gptq_config(4, group=-1))
    with pytest.raises(UnsupportedError, match=r"kv_b_proj\.weight' is Q4_0, .* --type Q8_0, or Q4_K_M"):
        convert(tmp_path / "model", tmp_path / "out.gguf")
    convert(tmp_path / "model", tmp_path / "out.gguf", "Q8_0")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quant_method": "hqq"}, r"quantized already \('hqq'\); edgellm converts gptq, awq, .*: convert the original"),
        ({"quant_method": 3}, r"quantized already \(3\)"),
        ({"quant_method": ["gptq"]}, r"quantized already \(\['gptq'\]\)"),
        ({"quant_method": None}, r"does not say how the weights are quantized \(quant_method\)"),
        ({"quant_method": "gptq", "bits": 5}, r"GPTQ: tensor 'model.*"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, r"its form of GPTQ is 'marlin'; edgellm conv"),
        ({"quant_method": "awq", "version": "gemv"}, r"its form of AWQ is 'gemv'; edgellm converts gemm"),
        ({"quant_method": "awq", "bits": 8}, r"it is AWQ of 8 bits; edgellm converts AWQ of 4"),
        ({"quant_method": "awq"}, r"AWQ: model.*do not belong together"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, r"'marlin-24'; edgellm converts pack-"),
        ({"quant_method": "compressed-tensors", "format": "dense", "sparsity_config": {"format": "sparse-bitmask"}},
         r"its weights are sparse"),
    ],
)  # fmt: skip
def test_what_nobody_can_convert_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    quantize_folder(tmp_path / "model", gptq(4, True), {**gptq_config(4), **changes})
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    if changes.get("bits") == 5:  # of five bits there are as many words as five bits take
        for name in [name for name in tensors if name.endswith("qweight")]:
            tensors[name] = tensors[name].repeat(2, 1)[: len(tensors[name]) * 5 // 4].contiguous()
        save_file(tensors, tmp_path / "model" / "model.safetensors")
    is_broken = "belong" in said or "does not say" in said
    with pytest.raises(FormatError if is_broken else UnsupportedError, match=said):
        convert(tmp_path / "model", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
@pytest.mark.parametrize("damage", ["missing", "type", "shape", "values"])
def test_hostile_parts_give_one_clear_line(part: str, damage: str, tmp_path: Path) -> None:
    quantize_folder(tmp_path / "model", gptq(4, True), gptq_config(4))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    name = f"model.layers.1.mlp.up_proj.{part}"
    if damage == "missing":
        del tensors[name]
    elif damage == "type":
        tensors[name] = tensors[name].to(torch.int16)
    elif damage == "shape":
        tensors[name] = tensors[name][:-1].contiguous()
    elif part == "scales":
        tensors[name][0, 0] = float("nan")
    elif part == "g_idx":
        tensors[name][5] = -3
    save_file(tensors, path)
    if (part, damage) in {("qweight", "values"), ("qzeros", "values"), ("g_idx", "missing")}:
        convert(tmp_path / "model", tmp_path / "out.gguf")  # any bits are some number; groups in order need no list
        return
    with pytest.raises(EdgellmError) as caught:
        convert(tmp_path / "model", tmp_path / "out.gguf")
    assert str(caught.value).count("\n") == 0 and "up_proj" in str(caught.value)


def test_a_weight_that_is_there_twice(tmp_path: Path) -> None:
    quantize_folder(tmp_path / "model", gptq(4, True), gptq_config(4))
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(96, 64)
    save_file(tensors, path)
    with pytest.raises(FormatError, match=r"holds 'model\.layers\.0\.mlp\.up_proj\.weight' twice"):
        convert(tmp_path / "model", tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (None, r"up_proj\.weight' is F8_E4M3, and the checkpoint has no scale for it \(.*weight_scale or .*_inv\)"),
        (torch.ones(3, 2).to(torch.float8_e8m0fnu), r"up_proj\.weight_scale_inv' is F8_E8M0; expected F32, F16 or"),
    ],
)
def test_small_floats_without_a_scale_that_can_be_read(scale: torch.Tensor | None, said: str, tmp_path: Path) -> None:
    checkpoints.save("llama", tmp_path / "model")
    path, name = tmp_path / "model" / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(path)
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors | ({} if scale is None else {f"{name}_scale_inv": scale}), path)
    edit_json(tmp_path / "model" / "config.json", quantization_config={"quant_method": "fp8"})
    with pytest.raises(FormatError, match=said):
        convert(tmp_path / "model", tmp_path / "out.gguf")


def test_a_quantized_folder_that_does_not_say_so(tmp_path: Path) -> None:
    quantize_folder(tmp_path / "model", gptq(4, True), gptq_config(4))
    edit_json(tmp_path / "model" / "config.json", quantization_config=...)
    with pytest.raises(UnsupportedError, match=r"' is I32; edgellm converts weights in F32, F16 and BF16"):
        convert(tmp_path / "model", tmp_path / "out.gguf")
