"""Adapters at run time: what PEFT computes, in whatever mixture, and nothing of it left when they are gone."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgellm
from edgellm.engine.adapter_set import MOST_TOGETHER
from edgellm.errors import BusyError, EdgellmError, FileProblem, FormatError, UnsupportedError, UsageError
from tests import peft_models
from tests.peft_models import IDS, save_adapter

from .test_many_read_by_one import read_all
from .test_side_by_side import in_threads

FLOAT32 = 5e-5  # sums of float32 products in another order; logits have a standard deviation near 3

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "rank and alpha patterns": {
        "rank_pattern": {"q_proj": 8, "^model.layers.2.mlp.up_proj": 1},
        "alpha_pattern": {"o_proj": 3, r"layers\.(0|1)\.mlp\.up_proj": 9},
    },
    "some modules, an odd rank": {"target_modules": ["q_proj", "down_proj"], "r": 3},
    "dora": {"use_dora": True},
    "dora, rslora, patterns": {"use_dora": True, "use_rslora": True, "rank_pattern": {"k_proj": 6}},
    "embeddings and head": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "whole weights": {"modules_to_save": ["lm_head", "model.norm"]},
    "whole embeddings, and others beside": {"modules_to_save": ["embed_tokens", "input_layernorm"]},
    "biases": {"bias": "lora_only"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with two adapters, `one` and `two`, a `dora` and one with a `whole` head."""
    folder = tmp_path_factory.mktemp("llama")
    peft_models.save_base("llama", folder)
    save_adapter(folder, "one", seed=1)
    save_adapter(folder, "two", seed=2, r=3, target_modules=["q_proj", "v_proj", "down_proj"])
    save_adapter(folder, "dora", seed=3, use_dora=True)
    save_adapter(folder, "whole", seed=4, modules_to_save=["lm_head"])
    return folder


def load(path: Path, **settings: Any) -> edgellm.Model:
    return edgellm.load(path, **({"n_threads": 2, "activations": "f32", "kv_type": "f32"} | settings))


def answer(model: edgellm.Model, adapters: Any = None, prompt: list[int] = IDS, n: int = 12) -> list[int]:
    generation = model.generate(prompt, temperature=0.0, max_tokens=n, adapters=adapters)
    list(generation)
    return generation.token_ids


def together(model, wanted: list[Any], prompts: list[list[int]], least: int) -> list[list[int]]:
    """The answers to some prompts, each with its adapters, of which at least so many are computed in one batch."""
    sizes = []
    run_body = model._runner.run_body
    model._runner.run_body = lambda spans, *_, **named: sizes.append(len(spans)) or run_body(spans, *_, **named)
    generations = [
        model.generate(prompt, temperature=0.0, max_tokens=12, adapters=adapters)
        for adapters, prompt in zip(wanted, prompts, strict=True)
    ]
    read_all(generations)
    assert max(sizes) >= least
    return [generation.token_ids for generation in generations]


# --- what PEFT computes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "llama, tied", "qwen2", "gemma3"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_logits_are_those_of_peft(family: str, settings: str, tmp_path: Path) -> None:
    path = peft_models.save_base(family, tmp_path)
    expected = peft_models.logits(save_adapter(tmp_path, "adapter", **SETTINGS[settings]))
    with load(path) as model:
        plain = model.logits(IDS)
        assert model.load_adapter(tmp_path / "adapter") == "adapter"
        np.testing.assert_array_equal(model.logits(IDS), plain)
        model.set_adapters(["adapter"])
        found = model.logits(IDS)
    np.testing.assert_allclose(found, expected, atol=FLOAT32)
    if settings != "biases" or family == "qwen2":
        assert np.abs(plain - expected).max() > 0.1


@pytest.mark.parametrize("names", [("one", "two"), ("one", "dora"), ("dora", "one")])
def test_several_at_once_are_those_of_peft(folder: Path, names: tuple[str, ...]) -> None:
    """One after the other, in the order of loading."""
    expected = peft_models.logits(peft_models.with_adapters(folder, *names))
    with load(folder / "base.gguf") as model:
        for name in names:
            model.load_adapter(folder / name)
        model.set_adapters(reversed(names))
        np.testing.assert_allclose(model.logits(IDS), expected, atol=FLOAT32)


@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0])
@pytest.mark.parametrize("name", ["one", "dora"])
def test_scales_are_those_of_peft(folder: Path, name: str, scale: float) -> None:
    peer = peft_models.with_adapters(folder, name)
    for module in peer.modules():
        if hasattr(module, "set_scale") and name in getattr(module, "scaling", {}):
            module.set_scale(name, scale)
    with load(folder / "base.gguf") as model:
        model.load_adapter(folder / name)
        model.set_adapters({name: scale})
        np.testing.assert_allclose(model.logits(IDS), peft_models.logits(peer), atol=FLOAT32)


@pytest.mark.parametrize("name", ["one", "dora", "whole"])
def test_beside_quantized_weights(folder: Path, tmp_path: Path, name: str) -> None:
    """In int8 as near to float32 as the model without it."""
    edgellm.quantize_file(folder / "base.gguf", tmp_path / "q8.gguf", "Q8_0")
    with load(tmp_path / "q8.gguf") as exact, load(tmp_path / "q8.gguf", activations="int8") as model:
        for one in (exact, model):
            one.load_adapter(folder / name)
        before = np.abs(exact.logits(IDS) - model.logits(IDS)).mean()
        for one in (exact, model):
            one.set_adapters(name)
        assert np.abs(exact.logits(IDS) - model.logits(IDS)).mean() < 2 * before


# --- bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_the_same_bits_in_one_batch_and_token_by_token(folder: Path, activations: str) -> None:
    with load(folder / "base.gguf", activations=activations) as model:
        names = [model.load_adapter(folder / name) for name in ("one", "dora", "whole")]
        model.set_adapters(names)
        whole = model.logits(IDS)
        with load(folder / "base.gguf", activations=activations, n_batch=1, n_threads=1) as other:
            for name in names:
                other.load_adapter(folder / name)
            other.set_adapters(names)
            np.testing.assert_array_equal(other.logits(IDS), whole)


def test_in_one_batch_each_text_is_what_it_is_alone(folder: Path) -> None:
    wanted: list[Any] = [
        {}, "one", {"one": 0.5}, {"two": 1.0, "one": -0.3}, "dora", {"dora": 0.5}, "whole", ["whole", "one"],
    ]  # fmt: skip
    prompts = [[3 + i, *IDS[i:40]] for i in range(len(wanted))]
    with load(folder / "base.gguf") as model:
        for name in ("one", "two", "dora", "whole"):
            model.load_adapter(folder / name)
        alone = [answer(model, adapters, prompt) for adapters, prompt in zip(wanted, prompts, strict=True)]
        assert len({tuple(ids) for ids in alone}) == len(wanted)
        model._scheduler.prefixes.clear()
        assert together(model, wanted, prompts, least=4) == alone


def test_beside_quantized_weights_the_bits_are_the_same_in_any_batch(folder: Path, tmp_path: Path) -> None:
    """However weights lie, in one pass and token by token, alone and beside texts with other adapters."""
    path = tmp_path / "q8.gguf"
    edgellm.quantize_file(folder / "base.gguf", path, "Q8_0")
    names = ("dora", "one", "two")  # one after dora changes what rows, and no product, made
    wanted: list[Any] = [{}, "one", {"two": 1.0, "one": -0.3}, "dora", {"dora": 1.0, "one": 0.5}]
    prompts = [[3 + i, *IDS[i:40]] for i in range(len(wanted))]
    found = []
    for settings in ({"layout": "memory"}, {"layout": "file"}, {"layout": "memory", "n_batch": 1, "n_threads": 1}):
        with load(path, activations="int8", **settings) as model:
            for name in names:
                model.load_adapter(folder / name)
            alone = [answer(model, adapters, prompt) for adapters, prompt in zip(wanted, prompts, strict=True)]
            model._scheduler.prefixes.clear()
            if "n_batch" not in settings:
                assert together(model, wanted, prompts, least=4) == alone
            model.set_adapters({"dora": 1.0, "one": 1.0, "two": 0.5})
            found.append((model.logits(IDS), alone))
    assert len({tuple(ids) for ids in found[0][1]}) == len(wanted)
    for logits, alone in found[1:]:
        np.testing.assert_array_equal(logits, found[0][0])
        assert alone == found[0][1]


def test_unloading_gives_the_bits_of_the_model_back(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        plain, own = model.logits(IDS), answer(model)
        name = model.load_adapter(folder / "one")
        model.set_adapters({name: 2.0})
        assert model.adapters == {name: 2.0} and answer(model) != own
        inner = weakref.ref(model._adapters.loaded[name])
        model.unload(name)
        assert model.adapters == {}
        np.testing.assert_array_equal(model.logits(IDS), plain)
        assert answer(model) == own
        gc.collect()
        assert inner() is None  # and its memory is free
        with pytest.raises(UsageError, match=r"'one'.*none is loaded"):
            model.generate(IDS, adapters=[name])


def test_a_prefix_belongs_to_its_adapters(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        name = model.load_adapter(folder / "one")
        expected = {scale: answer(model, {name: scale}) for scale in (0.0, 0.5, 1.0)}
        model._scheduler.prefixes.clear()

        def reused(scale: float) -> int:
            generation = model.generate(IDS, temperature=0.0, max_tokens=12, adapters={name: scale})
            list(generation)
            assert generation.token_ids == expected[scale]
            return generation.stats.n_reused_tokens

        assert [reused(scale) for scale in (0.0, 1.0, 0.5)] == [0, 0, 0]
        assert [reused(scale) for scale in (0.5, 0.0, 1.0)] == [len(IDS) - 1] * 3
        model.unload(name)
        model.load_adapter(folder / "two", name=name)  # another one of the same name
        generation = model.generate(IDS, max_tokens=1, adapters=[name])
        list(generation)
        assert generation.stats.n_reused_tokens == 0


def test_a_text_keeps_its_adapter_to_its_end(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        name = model.load_adapter(folder / "one")
        expected = answer(model, name, n=30)
        generation = model.generate(IDS, temperature=0.0, max_tokens=30, adapters=name)
        next(generation)
        model.unload(name)
        list(generation)
        assert generation.token_ids == expected


def test_programs_that_were_dropped_are_not_run_again(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        name, runner = model.load_adapter(folder / "one"), model._runner
        expected = answer(model, name)
        slots = runner._running.slots
        assert list(runner._variants) == [slots]
        dropped = weakref.ref(runner._running)
        runner._drop(slots)
        gc.collect()
        assert dropped() is None
        assert answer(model, name) == expected
        assert list(runner._variants.values()) == [runner._running]


def test_what_does_not_fit_into_a_batch_waits_for_the_next(folder: Path) -> None:
    n = MOST_TOGETHER + 3
    with load(folder / "base.gguf") as model:
        names = [model.load_adapter(folder / "one", name=f"copy {i}") for i in range(n)]
        works = [lambda name=name: answer(model, {name: 1.0}, n=6) for name in names]
        expected = answer(model, names[0], n=6)
        assert in_threads(works) == [expected] * n
        assert len(model._runner._variants) <= 4
        with pytest.raises(UsageError, match=f"adapters names {n}; up to {MOST_TOGETHER}"):
            model.set_adapters(names)


def test_programs_that_are_not_used_any_more_are_let_go(folder: Path) -> None:
    with load(folder / "base.gguf", n_threads=2) as model:
        for i in range(12):
            name = model.load_adapter(folder / "one")
            answer(model, {name: 1.0 + i}, n=2)
            model.unload(name)
            answer(model, n=2)
        assert len(model._runner.team._programs) < 10


# --- beside what else a model can do ----------------------------------------------------------------------------


def test_looking_inside_sees_what_the_adapter_makes(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        plain = model.run(IDS, taps=["blk.1.attn_q", "hidden", "logits"])
        model.set_adapters(model.load_adapter(folder / "one"))
        seen = model.run(IDS, taps=["blk.1.attn_q", "hidden", "logits"])
        np.testing.assert_array_equal(seen["logits"], model.logits(IDS))
        np.testing.assert_array_equal(model.unembed(seen["hidden"]), seen["logits"])
        assert all(np.abs(seen[name] - plain[name]).max() > 0.01 for name in seen)
        with model.square_sums() as sums:
            np.testing.assert_array_equal(model.logits(IDS), seen["logits"])
        assert sums["blk.1.attn_q.weight"].any()
        zeros = np.zeros_like(seen["blk.1.attn_q"])
        bound = model.run(IDS, bind={"blk.1.attn_q": zeros})["logits"]
        assert np.abs(bound - seen["logits"]).max() > 0.01
        raw = np.zeros_like(model._file.tensors["blk.0.attn_v.weight"].raw).reshape(-1)
        with model.bind({"blk.0.attn_v.weight": raw}):
            assert np.abs(model.logits(IDS) - seen["logits"]).max() > 0.01
        np.testing.assert_array_equal(model.logits(IDS), seen["logits"])


def test_an_adapter_in_memory(folder: Path) -> None:
    from edgellm.arch.adapters import read_adapter

    with load(folder / "base.gguf") as model:
        adapter = read_adapter(folder / "one", model.metadata, model._file.tensors)
        model.load_adapter(folder / "one")
        model.load_adapter(adapter, name="same")
        assert answer(model, "same") == answer(model, "one")
        with pytest.raises(UsageError, match="name is 'same', and an adapter is called that"):
            model.load_adapter(adapter, name="same")
        model.load_adapter(folder / "two", name="same", replace=True)
        assert answer(model, "same") == answer(model, [model.load_adapter(folder / "two")])


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ("oen", "adapters has 'oen', which is no adapter here; loaded are 'one'"),
        ({"one": float("nan")}, "adapters['one'] is nan; expected a finite number"),
        ({"one": 1e300}, "adapters['one'] is"),
        ({"one": "much"}, "adapters['one'] is 'much'; expected a number"),
        ({1: 1.0}, "adapters is 1; expected a text"),
        ([1], "adapters is 1; expected a text"),
        (3, "adapters is 3; expected scales by name"),
        (b"one", "adapters is b'one'; expected scales by name"),
        ({"whole": 0.5}, "adapters has 'whole' with a scale of 0.5, and it holds a whole 'output.weight'"),
        (["whole", "another"], "adapters has 'whole' and 'another', which both hold a whole 'output.weight'"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be(folder: Path, adapters: Any, words: str) -> None:
    with load(folder / "base.gguf") as model:
        for name in ("one", "whole"):
            model.load_adapter(folder / name)
        model.load_adapter(folder / "whole", name="another")
        for ask in (lambda: model.generate(IDS, adapters=adapters), lambda: model.set_adapters(adapters)):
            with pytest.raises(UsageError) as raised:
                ask()
            assert str(raised.value).startswith(words.split(";")[0]) and words in str(raised.value)


@pytest.mark.parametrize(
    ("family", "kind", "words"),
    [
        ("qwen2", FormatError, ("blk.0.attn_q.weight", "[64, 64]")),
        ("llama", FormatError, ("blk.2.attn_q.weight", "does not have")),
    ],
)
def test_an_adapter_of_another_model(
    folder: Path, tmp_path: Path, family: str, kind: type[EdgellmError], words: tuple[str, ...]
) -> None:
    from tests.arch import tiny

    settings = {"num_hidden_layers": 2} if family == "llama" else {"hidden_size": 32}
    path = tiny.llama(**settings).save(tmp_path / "other.gguf")
    with load(path) as model, pytest.raises((kind, UnsupportedError)) as raised:
        model.load_adapter(folder / "one")
    assert str(raised.value).startswith(f"{folder / 'one'}: ")


def test_what_is_no_adapter(folder: Path, tmp_path: Path) -> None:
    with load(folder / "base.gguf") as model:
        for path, words in (
            (tmp_path, "has no adapter_config.json"),
            (tmp_path / "nothing", "does not exist"),
            (folder / "base.gguf", "holds a 'model', and no adapter"),
            (folder / "one" / "adapter_model.safetensors", "give the folder"),
            (folder / "base", "has no adapter_config.json"),
        ):
            with pytest.raises(FileProblem, match=words) as raised:
                model.load_adapter(path)
            assert str(path) in str(raised.value)
        assert model.adapters == {}
        for wrong in (None, 3, ""):
            with pytest.raises(UsageError, match="path is"):
                model.load_adapter(wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="name is ''"):
            model.load_adapter(folder / "one", name="")
        with pytest.raises(UsageError, match="'x', which is no adapter here"):
            model.unload("x")


def test_what_is_too_large_to_compute_with(folder: Path) -> None:
    with load(folder / "base.gguf") as model:
        plain, name = model.logits(IDS), model.load_adapter(folder / "one")
        for ask in (lambda: answer(model, {name: 3e38}), lambda: (model.set_adapters({name: 3e38}), model.logits(IDS))):
            with pytest.raises(FileProblem, match=r"what the adapters add is too large: 'one' \(scale 3e\+38\)"):
                ask()
        model.set_adapters(None)
        np.testing.assert_array_equal(model.logits(IDS), plain)


def test_a_closed_model(folder: Path) -> None:
    model = load(folder / "base.gguf")
    model.load_adapter(folder / "one")
    model.close()
    for ask in (
        lambda: model.load_adapter(folder / "two"), lambda: model.set_adapters("one"), lambda: model.unload("one"),
        lambda: model.adapters,
    ):  # fmt: skip
        with pytest.raises(UsageError, match="the model is closed"):
            ask()


def test_from_within_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgellm.engine.sampling import Sampler

    with load(folder / "base.gguf") as model:
        name, choose = model.load_adapter(folder / "one"), Sampler.choose

        def unloading(self, *args):
            model.unload(name)
            return choose(self, *args)

        monkeypatch.setattr(Sampler, "choose", unloading)
        with pytest.raises(BusyError):
            answer(model, name)
