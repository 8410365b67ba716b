"""What config.json says of rotary embedding, as GGUF's keys and tensors, and the way back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.arch.rope import RopeScaling
from edgellm.errors import FormatError, UnsupportedError, shown
from edgellm.formats.settings import Settings

STANDS_STILL = 1e30  # by which a pair is slowed down that is not turned
BY_FORMULA = ("default", "linear", "dynamic", "yarn")  # those that need no tensor with a factor for each pair
ROPES = (*BY_FORMULA, "longrope", "llama3")


def rope_settings(s: Settings, known: tuple[str, ...] = ROPES, partial: bool = False) -> Settings:
    """rope_theta, rope_type and what belongs to it, wherever this version of config.json keeps them.

    As in transformers, rope_scaling counts before rope_parameters, and what the section leaves out may stand beside it.
    partial:  the family may turn only a part of each head (partial_rotary_factor).

    Raises UnsupportedError for a rope_type that is not `known`, and for sections by kind of layer.
    """
    name = "rope_scaling" if s.section("rope_scaling").values else "rope_parameters"
    rope = s.section(name)
    if inner := next((key for key, value in rope.values.items() if isinstance(value, dict)), None):
        raise UnsupportedError(f"{rope.file} has a section {inner!r:.60}; edgellm runs this family with one for all")
    if not partial:
        for place in (s, rope):
            place.expect("partial_rotary_factor", 1.0)
    beside = {
        "rope_theta": s.get("rope_theta", 10000.0),
        "rope_type": rope.get("type", "default"),
        "original_max_position_embeddings": s.get("max_position_embeddings"),
        "max_position_embeddings": s.get("max_position_embeddings"),
        "partial_rotary_factor": s.get("partial_rotary_factor", 1.0),
    }
    original = {key: s.get(key) for key in ("original_max_position_embeddings",) if s.get(key) is not None}
    found = Settings(rope.values | original, beside, rope.file)
    kind = found.get("rope_type")
    if kind == "su":  # long-rope, as the first of its checkpoints call it
        kind = found.values["rope_type"] = "longrope"
    if kind not in known:
        raise UnsupportedError(f"{rope.file}: rope scaling of type {kind!r:.60}; edgellm knows {', '.join(known)} here")
    return found


def ropes_by_kind(
    s: Settings, base: Any, local_base: Any, known: tuple[str, ...] = ("default", "linear")
) -> tuple[Settings, Settings]:
    """The rotary embeddings of layers that see everything, of the types `known`, and of those that slide.

    They are two sections of rope_parameters, or what they differ in stands beside each other, as in older files, where
    rope_scaling is that of the first alone.
    """
    ropes = s.section("rope_parameters")
    if unknown := [key for key in ropes.values if key not in ("full_attention", "sliding_attention")]:
        raise UnsupportedError(
            f"{ropes.file} has {unknown[0]!r:.60}; expected the sections full_attention and sliding_attention"
        )
    s.expect("partial_rotary_factor", 1.0)
    full, sliding = (ropes.section(f"{kind}_attention").values for kind in ("full", "sliding"))
    if scaling := s.section("rope_scaling").values:
        full = {key: value for key, value in full.items() if key not in ("type", "rope_type")} | scaling
    lengths = ("max_position_embeddings", "original_max_position_embeddings")
    beside = {key: s.get(key) for key in lengths if s.get(key) is not None}
    return (
        rope_settings(Settings(beside | {"rope_theta": base, "rope_parameters": full}), known),
        rope_settings(Settings(beside | {"rope_theta": local_base, "rope_parameters": sliding}), known=("default",)),
    )


def turned_dimensions(rope: Settings, head_dim: int) -> int:
    """How many dimensions of a head are turned."""
    is_part = rope.get("rope_type") != "proportional"  # which has a factor for each pair
    n_rot = int(head_dim * rope.number("partial_rotary_factor", 1.0)) if is_part else head_dim
    if n_rot == head_dim and n_rot % 2:
        raise UnsupportedError(
            f"config.json: each head has {head_dim} dimensions (head_dim, or hidden_size / num_attention_heads), and "
            "rotary embedding turns pairs of them; expected an even number"
        )
    if not 2 <= n_rot <= head_dim or n_rot % 2:
        raise UnsupportedError(
            f"{rope.file}: partial_rotary_factor turns {n_rot} of {head_dim} dimensions; expected an even number"
        )
    return n_rot


def rope_hyperparameters(rope: Settings) -> dict[str, Any]:
    """GGUF's keys; the factors of Llama 3 and of long-rope are tensors instead, see `rope_tensors`."""
    result: dict[str, Any] = {"rope.freq_base": rope.number("rope_theta")}
    kind = rope.get("rope_type")
    if kind in ("linear", "dynamic", "yarn"):
        result |= {"rope.scaling.type": kind, "rope.scaling.factor": rope.number("factor")}
    if kind == "dynamic":  # see `rope.read_scaling`
        result |= {"rope.scaling.type": "none", "rope.scaling.dynamic": True}
    if kind in ("dynamic", "yarn", "longrope"):
        length = "max_position_embeddings" if kind == "dynamic" else "original_max_position_embeddings"
        result["rope.scaling.original_context_length"] = rope.count(length)
    if kind == "yarn":
        result |= _yarn_hyperparameters(rope)
    if kind == "longrope":
        n_ctx, original = rope.count("max_position_embeddings"), rope.count("original_max_position_embeddings")
        factor = rope.number("factor") if rope.get("factor") is not None else n_ctx / original
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        result["rope.scaling.attn_factor"] = rope.number("attention_factor", usual)
    return result


def _yarn_hyperparameters(rope: Settings) -> dict[str, Any]:
    rope.expect("truncate", True)
    factor, (by, of_all) = rope.number("factor"), (rope.get(name) for name in ("mscale", "mscale_all_dim"))
    result: dict[str, Any] = {
        "rope.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0),
    }
    plain = RopeScaling("yarn", factor).yarn_magnitude
    if rope.get("attention_factor") is not None:
        return result | {"rope.scaling.attn_factor": rope.number("attention_factor") / plain}
    if by and of_all and by == 1:
        return result | {"rope.scaling.yarn_log_multiplier": rope.number("mscale_all_dim")}
    if by and of_all:
        wanted = RopeScaling("yarn", factor, log_multiplier=rope.number("mscale_all_dim")).yarn_magnitude / plain
        wanted *= 0.1 * rope.number("mscale") * math.log(factor) + 1 if factor > 1 else 1.0
        return result | {"rope.scaling.attn_factor": wanted / plain}
    return result


def rope_tensors(rope: Settings, n_rot: int) -> dict[str, NDArray[np.float32]]:
    """The tensors, float32 [n_rot / 2], by which the pairs' frequencies are divided, by their names in GGUF."""
    if (factors := llama3_factors(rope, n_rot)) is not None:
        return {"rope_freqs": factors}
    if rope.get("rope_type") == "proportional":
        n_turned = int(rope.number("partial_rotary_factor", 1.0) * n_rot // 2)
        factors = np.full(n_rot // 2, STANDS_STILL, np.float32)
        factors[:n_turned] = rope.number("factor", 1.0)
        return {"rope_freqs": factors}
    if rope.get("rope_type") != "longrope":
        return {}
    found = {}
    for length in ("long", "short"):
        factors = rope.get(f"{length}_factor")
        is_list = isinstance(factors, list) and all(isinstance(x, (int, float)) and x > 0 for x in factors)
        if not is_list or len(factors) != n_rot // 2:
            raise FormatError(
                f"{rope.file}: {length}_factor is {shown(factors)}; expected {n_rot // 2} positive numbers"
            )
        found[f"rope_factors_{length}"] = np.array(factors, np.float32)
    return found


def llama3_factors(rope: Settings, n_rot: int) -> NDArray[np.float32] | None:
    """float32 [n_rot / 2]: how much slower each pair turns in Llama 3.1 and later; None for other kinds of rope.

    Wavelengths that fit into the original context several times stay, those longer than it are stretched by
    `factor`, and between the two there is a smooth passage.
    """
    if rope.get("rope_type") != "llama3":
        return None
    factor, n_ctx = rope.number("factor"), rope.number("original_max_position_embeddings")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise FormatError(f"{rope.file}: high_freq_factor {high} is not above low_freq_factor {low}")
    turns = n_ctx * rope.number("rope_theta") ** (-np.arange(0, n_rot, 2) / n_rot) / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)


def llama3_settings(factors: NDArray[np.float32], base: float) -> dict[str, Any]:
    """The rope_parameters that make these factors: the inverse of `llama3_factors`.

    Only products of its numbers count, so low_freq_factor can be 1, as in all published models.
    UnsupportedError when the factors are of another kind.
    """
    n_rot, factor = 2 * len(factors), float(factors.max())
    turns_per_position = base ** (-np.arange(0, n_rot, 2) / n_rot) / (2 * math.pi)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (1 / factors.astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    between = np.flatnonzero((share > 1e-3) & (share < 1 - 1e-3))
    if factor > 1 and len(between) >= 2:
        # share = slope * turns_per_position - low / (high - low), with low = 1
        slope, start = np.polyfit(turns_per_position[between], share[between], 1).tolist()
        high = 1 - 1 / start
        found = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": round(high, 3),
            "original_max_position_embeddings": round(slope * (high - 1)),
            "rope_theta": base,
        }
        again = llama3_factors(Settings(found), n_rot)
        if again is not None and np.allclose(again, factors, rtol=1e-3):
            return found
    raise UnsupportedError("tensor 'rope_freqs.weight' holds factors that no rope scaling of transformers makes")
