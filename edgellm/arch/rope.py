"""How rotary embedding is stretched to texts longer than those that a model was first trained on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import FormatError, UnsupportedError
from edgellm.formats.gguf import get_value

if TYPE_CHECKING:
    from edgellm.arch.config import Keys

KINDS = ("none", "linear", "dynamic", "yarn", "longrope")


class RopeScaling(NamedTuple):
    """The keys `rope.scaling.*` of a file.

    kind:            "linear" divides positions by `factor`. "dynamic" raises the base as far as the context asks for
                     (NTK-aware). "yarn" slows down the pairs that turn slowly (Peng et al., 2023). "longrope" has a
                     factor for each pair, as a tensor (Ding et al., 2024).
    n_ctx_original:  positions that the model was first trained on.
    magnitude:       what turned heads are multiplied by, beside what YaRN has of itself.
    beta_fast, beta_slow:  turns within the original context from which, and up to which, YaRN changes pairs.
    log_multiplier:  how far YaRN's own magnitude is taken back (DeepSeek); 0 is not.
    """

    kind: str = "none"
    factor: float = 1.0
    n_ctx_original: int = 0
    magnitude: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0

    @property
    def yarn_magnitude(self) -> float:
        """What YaRN multiplies turned heads by, by itself."""
        if self.kind != "yarn":
            return 1.0
        by = _mscale(self.factor, 1.0)
        return by / _mscale(self.factor, self.log_multiplier) if self.log_multiplier else by


NO_SCALING = RopeScaling()


def read_scaling(keys: Keys) -> RopeScaling:
    """As in llama.cpp, a factor of 0 is none, and without a factor no type scales anything.

    Raises FormatError or UnsupportedError naming the key.
    """
    name = "rope.scaling.factor" if keys.has("rope.scaling.factor") else "rope.scale_linear"  # as files of 2023 say it
    factor = keys.number(name, 1.0, zero=1.0)
    magnitude = keys.number("rope.scaling.attn_factor", 1.0, zero=1.0)
    n_ctx = 0
    if isinstance(keys.metadata.get(f"{keys.architecture}.rope.scaling.original_context_length"), int):
        n_ctx = keys.count("rope.scaling.original_context_length", least=0)
    n_ctx = n_ctx or keys.count("context_length")
    if factor == 1:
        return RopeScaling(n_ctx_original=n_ctx, magnitude=magnitude)
    kind_key = f"{keys.architecture}.rope.scaling.type"
    kind = get_value(keys.metadata, kind_key, str, "linear")
    if kind not in KINDS:
        raise UnsupportedError(f"rope scaling of type {kind!r:.60} ({kind_key}); edgellm knows {', '.join(KINDS)}")
    if kind == "none" and keys.flag("rope.scaling.dynamic", False):
        kind = "dynamic"  # which other programs do not know; they end at a type of that name
    if kind == "none":
        return RopeScaling(n_ctx_original=n_ctx, magnitude=magnitude)
    ext_key = f"{keys.architecture}.rope.scaling.yarn_ext_factor"
    ext_factor = get_value(keys.metadata, ext_key, float, -1.0)  # negative means the default, as in llama.cpp
    if kind == "yarn" and not (ext_factor < 0 or ext_factor == 1):
        raise UnsupportedError(
            f"{ext_key} is {ext_factor:g}; edgellm runs YaRN with 1 or, as the default, with a negative number"
        )
    return RopeScaling(
        kind,
        factor,
        n_ctx,
        magnitude,
        keys.number("rope.scaling.yarn_beta_fast", 32.0),
        keys.number("rope.scaling.yarn_beta_slow", 1.0),
        keys.number("rope.scaling.yarn_log_multiplier", 0.0, zero=0.0),
    )


def frequencies(
    base: float, n_rot: int, scaling: RopeScaling = NO_SCALING, n_ctx: int = 0, truncate: bool = True
) -> NDArray[np.float64]:
    """Radians per position for each pair, float64 [n_rot / 2]: base**(-2i / n_rot), scaled.

    n_ctx:     the context that the model is run with, for "dynamic".
    truncate:  whether YaRN's first and last pair are whole numbers, as in all families but gpt-oss.
    """
    base = float(base)
    if scaling.kind == "yarn" and base <= 1:
        raise FormatError(f"rope.freq_base is {base}; with YaRN, expected a number above 1")
    if scaling.kind == "dynamic" and n_ctx > scaling.n_ctx_original and n_rot > 2:
        stretch = scaling.factor * n_ctx / scaling.n_ctx_original - (scaling.factor - 1)
        with np.errstate(over="ignore"):  # then nothing turns, and nothing fails
            base *= float(np.power(stretch, n_rot / (n_rot - 2)))
    plain = base ** (-np.arange(0, n_rot, 2) / n_rot)
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "yarn":
        return plain * _yarn(base, n_rot, scaling, truncate)
    return plain


def _yarn(base: float, n_rot: int, scaling: RopeScaling, truncate: bool) -> NDArray[np.float64]:
    """How much slower each pair turns: those that turn often within the original context not at all, those that turn
    seldom by the whole factor, and between the two there is a ramp."""

    def pair_that_turns(times: float) -> float:
        return n_rot * math.log(scaling.n_ctx_original / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_rot - 1)
    slowed = np.clip((np.arange(n_rot // 2) - low) / max(0.001, high - low), 0, 1)
    return slowed / scaling.factor + (1 - slowed)


def _mscale(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1


def check_factors(name: str, factors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Factors of a tensor, by which frequencies are divided. Raises FormatError unless they are positive numbers."""
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise FormatError(f"tensor '{name}.weight' holds something else than positive numbers")
    return factors
