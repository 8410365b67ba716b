"""Adapters as GGUF files, as llama.cpp reads and writes them.

The two matrices of a weight are named after it: `blk.0.attn_q.weight.lora_a` [rank, n_in] and `.lora_b` [n_out, rank].
Those of experts are stacks: `blk.0.ffn_up_exps.weight.lora_a` [n_experts, rank, n_in] and `.lora_b` [n_experts, n_out,
rank].
All have one alpha, `adapter.lora.alpha`, and each its own scale alpha / rank. For the embeddings, which are looked up,
the two stand the other way round: `.lora_a` is [n_vocab, rank] and `.lora_b` [n_embd, rank].
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FileProblem, FormatError, UnsupportedError, UsageError, shown
from edgellm.formats.adapters.adapter import Adapter, LowRank
from edgellm.formats.gguf import GGUFFile, get_value
from edgellm.quants import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMBEDDING = "token_embd.weight"


def read_gguf_adapter(path: Path) -> Adapter:
    """The adapter in a file. Raises FileProblem, FormatError, UnsupportedError."""
    with GGUFFile.open(path) as file:
        try:
            return _read(file)
        except FileProblem as problem:
            raise type(problem)(f"{path}: {str(problem).removeprefix(f'{path}: ')}") from None


def write_gguf_adapter(path: Path, adapter: Adapter) -> None:
    """Write a file in float32. Raises UsageError for an adapter that this form cannot hold."""
    from edgellm.formats.gguf import GGUFWriter

    entries = [(name, x.shape, FORMATS["F32"], np.ascontiguousarray(x, "<f4")) for name, x in gguf_tensors(adapter)]
    GGUFWriter(path, gguf_metadata(adapter) | {"general.file_type": 0}, entries).write()


def gguf_metadata(adapter: Adapter) -> dict[str, Any]:
    """What the file says of the adapter."""
    metadata = {
        "general.architecture": adapter.architecture,
        "general.type": "adapter",
        "general.name": adapter.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": _alpha(adapter),
    }
    if adapter.base_name:
        metadata |= {"general.base_model.count": 1, "general.base_model.0.name": adapter.base_name}
    return metadata


def gguf_tensors(adapter: Adapter) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors by their names in the file; where a scale is not alpha / rank, what it differs by goes into B."""
    adapter.check()
    adapter.refuse_score("a GGUF adapter")
    if adapter.method not in ("lora", "dora"):
        raise UsageError(
            f"the adapter is of the kind {adapter.method!r}, which a GGUF adapter cannot hold; keep its PEFT folder"
        )
    if adapter.method == "dora":
        raise UsageError("the adapter has magnitudes (use_dora), which a GGUF adapter cannot hold; merge it instead")
    if adapter.replaced:
        raise UsageError(
            f"the adapter replaces whole weights, such as {next(iter(adapter.replaced))} (PEFT saves modules_to_save, "
            "biases and embeddings so), which a GGUF adapter cannot hold; merge it instead"
        )
    alpha = _alpha(adapter)
    for name, change in adapter.weights.items():
        factor = np.float32(change.scale * change.rank / alpha)
        b = change.b if factor == 1 else change.b * factor
        if name == EMBEDDING:
            yield f"{name}.lora_a", b
            yield f"{name}.lora_b", change.a.T
        else:
            yield f"{name}.lora_a", change.a
            yield f"{name}.lora_b", b


def _alpha(adapter: Adapter) -> float:
    """The commonest; 0 would mean something else."""
    alphas = Counter(float(np.float32(change.scale * change.rank)) for change in adapter.weights.values())
    return next((alpha for alpha, _ in alphas.most_common() if alpha), 1.0)


def _read(file: GGUFFile) -> Adapter:
    kind = file.get("general.type", str, "model")
    if kind != "adapter":
        raise UnsupportedError(f"it holds a {shown(kind)}, and no adapter")
    if (method := file.get("adapter.type", str)) != "lora":
        raise UnsupportedError(f"the adapter is {shown(method)}; edgellm reads 'lora'")
    if any(key.startswith("adapter.alora.") for key in file.metadata):
        raise UnsupportedError("an adapter that is switched on by tokens (adapter.alora); edgellm has it on or off")
    alpha = file.get("adapter.lora.alpha", float, 0.0)
    pairs: dict[str, dict[str, NDArray[np.float32]]] = defaultdict(dict)
    replaced: dict[str, NDArray[np.float32]] = {}
    for name, tensor in file.tensors.items():
        weight, _, side = name.rpartition(".")
        if side in ("lora_a", "lora_b"):
            pairs[weight][side] = tensor.dequantize()
        elif name.endswith("_norm.weight"):  # whole norms are all that llama.cpp allows beside the pairs
            replaced[name] = tensor.dequantize()
        else:
            raise UnsupportedError(f"tensor {name!r:.120} is no part of LoRA; expected NAME.lora_a and .lora_b")
    adapter = Adapter(
        file.get("general.architecture", str),
        {name: _low_rank(name, pair, alpha) for name, pair in pairs.items()},
        replaced,
        file.get("general.name", str, file.path.stem),
        get_value(file.metadata, "general.base_model.0.name", str, ""),
    )
    adapter.check()
    return adapter


def _low_rank(name: str, pair: dict[str, NDArray[np.float32]], alpha: float) -> LowRank:
    if len(pair) != 2:
        raise FormatError(f"{name} has {next(iter(pair))} alone; expected lora_a and lora_b")
    a, b = pair["lora_a"], pair["lora_b"]
    if name == EMBEDDING and a.ndim == b.ndim == 2:
        a, b = np.ascontiguousarray(b.T), a
    rank = max(1, b.shape[-1] if b.ndim else 1)
    return LowRank(a, b, alpha / rank if alpha else 1.0)  # an alpha of 0 is none, as in llama.cpp
