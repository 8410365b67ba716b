"""LoRA beside experts, from texts to a folder that runs: quantized models, gates and ups in one stack, dropout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgellm
from edgellm.formats.gguf import GGUFFile, GGUFWriter
from edgellm.train.config import LoraConfig, TrainConfig
from edgellm.train.lora import LoraLearner
from edgellm.train.run import train
from tests import peft_models
from tests.peft_models import IDS

from .test_lora import RANK, SEED, documents, learner_of

FILES = ["base", "q8", "in one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture, in Q8_0 as well, and with the gates and ups of its experts in one stack; and some texts."""
    folder = tmp_path_factory.mktemp("mixture")
    peft_models.save_base("olmoe", folder)
    edgellm.quantize_file(folder / "base.gguf", folder / "q8.gguf", "Q8_0")
    with GGUFFile.open(folder / "base.gguf") as file:
        entries = []
        for name, tensor in file.tensors.items():
            if "ffn_gate_exps" in name:
                up = file.tensors[name.replace("gate", "up")]
                both = np.concatenate([tensor.dequantize(), up.dequantize()], 1)
                entries.append((name.replace("gate", "gate_up"), both.shape, tensor.format, both))
            elif "ffn_up_exps" not in name:
                entries.append((name, tensor.shape, tensor.format, tensor.raw))
        GGUFWriter(folder / "in one.gguf", dict(file.metadata), entries).write()
    lines = [{"prompt": f"what is {n}?", "completion": f" it is {7 * n}."} for n in range(20)]
    (folder / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("activations", ["int8", "f32"])
@pytest.mark.parametrize("file", FILES)
def test_what_is_saved_is_what_was_learnt(folder: Path, tmp_path: Path, file: str, activations: str) -> None:
    """The loss falls, and the adapter of the folder gives the logits of the one in memory."""
    steps: list = []
    lora = LoraConfig(rank=2, dropout=0.1)
    config = TrainConfig(steps=12, learning_rate=1e-2, warmup=0)
    with edgellm.load(folder / f"{file}.gguf", n_threads=2, activations=activations, kv_type="f32") as model:
        plain = model.logits(IDS)
        adapter = train(model, folder / "facts.jsonl", lora, config, output=tmp_path / "out", callback=steps.append)
        assert min(step.loss for step in steps[-4:]) < 0.8 * steps[0].loss
        kinds = {name.split(".")[2] for name in adapter.weights}
        gates = {"ffn_gate_up_exps"} if file == "in one" else {"ffn_gate_exps", "ffn_up_exps"}
        assert kinds == {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_down_exps"} | gates
        found = []
        for source in (adapter, tmp_path / "out"):
            name = model.load_adapter(source, "own")
            model.set_adapters(name)
            found.append(model.logits(IDS))
            model.unload(name)
        np.testing.assert_allclose(found[0], found[1], atol=1e-4)
        assert np.abs(found[0] - plain).max() > 0.1


def test_gates_and_ups_may_be_in_one_stack_or_in_two(folder: Path, tmp_path: Path) -> None:
    """An adapter that was made for one of the two files is one for the other."""
    for name, other in (("base", "in one"), ("in one", "base")):
        with edgellm.load(folder / f"{name}.gguf", n_threads=1, activations="f32", kv_type="f32") as model:
            learner = learner_of(model)
            adapter = learner.adapter()
            learner.close()
            edgellm.formats.adapters.gguf.write_gguf_adapter(tmp_path / f"{name}.gguf", adapter)
            model.set_adapters(model.load_adapter(adapter, "own"))
            expected = model.logits(IDS)
        with edgellm.load(folder / f"{other}.gguf", n_threads=1, activations="f32", kv_type="f32") as model:
            model.set_adapters(model.load_adapter(tmp_path / f"{name}.gguf"))
            np.testing.assert_allclose(model.logits(IDS), expected, atol=1e-4)


def test_the_same_run_has_the_same_bits_stopped_or_not(folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, dropout=0.2, target_modules=("up_proj", "down_proj"))
    config = TrainConfig(steps=6, learning_rate=1e-2, checkpoint_every=3)
    with edgellm.load(folder / "q8.gguf", n_threads=2) as model:
        whole = train(model, folder / "facts.jsonl", lora, config, output=tmp_path / "whole")
        train(model, folder / "facts.jsonl", lora, config, output=tmp_path / "a", callback=lambda step: step.step == 4)
        again = train(model, folder / "facts.jsonl", lora, config, output=tmp_path / "a", resume=True)
    assert {name.split(".")[2] for name in whole.weights} == {"ffn_up_exps", "ffn_down_exps"}
    for name, change in whole.weights.items():
        np.testing.assert_array_equal(change.a, again.weights[name].a)
        np.testing.assert_array_equal(change.b, again.weights[name].b)


def test_in_int8_gradients_are_near_those_in_float32(folder: Path) -> None:
    found = []
    for activations in ("f32", "int8"):
        with edgellm.load(folder / "q8.gguf", n_threads=1, activations=activations, kv_type="f32") as model:
            learner = learner_of(model)
            learner.loss_and_gradients(documents(), 1.0)
            found.append(np.concatenate([g.ravel() for name, g in learner.gradients.items() if "_exps" in name]))
            learner.close()
    exact, rounded = found
    assert 0 < np.linalg.norm(rounded - exact) < 0.15 * np.linalg.norm(exact)


def test_what_dropout_leaves_out_has_no_gradient(folder: Path) -> None:
    """The gradient is the slope of the very loss that it belongs to, in the layer after which no router chooses."""
    texts, random = documents(), np.random.default_rng(2)
    with edgellm.load(folder / "base.gguf", n_threads=1, activations="f32", kv_type="f32") as model:
        config = LoraConfig(rank=RANK, dropout=0.4, target_modules=("gate_proj", "up_proj", "down_proj"))
        learner = LoraLearner(model, config, n_batch=256, seed=SEED)
        for values in learner.parameters.values():
            values[...] = random.normal(0, 0.1, values.shape)
        learner.begin_pass(3, 1)
        learner.loss_and_gradients(texts, 1.0)
        last = {name: gradient for name, gradient in learner.gradients.items() if name.startswith("blk.2.")}
        assert len(last) == 6
        for name, gradient in last.items():
            values, step = learner.parameters[name], gradient / np.linalg.norm(gradient)
            kept, losses = values.copy(), []
            for by in (0.02, -0.02):
                values[...] = kept + by * step
                with learner._leaving_out():
                    losses.append(learner.loss(texts)[0])
            values[...] = kept
            slope = (losses[0] - losses[1]) / 0.04
            assert slope == pytest.approx(np.linalg.norm(gradient), rel=0.03), name
        learner.close()
