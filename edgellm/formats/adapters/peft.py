"""Adapters as PEFT saves them: a folder with adapter_config.json and adapter_model.safetensors.

Its tensors are named after the modules of the base model (base_model.model.model.layers.0.self_attn.q_proj and others):
.lora_A.weight [rank, n_in] and .lora_B.weight [n_out, rank], and with DoRA .lora_magnitude_vector [n_out]. Whole
weights and biases have their own names. Experts are in `experts.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgellm.errors import FileProblem, FormatError, UnsupportedError, UsageError
from edgellm.files import atomic_write
from edgellm.formats.adapters import bottlenecks, experts, prompts
from edgellm.formats.adapters.adapter import SCORE, Adapter, LowRank
from edgellm.formats.adapters.naming import Naming
from edgellm.formats.adapters.peft_claims import Held
from edgellm.formats.adapters.peft_settings import CONFIG, STEM, PeftSettings
from edgellm.formats.checkpoint import open_checkpoint
from edgellm.formats.json_file import read_json
from edgellm.formats.safetensors import write_safetensors_file
from edgellm.quants import FORMATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

EMBEDDING = "token_embd.weight"
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
                    r"(?:\.default)?(?:\.weight)?")  # fmt: skip
_WHOLE = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?|\.base_layer)?\.(weight|bias)")
Named = Callable[[str], str]


def is_peft(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / CONFIG).is_file()


def read_peft_settings(folder: Path) -> PeftSettings:
    """The settings of low-rank matrices alone. Raises FileProblem, FormatError or UnsupportedError."""

    def read() -> PeftSettings:
        values = read_json(folder / CONFIG)
        if (kind := values.get("peft_type")) in (*prompts.KINDS, *bottlenecks.KINDS):
            raise UnsupportedError(
                f"{CONFIG}: the adapter is {kind!r}, which is no change of weights and cannot be in a GGUF adapter; "
                "run its model with the folder itself (--lora)"
            )
        return PeftSettings(values)

    return _told(folder, read)


def read_peft(
    folder: Path,
    architecture: str,
    naming: Naming,
    plain: Named = lambda name: name,
    base: Collection[str] | None = None,
) -> Adapter:
    """The adapter in a folder, for a base model of that architecture, whose checkpoint has those names.

    plain:  what a tensor's name is where the language model is alone, for adapters of larger models.
    base:   names of the base model's tensors, where it is there.

    Raises FileProblem, FormatError, UnsupportedError; names of settings and tensors are the folder's own.
    """
    return _told(folder, lambda: _read(folder, architecture, naming, plain, base))


def write_peft(folder: Path, adapter: Adapter, naming: Naming, n_kv_heads: int = 1) -> None:
    """Write the two files, each beside its name and renamed, the settings last; other files in the folder stay.

    n_kv_heads:  of the base model, which is said of a prefix.

    Raises UsageError for an adapter that PEFT has no form for.
    """
    adapter.check()
    adapter = replace(adapter, weights=experts.fitted(adapter.weights, naming.stacks))
    if adapter.prompt is not None or adapter.prefix:
        settings, arrays = prompts.settings_of(adapter, n_kv_heads), prompts.tensors_of(adapter, naming)
    elif adapter.bottlenecks:
        settings, arrays = bottlenecks.settings_of(adapter), bottlenecks.tensors_of(adapter, naming)
    else:
        settings, arrays = _settings(adapter, naming), dict(_their_tensors(adapter, naming))
    tensors = [(name, x.shape, FORMATS["F32"], np.ascontiguousarray(x, "<f4")) for name, x in arrays.items()]
    write_safetensors_file(folder / f"{STEM}.safetensors", tensors)
    with atomic_write(folder / CONFIG) as file:
        file.write((json.dumps(settings, indent=2) + "\n").encode())


def _told(folder: Path, work: Callable[[], Any]) -> Any:
    """The result, or the error with the folder in front."""
    try:
        return work()
    except FileProblem as problem:
        raise type(problem)(f"{folder}: {str(problem).removeprefix(f'{folder}: ')}") from None


# --- reading ------------------------------------------------------------------------------------------------


def _read(folder: Path, architecture: str, naming: Naming, plain: Named, base: Collection[str] | None) -> Adapter:
    values = read_json(folder / CONFIG)
    for reader in (prompts, bottlenecks):
        if values.get("peft_type") in reader.KINDS:
            adapter = reader.read(folder, values, architecture, naming, plain)
            adapter.check()
            return adapter
    settings = PeftSettings(values)
    parts: dict[str, dict[str, NDArray[np.float32]]] = defaultdict(dict)
    replaced: dict[str, NDArray[np.float32]] = {}
    score: NDArray[np.float32] | None = None
    called: dict[str, str] = {}
    modules = {theirs.removesuffix(".weight"): name for theirs, name in naming.ours.items()}
    of_experts = experts.ExpertParts(naming, settings, plain)
    with open_checkpoint(folder, STEM) as checkpoint:
        for name, dtype in checkpoint.others.items():
            raise UnsupportedError(f"tensor {name!r:.120} is {dtype}; edgellm reads adapters in F32, F16 and BF16")
        for name, tensor in checkpoint.tensors.items():
            module, part = _place(name, plain)
            called.setdefault(module, _place(name, lambda inner: inner)[0])
            if f"{module}.{part}" == SCORE:
                score = tensor.dequantize()
            elif part in ("weight", "bias"):
                whole = naming.ours.get(f"{module}.{part}")
                if whole is None or whole in replaced:
                    raise _no_place(name, architecture)
                x = naming.rows_in(whole, tensor.dequantize())
                replaced[whole] = x + np.float32(naming.offsets.get(whole, 0.0))
            elif of_experts.take(module, part, tensor.dequantize):
                continue
            elif module not in modules or part in parts[module]:
                raise _no_place(name, architecture)
            else:
                parts[module][part] = tensor.dequantize()
    weights = {
        modules[module]: _low_rank(modules[module], module, found, settings, naming) for module, found in parts.items()
    }
    weights |= of_experts.low_ranks()
    whole_names = [naming.names[name] for name in replaced]
    settings.compare(Held([*parts], [*of_experts.modules], whole_names, score is not None, called), naming, base)
    if settings.ties_weights and {EMBEDDING, "output.weight"} & (weights.keys() | replaced.keys()):
        raise UnsupportedError(
            f"{CONFIG}: ensure_weight_tying is true and the adapter changes embeddings; edgellm changes each by itself"
        )
    adapter = Adapter(
        architecture,
        weights,
        replaced,
        folder.resolve().name,
        settings.base_name,
        settings.rank_stabilized,
        settings.dropout,
        tuple(settings.notes),
        score=score,
    )
    adapter.check()
    return adapter


def _place(name: str, plain: Named) -> tuple[str, str]:
    """The module that a tensor belongs to, and what it is there."""
    inner = plain(name.removeprefix(_PREFIX))
    if match := _PARTS.fullmatch(inner):
        return match[1], match[2]
    if match := _WHOLE.fullmatch(inner):
        return match[1], match[2]
    return inner, ""


def _no_place(name: str, architecture: str) -> UnsupportedError:
    return UnsupportedError(f"tensor {name!r:.160} belongs to no weight of a {architecture} model, or stands twice")


def _low_rank(
    name: str, module: str, parts: Mapping[str, NDArray[np.float32]], settings: PeftSettings, naming: Naming
) -> LowRank:
    """The tensors of one module as what is added to its weight."""
    first, second = ("lora_embedding_A", "lora_embedding_B") if name == EMBEDDING else ("lora_A", "lora_B")
    wanted = {first, second} | ({"lora_magnitude_vector"} if settings.is_dora else set())
    if name != EMBEDDING and {"lora_embedding_A", "lora_embedding_B"} & parts.keys():
        raise UnsupportedError(
            f"{module}: the adapter changes these embeddings; edgellm has LoRA beside those of tokens"
        )
    if parts.keys() != wanted:
        says = f" ({CONFIG}: use_dora is {str(settings.is_dora).lower()})"
        raise FormatError(f"{module} has {' and '.join(sorted(parts))}; expected {' and '.join(sorted(wanted))}{says}")
    a, b = parts[first], parts[second]
    if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
        raise FormatError(
            f"{module}: {first} has shape {list(a.shape)} and {second} {list(b.shape)}; expected [rank, n_in] and "
            "[n_out, rank]"
        )
    scale = settings.scale(module, len(a))
    if name == EMBEDDING and settings.is_dora:
        raise UnsupportedError(
            f"{module}: {CONFIG} says use_dora, and the adapter changes embeddings; edgellm has DoRA beside linears, "
            "and plain LoRA beside embeddings"
        )
    if name == EMBEDDING:  # PEFT adds to the transposed matrix
        return LowRank(np.ascontiguousarray(b.T), np.ascontiguousarray(a.T), scale)
    order = naming.orders.get(name)
    if order is not None and len(order) != len(b):
        raise FormatError(f"{module}: {second} has {len(b)} rows; the base model's weight has {len(order)}")
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is not None:
        magnitude = naming.rows_in(name, _column(module, magnitude, len(b)))
    return LowRank(a, naming.rows_in(name, b), scale, magnitude)


def _column(module: str, magnitude: NDArray[np.float32], n_out: int) -> NDArray[np.float32]:
    if magnitude.size != n_out:
        raise FormatError(f"{module}: lora_magnitude_vector has shape {list(magnitude.shape)}; expected [{n_out}]")
    return magnitude.reshape(-1)


# --- writing ------------------------------------------------------------------------------------------------


def _their_tensors(adapter: Adapter, naming: Naming) -> Iterable[tuple[str, NDArray[np.float32]]]:
    for name, x in experts.tensors_of(experts.parameters_of(adapter.weights, naming)):
        yield _PREFIX + name, x
    for name, change in adapter.weights.items():
        if name in naming.stacks:
            continue
        module = _PREFIX + _module(name, naming)
        if name == EMBEDDING:
            yield f"{module}.lora_embedding_A", change.b.T
            yield f"{module}.lora_embedding_B", change.a.T
            continue
        yield f"{module}.lora_A.weight", change.a
        yield f"{module}.lora_B.weight", naming.rows_out(name, change.b)
        if change.magnitude is not None:
            yield f"{module}.lora_magnitude_vector", naming.rows_out(name, change.magnitude)
    for name, x in adapter.replaced.items():
        theirs, wrapped = _their_name(name, naming), _weight_of(name) in adapter.weights
        module, _, kind = theirs.rpartition(".")
        plain = naming.rows_out(name, x) - np.float32(naming.offsets.get(name, 0.0))
        yield f"{_PREFIX}{module}{'.base_layer' if wrapped else ''}.{kind}", plain
    if adapter.score is not None:
        yield _PREFIX + SCORE, adapter.score


def _settings(adapter: Adapter, naming: Naming) -> dict[str, Any]:
    if len({change.magnitude is None for change in adapter.weights.values()}) > 1:
        raise UsageError("some of the adapter's weights have a magnitude and some have none; PEFT knows all or none")
    parameters = experts.parameters_of(adapter.weights, naming)
    linears = {_module(name, naming): change for name, change in adapter.weights.items() if name not in naming.stacks}
    if parameters:
        like_experts = [module for module in linears if experts.is_like_experts(module)]
        parameters |= {f"{module}.weight": linears.pop(module) for module in like_experts}
    changes = linears | parameters
    ranks = {module: change.rank for module, change in changes.items()}
    alphas = {
        module: _number(change.scale * (math.sqrt(change.rank) if adapter.rank_stabilized else change.rank))
        for module, change in changes.items()
    }
    rank, alpha = _most(ranks.values(), 8), _most(alphas.values(), 8)
    # Beside low-rank steps, a whole weight is that of the layer inside, which needs no mention.
    beside = [name for name in adapter.replaced if name.endswith(".weight") and name not in adapter.weights]
    whole = [_module(name, naming) for name in beside]
    if adapter.score is not None:
        whole.append(SCORE.removesuffix(".weight"))
    # PEFT has no dropout beside parameters, and would refuse one. It reads them by its version.
    of_parameters = {"target_parameters": [*parameters], "lora_dropout": 0.0, "peft_version": experts.VERSION}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if adapter.score is None else "SEQ_CLS",
        "base_model_name_or_path": adapter.base_name or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": _targets(linears.keys(), naming),
        "rank_pattern": {module: other for module, other in ranks.items() if other != rank},
        "alpha_pattern": {module: other for module, other in alphas.items() if other != alpha},
        "use_rslora": adapter.rank_stabilized,
        "use_dora": adapter.method == "dora",
        "modules_to_save": whole or None,
        "bias": _biases(adapter),
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    } | (of_parameters if parameters else {})


def _targets(changed: Set[str], naming: Naming) -> list[str]:
    """Short names of modules where all that end so are changed, and otherwise whole ones."""
    every: dict[str, set[str]] = defaultdict(set)
    for name, theirs in naming.names.items():
        if name.endswith(".weight"):
            module = theirs.removesuffix(".weight")
            every[module.rpartition(".")[2]].add(module)
    short = {last for last, modules in every.items() if modules <= changed}
    return sorted({last if (last := module.rpartition(".")[2]) in short else module for module in changed})


def _biases(adapter: Adapter) -> str:
    biases = [name for name in adapter.replaced if name.endswith(".bias")]
    if not biases:
        return "none"
    return "lora_only" if all(_weight_of(name) in adapter.weights for name in biases) else "all"


def _weight_of(name: str) -> str:
    return f"{name.rpartition('.')[0]}.weight"


def _module(name: str, naming: Naming) -> str:
    return _their_name(name, naming).removesuffix(".weight")


def _their_name(name: str, naming: Naming) -> str:
    if name not in naming.names:
        raise UsageError(f"the checkpoints of this family have no place for {name!r}")
    return naming.names[name]


def _most(values: Iterable[Any], otherwise: Any) -> Any:
    """The commonest."""
    return next((value for value, _ in Counter(values).most_common(1)), otherwise)


def _number(value: float) -> float | int:
    """A whole number where it is one, but for rounding."""
    rounded = round(value)
    return rounded if math.isclose(value, rounded, rel_tol=1e-12) else value
