"""Checkpoints of every family: converted, exported and converted again, they say what transformers says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint as convert
from edgellm.convert.export import export_checkpoint as export
from edgellm.convert.quantize import quantize_file
from edgellm.errors import EdgellmError, FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.formats.gguf import GGUFFile

from . import checkpoints
from .checkpoints import FAMILIES, WINDOW

# Sums of a few hundred float32 products in another order; logits have a standard deviation near 3.
SAME_LOGITS = 1e-3
IDS = np.random.default_rng(5).integers(2, checkpoints.N_VOCAB, 3 * WINDOW).tolist()


def own_logits(path: Path) -> np.ndarray:
    with edgellm.load(path, n_threads=1, kv_type="f32") as model:
        return model.logits(IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_converted_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = checkpoints.save(family, tmp_path / "model")
    assert convert(tmp_path / "model", tmp_path / "out.gguf") == []
    expected = checkpoints.logits(model, IDS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(own_logits(tmp_path / "out.gguf"), expected, atol=SAME_LOGITS)


@pytest.mark.parametrize("family", FAMILIES)
def test_export_is_what_was_converted(family: str, tmp_path: Path) -> None:
    model = checkpoints.save(family, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out.gguf")
    export(tmp_path / "out.gguf", tmp_path / "again", "f32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    if family != "mistral, no window":  # which is a Llama
        assert type(again) is type(model)
    np.testing.assert_allclose(checkpoints.logits(again, IDS), checkpoints.logits(model, IDS), atol=SAME_LOGITS)
    convert(tmp_path / "again", tmp_path / "again.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as first, GGUFFile.open(tmp_path / "again.gguf") as second:
        assert list(first.tensors) == list(second.tensors)
        for name, tensor in first.tensors.items():
            # Gemma's norms lose a last bit to the one that is taken off and added again; Llama 3's factors to a fit.
            tolerance = 1e-3 if name == "rope_freqs.weight" else 2e-7
            np.testing.assert_allclose(tensor.dequantize(), second.tensors[name].dequantize(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_checkpoint_in_bfloat16_keeps_every_bit(family: str, tmp_path: Path) -> None:
    model = checkpoints.save(family, tmp_path / "model", torch.bfloat16)
    convert(tmp_path / "model", tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert {tensor.format.name for tensor in file.tensors.values() if len(tensor.shape) == 2} == {"BF16"}
    np.testing.assert_allclose(own_logits(tmp_path / "out.gguf"), checkpoints.logits(model, IDS), atol=SAME_LOGITS)


def test_shards_and_pickles_give_the_same_file(tmp_path: Path) -> None:
    model = checkpoints.save("llama", tmp_path / "one")
    checkpoints.save("llama", tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shutil.copytree(tmp_path / "one", tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    for kind in ("one", "shards", "pickle"):
        checkpoints.edit_json(tmp_path / kind / "config.json", _name_or_path="tiny")
        convert(tmp_path / kind, tmp_path / f"{kind}.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "shards.gguf").read_bytes()
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "pickle.gguf").read_bytes()


def test_old_names_in_config_json(tmp_path: Path) -> None:
    """rope_theta and rope_scaling beside the rest, as transformers 4 wrote them."""
    checkpoints.save("llama 3, scaled rope", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "new.gguf")
    rope = json.loads((tmp_path / "model" / "config.json").read_text())["rope_parameters"]
    base, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    checkpoints.edit_json(tmp_path / "model" / "config.json", rope_parameters=..., rope_theta=base,
                          rope_scaling=rope | {"type": kind})  # fmt: skip
    convert(tmp_path / "model", tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


def test_a_language_model_inside_one_that_sees(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    checkpoints.save("gemma3", folder)
    convert(folder, tmp_path / "text.gguf")
    tensors = {name.replace("model.", "model.language_model.", 1): x
               for name, x in load_file(folder / "model.safetensors").items()}  # fmt: skip
    tensors["model.vision_tower.patch.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config, "model_type": "gemma3"}
    (folder / "config.json").write_text(json.dumps(whole))
    (note,) = convert(folder, tmp_path / "seeing.gguf")
    assert "left out 1 tensors" in note
    np.testing.assert_array_equal(own_logits(tmp_path / "seeing.gguf"), own_logits(tmp_path / "text.gguf"))


def test_weights_that_were_saved_with_what_wraps_the_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoints.save("llama", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({f"_orig_mod.{name}": x for name, x in load_file(path).items()}, path)
    with pytest.raises(UnsupportedError, match=r"none of the 30 tensors .*'_orig_mod\..*'model\.embed_tokens\.weight'"):
        convert(tmp_path / "model", tmp_path / "out.gguf")


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    checkpoints.save("qwen3", tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "out.gguf")
    export(tmp_path / "out.gguf", tmp_path / "again")
    text = "def f(x):\n    return x + 1  # für alle 123 🙂"
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")(text, add_special_tokens=False).input_ids
    assert edgellm.load_tokenizer(tmp_path / "out.gguf").encode(text) == ids
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(text, add_special_tokens=False).input_ids == ids


def test_what_the_model_card_says(tmp_path: Path) -> None:
    checkpoints.save("llama", tmp_path / "model")
    card = "---\nlicense: apache-2.0\nlanguage: en\ntags: [a, b]\nbase_model: some/base\n---\n# A model\n"
    (tmp_path / "model" / "README.md").write_text(card)
    convert(tmp_path / "model", tmp_path / "out.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert file.get("general.license", str) == "apache-2.0"
        assert list(file.metadata["general.tags"]) == ["a", "b"]
        assert list(file.metadata["general.languages"]) == ["en"]
        assert file.get("general.base_model.0.repo_url", str) == "https://huggingface.co/some/base"


def edit_tensors(folder: Path, **changes: Any) -> None:
    """Change tensors of a checkpoint, whose names have "__" for dots; None takes one away."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors |= {name.replace("__", "."): x for name, x in changes.items()}
    kept = {name: x.contiguous() for name, x in tensors.items() if x is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama, tied", "gemma3"])
def test_an_output_matrix_that_only_config_json_ties(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    embedding = checkpoints.save(family, folder).get_input_embeddings().weight.detach()
    edit_tensors(folder, lm_head__weight=(embedding.flip(0) * 0.5).to(dtype))
    (note,) = convert(folder, tmp_path / "out.gguf")
    assert "lm_head.weight" in note and "model.embed_tokens.weight" in note and "tie_word_embeddings" in note
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.testing.assert_allclose(own_logits(tmp_path / "out.gguf"), checkpoints.logits(model, IDS), atol=SAME_LOGITS)


def test_a_second_copy_of_tied_embeddings_is_not_kept(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    embedding = checkpoints.save("llama, tied", folder).get_input_embeddings().weight.detach().clone()
    convert(folder, tmp_path / "one.gguf")
    halves = embedding.to(torch.bfloat16)
    for first, second in ((embedding, embedding.clone()), (halves, halves.float()), (None, embedding)):
        edit_tensors(folder, model__embed_tokens__weight=first, lm_head__weight=second)
        assert convert(folder, tmp_path / "two.gguf") == []
        with GGUFFile.open(tmp_path / "two.gguf") as file:
            assert "output.weight" not in file.tensors
    np.testing.assert_array_equal(own_logits(tmp_path / "two.gguf"), own_logits(tmp_path / "one.gguf"))


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_biases_come_and_go(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of families whose published models have none."""
    model_class, config_class, changes = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, family, (model_class, config_class, changes | {"attention_bias": True}))
    model = checkpoints.save(family, tmp_path / "model")
    assert convert(tmp_path / "model", tmp_path / "out.gguf") == []
    np.testing.assert_allclose(own_logits(tmp_path / "out.gguf"), checkpoints.logits(model, IDS), atol=SAME_LOGITS)
    export(tmp_path / "out.gguf", tmp_path / "again", "f32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    np.testing.assert_allclose(checkpoints.logits(again, IDS), checkpoints.logits(model, IDS), atol=SAME_LOGITS)


# --- tokens without a row, rows without a token -------------------------------------------------------------


@pytest.mark.parametrize("added", [["<pad>"], ["[PAD]", "<|extra|>", "plain words"]])
def test_added_tokens_without_a_row(added: list[str], tmp_path: Path) -> None:
    """As in Alpaca and its like: a padding token was added for training, and the embedding never grew."""
    folder = tmp_path / "model"
    model = checkpoints.save("llama", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": added[0]})
    tokenizer.add_tokens(added[1:])
    tokenizer.save_pretrained(folder)
    (note,) = convert(folder, tmp_path / "out.gguf")
    assert repr(added[0]) in note and str(checkpoints.N_VOCAB) in note
    quantize_file(tmp_path / "out.gguf", tmp_path / "q8.gguf", "Q8_0")
    export(tmp_path / "out.gguf", tmp_path / "again", "f32")
    convert(tmp_path / "again", tmp_path / "again.gguf")
    for name in ("out", "q8", "again"):
        with edgellm.load(tmp_path / f"{name}.gguf", n_threads=1, kv_type="f32") as own:
            assert own.logits(IDS).shape[1] == own.n_vocab == checkpoints.N_VOCAB
            for i, text in enumerate(added):
                assert own.tokenize(f"a{text}", parse_special=True)[-1] == checkpoints.N_VOCAB + i
            for use in (own.logits, own.generate):
                with pytest.raises(UsageError, match=re.escape(repr(added[0]))):
                    use([*IDS, checkpoints.N_VOCAB])
            with pytest.raises(UsageError, match=re.escape(repr(added[0]))):
                own.generate(f"a {added[0]}")
            answer = own.generate("def f", max_tokens=40, temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=1)
            "".join(answer)
            assert max(answer.token_ids) < checkpoints.N_VOCAB
    np.testing.assert_allclose(own_logits(tmp_path / "out.gguf"), checkpoints.logits(model, IDS), atol=SAME_LOGITS)


def test_rows_without_a_token(tmp_path: Path) -> None:
    """Embeddings are often rounded up to a multiple of 64."""
    folder = tmp_path / "model"
    model = checkpoints.save("llama", folder)
    model.resize_token_embeddings(checkpoints.N_VOCAB + 61)
    model.save_pretrained(folder)
    assert convert(folder, tmp_path / "out.gguf") == []
    np.testing.assert_allclose(own_logits(tmp_path / "out.gguf"), checkpoints.logits(model, IDS), atol=SAME_LOGITS)


@pytest.mark.parametrize(("more", "words"), [(-8, "the 8 behind them are kept too"), (40, "no tokens behind them")])
def test_another_number_of_rows_than_config_json_says_is_told(more: int, words: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    checkpoints.save("llama", folder)
    n = checkpoints.N_VOCAB
    checkpoints.edit_json(folder / "config.json", vocab_size=n + more)
    (note,) = convert(folder, tmp_path / "out.gguf")
    assert f"vocab_size {n + more}, but the embedding has {n} rows" in note and words in note
    assert GGUFFile(tmp_path / "out.gguf").metadata["llama.vocab_size"] == n


# --- what cannot be converted -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    checkpoints.save("llama", folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(folder: Path, kind: type[EdgellmError], *words: str) -> None:
    """Converting ends in one line that has these words, and leaves nothing behind."""
    with pytest.raises(kind) as raised:
        convert(folder, folder.parent / "out" / "bad.gguf")
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    assert not any((folder.parent / "out").glob("*"))


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, UnsupportedError, ("MambaForCausalLM", "LlamaForCausalLM")),
        ({"architectures": ...}, FormatError, ("architectures",)),
        ({"architectures": []}, FormatError, ("architectures",)),
        ({"architectures": [7]}, FormatError, ("architectures",)),
        ({"quantization_config": {"quant_method": "of tomorrow"}}, UnsupportedError, ("of tomorrow",)),
        ({"hidden_act": "relu"}, UnsupportedError, ("hidden_act", "relu")),
        ({"hidden_size": 63}, FormatError, ("shape", "model.embed_tokens.weight")),
        ({"hidden_size": "64"}, FormatError, ("hidden_size",)),
        ({"hidden_size": -64}, FormatError, ("hidden_size",)),
        ({"num_hidden_layers": ...}, FormatError, ("num_hidden_layers", "missing")),
        ({"num_hidden_layers": 4}, FormatError, ("model.layers.3.",)),
        ({"num_hidden_layers": 2}, UnsupportedError, ("model.layers.2.",)),
        ({"num_hidden_layers": 10**9}, FormatError, ("num_hidden_layers",)),
        ({"num_key_value_heads": 3}, FormatError, ("heads",)),
        ({"intermediate_size": 97}, FormatError, ("model.layers.0.mlp.gate_proj.weight", "shape")),
        ({"rms_norm_eps": float("1e400")}, FormatError, ("config.json",)),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, UnsupportedError, ("spiral",)),
        ({"rope_parameters": [1]}, FormatError, ("rope_parameters",)),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 0}}, FormatError, ("factor",)),
        ({"partial_rotary_factor": 0.5}, UnsupportedError, ("partial_rotary_factor",)),
    ],
)
def test_a_config_that_cannot_be(folder: Path, changes: dict, kind: type[EdgellmError], words: tuple[str, ...]) -> None:
    checkpoints.edit_json(folder / "config.json", **changes)
    refused(folder, kind, str(folder), *words)


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_that_config_json_does_not_know_of(key: str, tmp_path: Path) -> None:
    """transformers leaves them out, and with them what the model has learned."""
    checkpoints.save("llama, biases", tmp_path / "model")
    checkpoints.edit_json(tmp_path / "model" / "config.json", **{key: ...})
    refused(tmp_path / "model", FormatError, "model.layers.0.", "proj.bias", key)


def test_biases_that_are_missing(folder: Path, tmp_path: Path) -> None:
    checkpoints.edit_json(folder / "config.json", attention_bias=True)
    refused(folder, FormatError, "model.layers.0.self_attn.q_proj.bias", "attention_bias")
    checkpoints.save("qwen2", tmp_path / "qwen")
    edit_tensors(tmp_path / "qwen", model__layers__2__self_attn__v_proj__bias=None)
    refused(tmp_path / "qwen", FormatError, "model.layers.2.self_attn.v_proj.bias")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    checkpoints.edit_json(folder / "tokenizer.json", model=words["model"] | {
        "vocab": words["model"]["vocab"] | {"beyond": checkpoints.N_VOCAB}})  # fmt: skip
    refused(folder, FormatError, "'beyond'", str(checkpoints.N_VOCAB))
    far = {"id": 10**8, "content": "<far>", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False}  # fmt: skip
    checkpoints.edit_json(folder / "tokenizer.json", model=words["model"], added_tokens=[*words["added_tokens"], far])
    refused(folder, FormatError, "'<far>'", str(10**8))


def test_what_is_written_is_opened_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever went wrong while it was written, the file that was there stays."""
    from edgellm.convert import huggingface

    def with_a_token_twice(*args: Any) -> dict[str, Any]:
        found = tokenizer_metadata(*args)
        found["tokenizer.ggml.tokens"][7] = found["tokenizer.ggml.tokens"][8]
        return found

    tokenizer_metadata = huggingface.tokenizer_metadata
    out = folder.parent / "out.gguf"
    out.write_bytes(b"old")
    monkeypatch.setattr(huggingface, "tokenizer_metadata", with_a_token_twice)
    with pytest.raises(FormatError, match="tokens 7 and 8"):
        convert(folder, out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "out.gguf"]


def test_what_is_exported_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(folder, folder.parent / "in.gguf")
    monkeypatch.setattr("edgellm.convert.export.write_tokenizer", lambda metadata, work: None)
    with pytest.raises(
        FileProblem, match="what was written cannot be read again, so it was not kept: there is no tokenizer"
    ):
        export(folder.parent / "in.gguf", folder.parent / "again")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["in.gguf", "model"]


def test_two_names_of_one_weight(folder: Path) -> None:
    edit_tensors(folder, language_model__model__norm__weight=torch.ones(64))
    refused(folder, FormatError, "language_model.model.norm.weight", "model.norm.weight")


def test_a_weight_without_numbers(folder: Path) -> None:
    edit_tensors(folder, model__layers__0__self_attn__q_proj__weight=torch.ones(0, 64))
    refused(folder, FormatError, "model.layers.0.self_attn.q_proj.weight", "[0, 64]")


def test_a_missing_output_matrix(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors")
    refused(folder, FormatError, "lm_head.weight", "tie_word_embeddings")


def test_weights_that_are_no_numbers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    refused(folder, FormatError, "NaN", "model.layers.1.mlp.up_proj.weight")


def test_weights_that_are_no_floats(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, UnsupportedError, "model.layers.1.mlp.up_proj.weight", "I8")


def test_a_pickle_that_runs_code(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin")
    refused(folder, FileProblem, "pytorch_model.bin")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, FileProblem, str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"{" * 100_000])
def test_a_file_of_nonsense(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(folder, FileProblem, name)
