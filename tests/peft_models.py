"""Tiny models with random adapters, as PEFT makes and saves them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from edgellm.convert.checkpoints import convert_checkpoint
from tests.convert import checkpoints

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = np.random.default_rng(5).integers(2, checkpoints.N_VOCAB, 90).tolist()


def save_base(family: str, folder: Path) -> Path:
    """A checkpoint in `folder`/base; returns its GGUF file, in float32."""
    checkpoints.save(family, folder / "base")
    convert_checkpoint(folder / "base", folder / "base.gguf")
    return folder / "base.gguf"


def base_of(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()


def save_adapter(folder: Path, name: str, seed: int = 0, size: float = 0.3, **settings: Any) -> Any:
    """An adapter with random weights for the model in `folder`, saved there; returns the model with it."""
    usual: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(base_of(folder), LoraConfig(**(usual | settings))).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for x in adapted.parameters():
                if x.requires_grad:
                    spread = x.std() if x.ndim > 1 and x.any() else 0.5
                    x.add_(torch.randn(x.shape, generator=generator) * size * spread)
        adapted.save_pretrained(folder / name)
    return adapted


def with_adapters(folder: Path, *names: str) -> Any:
    """The base model with saved adapters, all of them in use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base_of(folder), folder / names[0], adapter_name=names[0])
        for name in names[1:]:
            model.load_adapter(folder / name, adapter_name=name)
        model.base_model.set_adapter(list(names))
    return model.eval()


def logits(model: Any, ids: list[int] = IDS) -> np.ndarray:
    return checkpoints.logits(model, ids)
