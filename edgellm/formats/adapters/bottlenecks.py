"""Bottleneck adapters as files: a folder in PEFT's form, of a kind of edgellm's own, for PEFT has none.

adapter_config.json says "peft_type": "BOTTLENECK" and the activation. Tensors are named after the module whose result
they change, `mlp` or `self_attn` of a layer: base_model.model.model.layers.0.mlp.bottleneck_down.weight [size, n_embd]
and .bias [size], bottleneck_up.weight [n_embd, size] and .bias [n_embd].
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.adapters.adapter import Adapter
from edgellm.formats.adapters.naming import Naming
from edgellm.formats.adapters.parts import Bottleneck
from edgellm.formats.adapters.peft_settings import CONFIG, STEM, base_name_of, notes_of
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("BOTTLENECK",)
_PREFIX = "base_model.model."
_NAME = re.compile(r"(.+)\.bottleneck_(down|up)\.(weight|bias)")
# The last linear of a half of a layer -> what the half makes.
_MAKES = {"attn_output": "attn_out", "ffn_down": "ffn_out"}
_PASSED_OVER = (
    "base_model_name_or_path", "bottleneck_size", "inference_mode", "non_linearity", "peft_type", "task_type",
)  # fmt: skip


def read(
    folder: Path, values: Mapping[str, Any], architecture: str, naming: Naming, plain: Callable[[str], str]
) -> Adapter:
    """The adapter of a folder whose settings are those. Raises FileProblem, FormatError, UnsupportedError."""
    s = Settings(values, file=CONFIG)
    size, activation = s.count("bottleneck_size", most=1 << 16), s.get("non_linearity")
    makes = {module: made for made, module in _modules(naming).items()}
    parts: dict[str, dict[str, NDArray[np.float32]]] = defaultdict(dict)
    with open_checkpoint(folder, STEM) as checkpoint:
        for name, dtype in checkpoint.others.items():
            raise UnsupportedError(f"tensor {name!r:.120} is {dtype}; edgellm reads adapters in F32, F16 and BF16")
        for name, tensor in checkpoint.tensors.items():
            match = _NAME.fullmatch(plain(name.removeprefix(_PREFIX)))
            if match is None or match[1] not in makes:
                raise UnsupportedError(f"tensor {name!r:.160} belongs to no half of a layer of a {architecture} model")
            part = match[2] if match[3] == "weight" else f"{match[2]}_bias"
            parts[makes[match[1]]][part] = tensor.dequantize()
    bottlenecks = {}
    for made, found in parts.items():
        if missing := {"down", "down_bias", "up", "up_bias"} - found.keys():
            raise FormatError(f"{made} has no {min(missing)}; expected down and up, each with a weight and a bias")
        bottlenecks[made] = Bottleneck(**found, activation=activation)
        if bottlenecks[made].size != size:
            raise FormatError(f"{made} has a bottleneck of {bottlenecks[made].size}; {CONFIG} says {size}")
    return Adapter(
        architecture, {}, name=folder.resolve().name, base_name=base_name_of(s), notes=notes_of(values, _PASSED_OVER),
        bottlenecks=bottlenecks,
    )  # fmt: skip


def tensors_of(adapter: Adapter, naming: Naming) -> dict[str, NDArray[np.float32]]:
    """What the file holds."""
    modules = _modules(naming)
    found: dict[str, NDArray[np.float32]] = {}
    for made, bottleneck in adapter.bottlenecks.items():
        stem = f"{_PREFIX}{modules[made]}.bottleneck"
        found |= {
            f"{stem}_down.weight": bottleneck.down, f"{stem}_down.bias": bottleneck.down_bias,
            f"{stem}_up.weight": bottleneck.up, f"{stem}_up.bias": bottleneck.up_bias,
        }  # fmt: skip
    return found


def settings_of(adapter: Adapter) -> dict[str, Any]:
    """What adapter_config.json says."""
    first = next(iter(adapter.bottlenecks.values()))
    return {
        "peft_type": KINDS[0],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_name or None,
        "inference_mode": True,
        "bottleneck_size": first.size,
        "non_linearity": first.activation,
    }


def _modules(naming: Naming) -> dict[str, str]:
    """The module of each half of a layer, by the name of what it makes."""
    found = {}
    for name, theirs in naming.names.items():
        block, _, own = name.removesuffix(".weight").rpartition(".")
        if own in _MAKES and name.endswith(".weight"):
            found[f"{block}.{_MAKES[own]}"] = theirs.removesuffix(".weight").rpartition(".")[0]
    return found
