"""LoRA through what families have of their own, beside peft: LayerNorm, soft caps, linear biases, sinks, experts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

import edgellm
from edgellm.arch import architecture_of
from edgellm.arch.adapters import naming_of
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
FAMILIES = ["gpt2", "gptneox", "bloom", "gemma2", "olmoe", "qwen2moe", "gpt-oss", "mixtral", "granitemoe",
            "gemma4"]  # fmt: skip
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
    """The same model and adapter in peft, on the very layers that the learner trains.

    Gates and ups of experts are one parameter there: its matrices of twice the rank have those of both.
    """

    def __init__(self, folder: Path, model: edgellm.Model, learner: LoraLearner) -> None:
        own = checkpoints.load(folder)
        own.set_attn_implementation("eager")
        self.naming = naming_of(model.metadata)
        weights = [name.rsplit(".", 1)[0] for name in learner.parameters if name.endswith("lora_a")]
        modules = [self.naming.names[name].removesuffix(".weight") for name in weights if "_exps" not in name]
        parameters = {self.naming.stacks[name].parameters[0] for name in weights if "_exps" in name}
        n_parts = max([self.naming.stacks[name].n_parts for name in weights if "_exps" in name], default=1)
        is_conv = type(own).__name__.startswith("GPT2")
        settings = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=modules, fan_in_fan_out=is_conv,
            target_parameters=sorted(parameters) or None, rank_pattern={r".*\.gate_up_proj": n_parts * RANK},
            alpha_pattern={r".*\.gate_up_proj": n_parts * ALPHA},
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*_pattern keys did not match any")  # it looks at modules alone
            self.model = peft.get_peft_model(own, settings)
        self.weights = dict(self.model.named_parameters())
        for name, values in learner.parameters.items():
            with torch.no_grad():
                self.part(name, self.weight(name).data).copy_(torch.from_numpy(self.as_peft(name, values)))

    def weight(self, name: str) -> torch.nn.Parameter:
        weight, side = name.rsplit(".", 1)
        if "_exps" in weight:
            module, _, parameter = self.naming.stacks[weight].parameters[0].rpartition(".")
            module += ".base_layer" if parameter == "gate_up_proj" else ""
        else:
            module = self.naming.names[weight].removesuffix(".weight")
        return self.weights[f"base_model.model.{module}.{SIDES[side]}.default.weight"]

    def part(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Those numbers of a matrix in peft that are the learner's: of experts [n_experts, rank, n_in] or as B is."""
        kind, _, side = name.rsplit(".", 3)[-3:]
        if "_exps" not in kind:
            return x
        stack = self.naming.stacks[name.rsplit(".", 1)[0]]
        part, n_parts = {"ffn_gate_exps": (0, 2), "ffn_up_exps": (1, 2)}.get(kind, (0, 1))
        ranks = slice(part * RANK, (part + 1) * RANK)
        if side == "lora_a":
            return x.reshape(stack.n_experts, n_parts * RANK, -1)[:, ranks]
        whole = x.reshape(-1, n_parts * RANK, stack.n_experts).permute(2, 0, 1)[:, :, ranks]
        return whole[:, part::n_parts] if stack.is_across else whole.chunk(n_parts, 1)[part]

    def as_peft(self, name: str, values: np.ndarray) -> np.ndarray:
        """B is transposed in edgellm but for experts, and has its rows as GGUF has those of W."""
        if name.endswith("lora_a") or "_exps" in name:
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
                    given = reference.part(name, reference.weight(name).grad).numpy()
                    ours, atol = reference.as_peft(name, gradient), GRADIENT * np.abs(given).max()
                    np.testing.assert_allclose(ours, given, rtol=0, atol=atol, err_msg=name)
                kinds = {name.rsplit(".", 3)[-3] for name in learner.parameters}
                in_one = family == "gemma4"
                gates = {"ffn_gate_up_exps"} if in_one else {"ffn_gate_exps", "ffn_up_exps"}
                assert {*gates, "ffn_down_exps"} <= kinds or family not in MIXTURES
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


ATTENTION = {"attn_q", "attn_k", "attn_v", "attn_output"}
EXPERTS = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({}, ATTENTION | EXPERTS),
        ({"method": "dora"}, ATTENTION),
        ({"target_modules": ("ffn_gate_inp",)}, {"ffn_gate_inp"}),
        ({"target_modules": ("up_proj", "q_proj")}, {"ffn_up_exps", "attn_q"}),
        ({"target_modules": ("gate_up_proj", "ffn_down_exps")}, EXPERTS),
    ],
)
def test_which_layers_of_a_mixture_are_trained(config: dict[str, Any], kinds: set[str], tmp_path: Path) -> None:
    """Routers where they are named, and experts but with DoRA, which PEFT has not for them either."""
    with edgellm.load(saved("olmoe", tmp_path), n_threads=1) as model:
        learner = LoraLearner(model, LoraConfig(rank=RANK, **config))
        assert {name.split(".")[2] for name in learner.parameters} == kinds
        assert learner.adapter().weights.keys() == {name.rsplit(".", 1)[0] for name in learner.parameters}
        learner.close()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target_modules": ("q_proj", "experts")}, "names 'experts'.*it has attn_k, .*ffn_down_exps, ffn_gate_exps"),
        (
            {"target_modules": ("w2",), "method": "dora"},
            "names 'w2', and ffn_down_exps are experts, which",
        ),
    ],
)
def test_layers_that_cannot_be_trained_are_refused_by_name(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with edgellm.load(saved("olmoe", tmp_path), n_threads=1) as model, pytest.raises(UsageError, match=says):
        LoraLearner(model, LoraConfig(rank=RANK, **config))
