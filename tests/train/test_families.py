"""LoRA through what families have of their own, beside peft: LayerNorm, soft caps, linear biases, sinks, experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch

import edgellm
from edgellm.arch import architecture_of
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.errors import UnsupportedError, UsageError
from edgellm.train.config import LoraConfig
from edgellm.train.documents import Documents
from edgellm.train.full import FullLearner
from edgellm.train.lora import LoraLearner
from tests.convert import checkpoints, families
from tests.convert.mixtures import MIXTURES

from .test_lora import ALPHA, GRADIENT, LOSS, RANK, documents, learner_of

# LayerNorm and learnt positions, exact GELU, linear biases, soft caps; experts, a shared one, with biases and sinks.
FAMILIES = ["gpt2", "gptneox", "bloom", "gemma2", "olmoe", "qwen2moe", "gpt-oss"]
SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}


def saved(family: str, folder: Path) -> Path:
    """A tiny checkpoint of the family, and its GGUF file."""
    if family in MIXTURES:
        checkpoints.save(family, folder / "model")
    else:
        families.model_of(family).save_pretrained(folder / "model")
        checkpoints.tokenizer().save_pretrained(folder / "model")
    convert_checkpoint(folder / "model", folder / "model.gguf")
    return folder / "model.gguf"


class Reference:
    """The same model and adapter in peft, on the very layers that the learner trains."""

    def __init__(self, folder: Path, model: edgellm.Model, learner: LoraLearner) -> None:
        own = checkpoints.load(folder)
        own.set_attn_implementation("eager")
        (kind,) = architecture_of(model.metadata).hugging_face
        self.naming = kind.naming(model.config)
        modules = [self.module_of(name) for name in learner.parameters if name.endswith("lora_a")]
        is_conv = type(own).__name__.startswith("GPT2")
        settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, fan_in_fan_out=is_conv)
        self.model = peft.get_peft_model(own, settings)
        self.weights = dict(self.model.named_parameters())
        for name, values in learner.parameters.items():
            with torch.no_grad():
                self.weight(name).copy_(torch.from_numpy(self.as_peft(name, values)))

    def module_of(self, name: str) -> str:
        return self.naming.names[name.rsplit(".", 1)[0]].removesuffix(".weight")

    def weight(self, name: str) -> torch.nn.Parameter:
        side = SIDES[name.rsplit(".", 1)[1]]
        return self.weights[f"base_model.model.{self.module_of(name)}.{side}.default.weight"]

    def as_peft(self, name: str, values: np.ndarray) -> np.ndarray:
        """B is transposed in edgellm, and has its rows as GGUF has those of W."""
        if name.endswith("lora_a"):
            return values
        return self.naming.rows_out(name.rsplit(".", 1)[0], values.T)

    def loss(self, texts: Documents) -> torch.Tensor:
        total = torch.zeros(())
        for start, length in zip(texts.starts, texts.lengths, strict=True):
            rows = slice(start, start + length)
            ids, targets = (torch.from_numpy(x[rows]).long() for x in (texts.ids, texts.targets))
            nlls = torch.nn.functional.cross_entropy(
                self.model(ids[None]).logits[0], targets, reduction="none", ignore_index=-1
            )
            total = total + (nlls * torch.from_numpy(texts.weights[rows])).sum()
        return total


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_peft(family: str, tmp_path: Path) -> None:
    path, texts = saved(family, tmp_path), documents()
    with edgellm.load(path, n_threads=2, kv_type="f32", activations="f32") as model:
        for recompute in (False, True):
            learner = learner_of(model, recompute=recompute)
            try:
                reference = Reference(tmp_path / "model", model, learner)
                loss = reference.loss(texts)
                assert learner.loss_and_gradients(texts, 0.25) == pytest.approx(loss.item(), rel=LOSS)
                (0.25 * loss).backward()
                for name, gradient in learner.gradients.items():
                    given = reference.weight(name).grad.numpy()
                    ours, atol = reference.as_peft(name, gradient), GRADIENT * np.abs(given).max()
                    np.testing.assert_allclose(ours, given, rtol=0, atol=atol, err_msg=name)
            finally:
                learner.close()


@pytest.mark.parametrize("family", ["gpt2", "qwen3moe", "gpt-oss"])
def test_all_weights_are_trained_as_torch_does(family: str, tmp_path: Path) -> None:
    """Those of routers, of experts, of norms and of positions too; sinks, which are not built, can be frozen."""
    path, texts = saved(family, tmp_path), documents()
    own = checkpoints.load(tmp_path / "model")
    own.set_attn_implementation("eager")
    sinks = tuple(f"blk.{layer}.attn_sinks" for layer in range(3)) if family == "gpt-oss" else ()
    with edgellm.load(path, n_threads=2, kv_type="f32", activations="f32") as model:
        if sinks:
            with pytest.raises(UnsupportedError, match=r"sinks is not built yet \(blk\.2\.attn_sinks.weight\)"):
                FullLearner(model)
        learner = FullLearner(model, n_batch=256, freeze=sinks)
        try:
            (kind,) = architecture_of(model.metadata).hugging_face
            naming = kind.naming(model.config)
            loss = Reference.loss(type("Own", (), {"model": own})(), texts)
            assert learner.loss_and_gradients(texts, 1.0) == pytest.approx(loss.item(), rel=LOSS)
            loss.backward()
            theirs = {name: x.grad.numpy() for name, x in own.named_parameters() if x.grad is not None}
            compared = set()
            for name, gradient in learner.gradients.items():
                given = of_experts(name, theirs) if "_exps." in name else theirs[naming.names[name]]
                is_turned = name.split(".")[-2] in kind.transposed and given.ndim == 2
                given = given.T if is_turned else given
                atol = 2 * GRADIENT * max(1e-3, np.abs(given).max())
                np.testing.assert_allclose(gradient, given, rtol=0, atol=atol, err_msg=name)
                compared.add(name.split(".")[-2])
            assert {"ffn_gate_exps", "ffn_gate_inp"} <= compared or family == "gpt2"
            assert family != "gpt2" or {"position_embd", "attn_norm"} <= compared
        finally:
            learner.close()


def of_experts(name: str, theirs: dict[str, np.ndarray]) -> np.ndarray:
    """The gradient of GGUF's stack of experts."""
    _, layer, part, kind = name.split(".")
    own = part.split("_")[1]
    stacked = f"model.layers.{layer}.mlp.experts.{'down_proj' if own == 'down' else 'gate_up_proj'}"
    is_across = f"{stacked}_bias" in theirs
    found = theirs[f"{stacked}_bias" if kind == "bias" else stacked]
    if is_across:
        found = found.swapaxes(1, 2) if kind == "weight" else found
        return found if own == "down" else found[:, ("gate", "up").index(own) :: 2]
    return found if own == "down" else np.split(found, 2, 1)[("gate", "up").index(own)]


def test_experts_are_the_same_on_the_way_back(tmp_path: Path) -> None:
    """Whatever is rounded in what is kept: nothing is chosen twice."""
    path, texts, found = saved("olmoe", tmp_path), documents(), []
    with edgellm.load(path, n_threads=1, kv_type="f32", activations="f32") as model:
        for options in ({}, {"in_bf16": True}, {"in_bf16": True, "recompute": True}):
            learner = learner_of(model, **options)
            learner.loss_and_gradients(texts, 1.0)
            found.append(np.concatenate([g.ravel() for g in learner.gradients.values()]))
            learner.close()
    exact, *rounded = found
    for gradient in rounded:
        assert 0 < np.linalg.norm(gradient - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize("wanted", ["up_proj", "ffn_up_exps", "experts"])
def test_lora_beside_experts_is_refused_by_name(wanted: str, tmp_path: Path) -> None:
    config = LoraConfig(rank=RANK, target_modules=("q_proj", wanted))
    says = rf"names '{wanted}'.*it has attn_k, .*\(ffn_down_exps, ffn_gate_exps, ffn_up_exps are experts"
    with edgellm.load(saved("olmoe", tmp_path), n_threads=1) as model, pytest.raises(UsageError, match=says):
        LoraLearner(model, config)


def test_routers_are_left_as_they_are_unless_they_are_named(tmp_path: Path) -> None:
    with edgellm.load(saved("olmoe", tmp_path), n_threads=1) as model:
        for config, kinds in [
            (LoraConfig(rank=RANK), {"attn_q", "attn_k", "attn_v", "attn_output"}),
            (LoraConfig(rank=RANK, target_modules=("ffn_gate_inp",)), {"ffn_gate_inp"}),
        ]:
            learner = LoraLearner(model, config)
            assert {name.split(".")[2] for name in learner.parameters} == kinds
            learner.close()
