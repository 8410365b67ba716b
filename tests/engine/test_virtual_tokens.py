"""Adapters that are no change of weights, at run time: what PEFT or torch compute, and other texts stay as they are."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

import edgellm
from edgellm.arch.adapters import read_adapter, save_adapter
from edgellm.errors import ContextOverflowError, EdgellmError, FileProblem, UsageError
from edgellm.formats.adapters import Bottleneck
from tests import peft_models
from tests.convert.checkpoints import edit_json
from tests.peft_models import IDS

# PEFT hands transformers its prefix under a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

FLOAT32 = 5e-5  # as in test_adapters
N = 7
KINDS: dict[str, Any] = {
    "prompt": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N),
    "p-tuning": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=N, encoder_hidden_size=24),
    "prefix": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N),
    "prefix, projected": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=N, prefix_projection=True, encoder_hidden_size=24
    ),
}


def save(folder: Path, name: str, kind: str, seed: int = 0) -> Any:
    """An adapter with random weights, saved; returns PEFT's model with it."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(peft_models.base_of(folder), KINDS[kind]()).eval()
        model.save_pretrained(folder / name)
    return model


def logits_of(model: Any, ids: list[int] = IDS) -> np.ndarray:
    """Of the text alone, without those of the virtual tokens."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -len(ids) :].numpy()


def load(path: Path, **settings: Any) -> edgellm.Model:
    return edgellm.load(path, **({"n_threads": 2, "activations": "f32", "kv_type": "f32"} | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    peft_models.save_base("llama", folder)
    for seed, kind in enumerate(("prompt", "p-tuning", "prefix")):
        save(folder, kind, kind, seed)
    peft_models.save_adapter(folder, "lora", seed=4)
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "mistral"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft(family: str, kind: str, tmp_path: Path) -> None:
    path = peft_models.save_base(family, tmp_path)
    expected = logits_of(save(tmp_path, "adapter", kind))
    with load(path) as model:
        plain = model.logits(IDS)
        model.load_adapter(tmp_path / "adapter")
        np.testing.assert_array_equal(model.logits(IDS), plain)
        model.set_adapters("adapter")
        np.testing.assert_allclose(model.logits(IDS), expected, atol=FLOAT32)
        np.testing.assert_array_equal(np.concatenate(list(model.logits_in_pieces(IDS, 50))), model.logits(IDS)[50:])
        np.testing.assert_array_equal(model.run(IDS)["logits"], model.logits(IDS))
        assert np.abs(plain - expected).max() > 0.1


@pytest.mark.parametrize("kind", ["prompt", "p-tuning", "prefix"])
def test_what_is_written_is_read_by_peft_and_here(folder: Path, kind: str, tmp_path: Path) -> None:
    with load(folder / "base.gguf") as model:
        tensors = model._file.tensors
        adapter = read_adapter(folder / kind, model.metadata, tensors)
        assert (adapter.method, adapter.n_virtual) == (kind, N)
        save_adapter(tmp_path / "again", adapter, model.metadata)
        again = read_adapter(tmp_path / "again", model.metadata, tensors)
        assert again.method == kind
        found = []
        for name, source in (("theirs", folder / kind), ("ours", again)):
            model.load_adapter(source, name)
            model.set_adapters(name)
            found.append(model.logits(IDS))
        np.testing.assert_array_equal(*found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = PeftModel.from_pretrained(peft_models.base_of(folder), tmp_path / "again").eval()
    np.testing.assert_allclose(found[0], logits_of(peer), atol=FLOAT32)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_an_answer_is_that_of_peft(folder: Path, kind: str) -> None:
    """Greedy, by the logits of the whole text anew after each token."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = PeftModel.from_pretrained(peft_models.base_of(folder), folder / kind).eval()
    ids = IDS[:20]
    for _ in range(8):
        ids = [*ids, int(logits_of(peer, ids)[-1].argmax())]
    with load(folder / "base.gguf", n_batch=16) as model:  # the virtual tokens and the prompt take several batches
        model.load_adapter(folder / kind)
        generation = model.generate(IDS[:20], temperature=0.0, max_tokens=8, adapters=[kind], repeat_penalty=1.0)
        list(generation)
        assert generation.token_ids == ids[20:]
        again = model.generate(IDS[:20], temperature=0.0, max_tokens=8, adapters=[kind], repeat_penalty=1.0)
        list(again)
        assert again.token_ids == ids[20:] and again.stats.n_reused_tokens > 0


def test_texts_with_other_adapters_stand_beside_in_a_batch(folder: Path) -> None:
    """To the bit what each is alone."""
    uses = [[], ["prompt"], ["prefix"], ["lora"], ["lora", "prefix"], ["p-tuning"]]
    with load(folder / "base.gguf") as model:
        for name in ("prompt", "prefix", "lora", "p-tuning"):
            model.load_adapter(folder / name)

        def answers(together: bool) -> list[list[int]]:
            open_ = [model.generate(IDS[:9], temperature=0.0, max_tokens=6, adapters=names) for names in uses]
            if together:
                for generation in open_:  # all are submitted before any ends
                    next(generation, None)
            for generation in open_:
                list(generation)
            return [generation.token_ids for generation in open_]

        alone = answers(together=False)
        assert answers(together=True) == alone
        assert len({tuple(ids) for ids in alone}) > 3


def test_the_penalty_knows_nothing_of_virtual_tokens(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        model.load_adapter(folder / "prompt")
        model.set_adapters("prompt")
        last = model.logits([5])[-1]
        wanted = last.copy()
        wanted[5] = last[5] / 1e9 if last[5] > 0 else last[5] * 1e9
        generation = model.generate([5], temperature=0.0, max_tokens=1, repeat_penalty=1e9)
        list(generation)
        assert generation.token_ids == [int(wanted.argmax())]


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    with load(folder / "base.gguf", n_ctx=64) as model:
        for name in ("prompt", "prefix"):
            model.load_adapter(folder / name)
        with pytest.raises(UsageError, match="'prompt' and 'prefix', which both put tokens of"):
            model.set_adapters(["prompt", "prefix"])
        with pytest.raises(UsageError, match=r"'prompt' with a scale of 0\.5, .* is there or not; choose 1, or 0"):
            model.set_adapters({"prompt": 0.5})
        assert model.n_text == 64
        model.set_adapters("prompt")
        assert model.n_text == 64 - N and len(model.logits(IDS[: 64 - N])) == 64 - N
        for compute in (model.logits, model.run, model.generate):
            with pytest.raises(ContextOverflowError, match="has 60 tokens, the adapter puts 7 of its own before them"):
                compute(IDS[:60])
        embeddings = np.zeros((4, 64), np.float32)
        with pytest.raises(UsageError, match="'embd' is bound, and the adapter puts 7 tokens of its own before"):
            model.run(IDS[:4], bind={"embd": embeddings})
        with pytest.raises(UsageError, match="kind 'prompt', which is no change of weights and cannot be merged"):
            edgellm.merge_adapters(folder / "base.gguf", folder / "prompt", tmp_path / "merged.gguf")


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("prompt", {"num_virtual_tokens": 8}, "[7, 64]; adapter_config.json says num_virtual_tokens: 8"),
        ("prompt", {"num_virtual_tokens": ...}, "num_virtual_tokens is missing"),
        ("prompt", {"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
        ("prompt", {"peft_type": "PREFIX_TUNING"}, "has 64 columns, which are no keys and values"),
        ("prefix", {"peft_type": "PROMPT_TUNING"}, "embeddings of width 192, and this model 64"),
        ("prefix", {"peft_type": "CPT"}, "the adapter is 'CPT'"),
        ("p-tuning", {"encoder_hidden_size": -3}, "encoder_hidden_size is -3"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, tmp_path: Path, kind: str, changes: dict, words: str) -> None:
    shutil.copytree(folder / kind, tmp_path / "bad")
    edit_json(tmp_path / "bad" / "adapter_config.json", **changes)
    with load(folder / "base.gguf") as model, pytest.raises(FileProblem) as caught:
        model.load_adapter(tmp_path / "bad")
    assert words in str(caught.value) and "bad" in str(caught.value)


# --- bottlenecks ----------------------------------------------------------------------------------------------


def bottlenecks(layers: int, places: tuple[str, ...], activation: str, seed: int = 0) -> dict[str, Bottleneck]:
    random = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    return {
        f"blk.{layer}.{place}": Bottleneck(array(5, 64), array(5), array(64, 5), array(64), activation)
        for layer in range(layers)
        for place in places
    }


def with_hooks(model: Any, parts: dict[str, Bottleneck], weights: dict[str, torch.Tensor] | None = None) -> Any:
    """The same in torch: what halves of layers make goes through the bottlenecks, whose weights `weights` gets."""
    functions = {
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }

    def hook(name: str, part: Bottleneck) -> Any:
        down, down_bias, up, up_bias = own = [torch.from_numpy(x.copy()).requires_grad_() for x in part.arrays]
        if weights is not None:
            weights.update(zip((f"{name}.{kind}" for kind in ("down", "down_bias", "up", "up_bias")), own, strict=True))

        def change(module: Any, inputs: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            changed = h + functions[part.activation](h @ down.T + down_bias) @ up.T + up_bias
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return change

    for name, part in parts.items():
        _, layer, place = name.split(".")
        block = model.model.layers[int(layer)]
        (block.mlp if place == "ffn_out" else block.self_attn).register_forward_hook(hook(name, part))
    return model


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("places", [("ffn_out",), ("attn_out", "ffn_out")])
@pytest.mark.parametrize("family", ["llama, biases", "gemma3"])
def test_bottlenecks_are_those_of_torch(family: str, places: tuple[str, ...], activation: str, tmp_path: Path) -> None:
    path = peft_models.save_base(family, tmp_path)
    with load(path) as model:
        parts = bottlenecks(model.config.n_layers, places, activation)
        save_adapter(tmp_path / "adapter", _adapter(model, parts), model.metadata)
        expected = peft_models.logits(with_hooks(peft_models.base_of(tmp_path), parts))
        plain = model.logits(IDS)
        model.load_adapter(tmp_path / "adapter")
        np.testing.assert_array_equal(model.logits(IDS), plain)
        model.set_adapters("adapter")
        np.testing.assert_allclose(model.logits(IDS), expected, atol=2 * FLOAT32)
        with pytest.raises(UsageError, match="is there or not"):
            model.set_adapters({"adapter": 2.0})


def _adapter(model: edgellm.Model, parts: dict[str, Bottleneck]) -> Any:
    from edgellm.formats.adapters import Adapter

    return Adapter(model.metadata["general.architecture"], {}, bottlenecks=parts)


def test_bottlenecks_beside_other_texts_change_no_bit(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        model.load_adapter(_adapter(model, bottlenecks(3, ("ffn_out",), "relu")), "bottleneck")
        uses: list[list[str]] = [[], ["bottleneck"]]
        alone = []
        for names in uses:
            generation = model.generate(IDS[:9], temperature=0.0, max_tokens=6, adapters=names)
            list(generation)
            alone.append(generation.token_ids)
        open_ = [model.generate(IDS[:9], temperature=0.0, max_tokens=6, adapters=names) for names in uses]
        for generation in open_:
            next(generation, None)
        for generation in open_:
            list(generation)
        assert [generation.token_ids for generation in open_] == alone


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bottleneck_size": 6}, "has a bottleneck of 5; adapter_config.json says 6"),
        ({"non_linearity": "tanh"}, "its activation is 'tanh'; expected relu or gelu or silu"),
        ({"non_linearity": ...}, "its activation is None"),
    ],
)
def test_damaged_bottlenecks_are_refused(folder: Path, tmp_path: Path, changes: dict, words: str) -> None:
    with load(folder / "base.gguf") as model:
        save_adapter(tmp_path / "bad", _adapter(model, bottlenecks(3, ("ffn_out",), "relu")), model.metadata)
        edit_json(tmp_path / "bad" / "adapter_config.json", **changes)
        with pytest.raises(EdgellmError) as caught:
            model.load_adapter(tmp_path / "bad")
    assert words in str(caught.value)
