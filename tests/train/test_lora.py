"""LoRA's losses and gradients beside peft's, on the same weights in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

import edgellm
from edgellm.convert.checkpoints import convert_checkpoint
from edgellm.kernels import reference_rows
from edgellm.train.config import LoraConfig
from edgellm.train.documents import Documents
from edgellm.train.lora import LoraLearner
from tests.arch.tiny import _paired
from tests.convert import checkpoints

# Another order of summation, in float32, over a few hundred numbers.
LOSS = 1e-5
GRADIENT = 1e-4  # of the largest of a weight's gradients
RANK, ALPHA, SEED = 4, 10.0, 5
DROPOUT = 0.3
STEP = (3, 1)
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dropout": {"dropout": DROPOUT},
    "dora": {"method": "dora"},
    "dora, rslora": {"method": "dora", "use_rslora": True},
    "dora, dropout": {"method": "dora", "dropout": DROPOUT},
}
SIDES = {"lora_a": "lora_A", "lora_b": "lora_B", "magnitude": "lora_magnitude_vector"}
PEFT_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def documents() -> Documents:
    """Of three lengths, one of them beyond every window; some tokens are not learnt, and targets count differently."""
    random = np.random.default_rng(4)
    parts = []
    for length in (5, 2 * checkpoints.WINDOW + 9, 33):
        ids = random.integers(2, checkpoints.N_VOCAB, length)
        parts.append(Documents.of(ids, random.random(length) < 0.7, weight=float(random.integers(1, 4))))
    return Documents.joined(parts)


class OurDropout(torch.nn.Module):
    """What the learner leaves out, for the document that begins with the row `first` of its batch."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.first = seed, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        ones = np.ones((self.first + x.shape[1], x.shape[2]), np.float32)
        return x * torch.from_numpy(reference_rows.dropout(ones, DROPOUT, self.seed)[self.first :])


class Reference:
    """The same model and adapter in peft."""

    def __init__(self, family: str, model: torch.nn.Module, learner: LoraLearner) -> None:
        # Attention that keeps its keys and values as they are.
        model.set_attn_implementation("sdpa")
        config = learner.config
        settings = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules="all-linear", use_rslora=config.use_rslora,
            use_dora=config.use_dora, lora_dropout=config.dropout,
        )  # fmt: skip
        self.model = peft.get_peft_model(model, settings).train()
        self.dropouts: list[OurDropout] = []
        if config.dropout:
            seeds = np.random.SeedSequence((SEED, *STEP)).generate_state(len(learner.parameters), np.uint64)
            weights = [name.removesuffix(".lora_a") for name in learner.parameters if name.endswith(".lora_a")]
            for weight, seed in zip(weights, seeds, strict=False):
                _, layer, own, _ = weight.split(".")
                module = self.model.get_submodule(f"base_model.model.model.layers.{layer}.{PEFT_NAMES[own]}")
                module.lora_dropout["default"] = OurDropout(int(seed.astype(np.int64)))
                self.dropouts.append(module.lora_dropout["default"])
        self.is_paired = family.startswith(("llama", "mistral"))
        self.n_heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
        self.weights = dict(self.model.named_parameters())
        for name, values in learner.parameters.items():
            with torch.no_grad():
                self.weight(name).copy_(torch.from_numpy(self.as_peft(name, values)))

    def weight(self, name: str) -> torch.nn.Parameter:
        _, layer, own, _, kind = name.split(".")
        side = SIDES[kind]
        return self.weights[f"base_model.model.model.layers.{layer}.{PEFT_NAMES[own]}.{side}.default.weight"]

    def as_peft(self, name: str, values: np.ndarray) -> np.ndarray:
        """B is transposed in edgellm; where the rows of W are paired for rotations, so are those of B."""
        if name.endswith("lora_a"):
            return values
        if name.endswith("magnitude"):
            return self.as_peft(name.replace("magnitude", "lora_b"), values[None])[:, 0]
        own = name.split(".")[2]
        if not (self.is_paired and own in self.n_heads):
            return values.T
        order = _paired(np.arange(values.shape[1]).reshape(-1, 1), self.n_heads[own])[:, 0]
        return values.T[np.argsort(order)]

    def losses(self, texts: Documents) -> torch.Tensor:
        """float32 of every target."""
        found = []
        for start, length in zip(texts.starts, texts.lengths, strict=True):
            for dropout in self.dropouts:
                dropout.first = int(start)
            ids, targets = (torch.from_numpy(x[start : start + length]).long() for x in (texts.ids, texts.targets))
            logits = self.model(ids[None]).logits[0]
            nlls = torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
            found.append(nlls[targets >= 0])
        return torch.cat(found)


def learner_of(model: edgellm.Model, kind: str = "lora", **options: Any) -> LoraLearner:
    """With random B too: where it is zero, A has no gradient. Magnitudes begin with what they are in PEFT."""
    learner = LoraLearner(model, LoraConfig(rank=RANK, alpha=ALPHA, **KINDS[kind]), n_batch=256, seed=SEED, **options)
    random = np.random.default_rng(6)
    for name, values in learner.parameters.items():
        if name.endswith("magnitude"):
            values *= random.uniform(0.8, 1.2, values.shape)
        else:
            values[...] = random.normal(0, 0.1, values.shape)
    return learner


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lora"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_other_kinds_are_those_of_peft(family: str, kind: str, tmp_path: Path) -> None:
    reference_model = checkpoints.save(family, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    texts = documents()
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, kind)
        try:
            reference = Reference(family, reference_model, learner)
            weights = torch.from_numpy(texts.weights[texts.targets >= 0])
            learner.begin_pass(*STEP)
            loss = (reference.losses(texts) * weights).sum()
            assert learner.loss_and_gradients(texts, 0.25) == pytest.approx(loss.item(), rel=LOSS)
            (0.25 * loss).backward()
            compare_gradients(reference, learner)
            reference.model.eval()
            expected = reference.losses(texts).detach()
            np.testing.assert_allclose(learner.negative_log_likelihoods(texts), expected, atol=LOSS, rtol=LOSS)
            if "dropout" in kind:
                assert abs(loss.item() - (expected * weights).sum().item()) > 0.1
        finally:
            learner.close()


def compare_gradients(reference: Reference, learner: LoraLearner) -> None:
    for name, gradient in learner.gradients.items():
        given = reference.weight(name).grad.numpy()
        ours = reference.as_peft(name, gradient)
        np.testing.assert_allclose(ours, given, rtol=0, atol=GRADIENT * np.abs(given).max(), err_msg=name)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_kept_as_bfloat16_changes_gradients_little(family: str, tmp_path: Path) -> None:
    checkpoints.save(family, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    texts, found, arenas = documents(), [], []
    with edgellm.load(tmp_path / "model.gguf", n_threads=1, kv_type="f32", activations="f32") as model:
        for in_bf16 in (False, True):
            learner = learner_of(model, in_bf16=in_bf16)
            losses = learner.gradients_by(texts, lambda losses: losses)
            found.append((losses, np.concatenate([g.ravel() for g in learner.gradients.values()])))
            arenas.append(learner._passes._forward.arena.nbytes)
            learner.close()
    (losses, exact), (same_losses, rounded) = found
    np.testing.assert_array_equal(losses, same_losses)
    assert 0 < np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)
    assert arenas[1] < 0.8 * arenas[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_losses_and_gradients_are_those_of_peft(family: str, recompute: bool, tmp_path: Path) -> None:
    reference_model = checkpoints.save(family, tmp_path / "model")
    convert_checkpoint(tmp_path / "model", tmp_path / "model.gguf")
    texts = documents()
    with edgellm.load(tmp_path / "model.gguf", n_threads=2, kv_type="f32", activations="f32") as model:
        learner = learner_of(model, recompute=recompute)
        try:
            reference = Reference(family, reference_model, learner)
            expected = reference.losses(texts)
            np.testing.assert_allclose(learner.negative_log_likelihoods(texts), expected.detach(), atol=LOSS, rtol=LOSS)
            weights = torch.from_numpy(texts.weights[texts.targets >= 0])
            loss = (expected * weights).sum()
            assert learner.loss_and_gradients(texts, 0.25) == pytest.approx(loss.item(), rel=LOSS)
            assert learner.loss(texts) == pytest.approx((loss.item(), texts.total_weight), rel=LOSS)
            (0.25 * loss).backward()
            compare_gradients(reference, learner)
        finally:
            learner.close()
