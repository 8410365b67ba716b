"""Learnt tokens as PEFT saves them: prompt tuning, P-tuning and prefix tuning.

All hold one tensor, `prompt_embeddings`. Of the first two it is [n_virtual, n_embd]: what P-tuning's network made, not
the network. Of a prefix it is [n_virtual, n_layers * 2 * n_kv_heads * head_dim], layer by layer keys and then values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.adapters.adapter import Adapter
from edgellm.formats.adapters.naming import Naming
from edgellm.formats.adapters.parts import MOST_VIRTUAL, LayerPrefix
from edgellm.formats.adapters.peft_settings import CONFIG, STEM, base_name_of, notes_of
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT, P_TUNING, PREFIX = KINDS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
TENSOR = "prompt_embeddings"
_MOST_WIDTH = 1 << 20  # of the network of P-tuning
# How the tokens were begun and made in training, and what the base model is like: all of it shows in the tensor.
_PASSED_OVER = (
    "auto_mapping", "base_model_name_or_path", "encoder_dropout", "encoder_hidden_size", "encoder_num_layers",
    "encoder_reparameterization_type", "inference_mode", "init_weights", "num_attention_heads", "num_layers",
    "num_transformer_submodules", "num_virtual_tokens", "peft_type", "peft_version", "prefix_projection",
    "prompt_tuning_init", "prompt_tuning_init_text", "revision", "task_type", "token_dim", "tokenizer_kwargs",
    "tokenizer_name_or_path",
)  # fmt: skip


def read(
    folder: Path, values: Mapping[str, Any], architecture: str, naming: Naming, plain: Callable[[str], str]
) -> Adapter:
    """The adapter of a folder whose settings are those. Raises FileProblem, FormatError, UnsupportedError."""
    s = Settings(values, file=CONFIG)
    if s.count("num_transformer_submodules", 1) != 1:
        raise UnsupportedError(f"{CONFIG}: num_transformer_submodules is {s.get('num_transformer_submodules')}; "
                               "edgellm runs models that are one transformer")  # fmt: skip
    n_virtual = s.count("num_virtual_tokens", most=MOST_VIRTUAL)
    with open_checkpoint(folder, STEM) as checkpoint:
        if others := [*checkpoint.others, *(name for name in checkpoint.tensors if name != TENSOR)]:
            raise UnsupportedError(f"tensor {others[0]!r:.120} is no part of {s.get('peft_type')}; expected {TENSOR}, "
                                   "in F32, F16 or BF16")  # fmt: skip
        if TENSOR not in checkpoint.tensors:
            raise FormatError(f"{STEM} has no tensor {TENSOR}")
        table = checkpoint.tensors[TENSOR].dequantize()
    if table.ndim != 2 or len(table) != n_virtual:
        raise FormatError(f"{TENSOR} has the shape {list(table.shape)}; {CONFIG} says num_virtual_tokens: {n_virtual}")
    known: dict[str, Any] = {
        "name": folder.resolve().name, "base_name": base_name_of(s), "notes": notes_of(values, _PASSED_OVER),
    }  # fmt: skip
    if s.get("peft_type") == PREFIX:
        return Adapter(architecture, {}, prefix=_layers(table, naming), **known)
    width = s.count("encoder_hidden_size", table.shape[1], _MOST_WIDTH) if s.get("peft_type") == P_TUNING else 0
    return Adapter(architecture, {}, prompt=table, encoder_width=width, **known)


def _layers(table: NDArray[np.float32], naming: Naming) -> tuple[LayerPrefix, ...]:
    """The keys and values of each layer, keys in GGUF's order."""
    n_layers = sum(name.endswith(".attn_k.weight") for name in naming.names)
    n_virtual, width = table.shape
    if not n_layers or width % (2 * n_layers):
        raise FormatError(
            f"{TENSOR} has {width} columns, which are no keys and values of the same width for each of the {n_layers} "
            "layers of this model"
        )
    parts = table.reshape(n_virtual, n_layers, 2, -1)
    found = []
    for layer in range(n_layers):
        name = _weight(layer)
        if len(naming.orders.get(name, ())) not in (0, parts.shape[-1]):
            raise FormatError(
                f"{TENSOR} has keys of width {parts.shape[-1]} in each layer; this model has {len(naming.orders[name])}"
            )
        keys = naming.rows_in(name, parts[:, layer, 0].T).T
        found.append(LayerPrefix(np.ascontiguousarray(keys), np.ascontiguousarray(parts[:, layer, 1])))
    return tuple(found)


def tensors_of(adapter: Adapter, naming: Naming) -> dict[str, NDArray[np.float32]]:
    """What the file holds."""
    if adapter.prompt is not None:
        return {TENSOR: adapter.prompt}
    parts = [
        x
        for index, layer in enumerate(adapter.prefix)
        for x in (naming.rows_out(_weight(index), layer.keys.T).T, layer.values)
    ]
    return {TENSOR: np.concatenate(parts, axis=1)}


def settings_of(adapter: Adapter, n_kv_heads: int) -> dict[str, Any]:
    """What adapter_config.json says. What is null, PEFT takes from the base model."""
    common = {
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name or None,
        "inference_mode": True,
        "num_virtual_tokens": adapter.n_virtual,
        "num_transformer_submodules": 1,
        "num_layers": None,
        "num_attention_heads": None,
    }
    if adapter.prefix:
        return common | {
            "peft_type": PREFIX, "num_layers": len(adapter.prefix), "token_dim": adapter.prefix[0].keys.shape[1],
            "num_attention_heads": n_kv_heads, "prefix_projection": False,
        }  # fmt: skip
    assert adapter.prompt is not None
    common["token_dim"] = adapter.prompt.shape[1]
    if adapter.encoder_width:
        return common | {
            "peft_type": P_TUNING, "encoder_reparameterization_type": "MLP",
            "encoder_hidden_size": adapter.encoder_width, "encoder_num_layers": 2, "encoder_dropout": 0.0,
        }  # fmt: skip
    return common | {"peft_type": PROMPT, "prompt_tuning_init": "RANDOM"}


def _weight(layer: int) -> str:
    """Of the keys: whatever order its rows have, keys have."""
    return f"blk.{layer}.attn_k.weight"
