"""Recipes: which type each tensor of a quantized file gets.

The names and what they mean are llama.cpp's, so that a Q4_K_M from here is what people expect of one. A recipe has
one type for most weights; what matters more gets more bits: the output matrix, and in the mixes (_S, _M, _L) the
values and the second half of the feed-forward, in the first and last eighth of the layers and every third between.
Stacked experts are feed-forwards too. What is no linear stays as it is (see `linears`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from edgellm.arch.config import Keys
from edgellm.convert.linears import is_linear, is_matrix, role_of
from edgellm.convert.parts import Part
from edgellm.errors import UsageError
from edgellm.formats.gguf import get_value
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

QUANTIZATION_VERSION = 2  # of ggml's block layouts


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: in which of how many layers, and how many query heads share a key-value head."""

    layer: int
    n_layers: int
    group: int

    def gets_more_bits(self) -> bool:
        eighth = self.n_layers // 8
        return self.layer < eighth or self.layer >= 7 * self.n_layers // 8 or (self.layer - eighth) % 3 == 2


Rule = Callable[[Place], str | None]


def _always(name: str) -> Rule:
    return lambda place: name


def _where_it_matters(name: str) -> Rule:
    return lambda place: name if place.gets_more_bits() else None


def _in_the_first(n: int, name: str, otherwise: str | None = None) -> Rule:
    return lambda place: name if place.layer < n else otherwise


def _in_the_first_part(part: int, name: str, otherwise: str | None = None) -> Rule:
    return lambda place: name if place.layer < place.n_layers // part else otherwise


def _if_shared_by_four(name: str, otherwise: str | None = None) -> Rule:
    return lambda place: name if place.group >= 4 else otherwise


@dataclass(frozen=True)
class Recipe:
    """A named way to quantize a model.

    file_type:  its number in `general.file_type`.
    base:       the type of all matrices that nothing else is said of.
    rules:      by the name of a tensor in its layer ("attn_v"): another type, or None for the base.
    """

    name: str
    file_type: int
    base: str
    about: str = ""
    rules: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def is_float(self) -> bool:
        return isinstance(FORMATS[self.base], FloatFormat)

    @property
    def head(self) -> str:
        """The type of the matrix that makes logits."""
        return "Q8_0" if self.base in ("Q8_0", "MXFP4") else self.base if self.is_float else "Q6_K"

    @property
    def types(self) -> set[str]:
        """All types that it gives to linears."""
        places = [Place(layer, 32, group) for layer in range(32) for group in (1, 4)]
        given = {rule(place) for rule in self.rules.values() for place in places}
        return {self.base, self.head} | {name for name in given if name}

    @property
    def metadata(self) -> dict[str, Any]:
        """What a file says about how it was made."""
        version = {} if self.is_float else {"general.quantization_version": QUANTIZATION_VERSION}
        return {"general.file_type": self.file_type, **version}


_MORE = {"attn_v": _where_it_matters("Q6_K"), "ffn_down": _where_it_matters("Q6_K")}
_SHARED = {"attn_v": _if_shared_by_four("Q5_K"), "ffn_down": _in_the_first_part(8, "Q5_K")}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("F32", 0, "F32", "exact"),
        Recipe("F16", 1, "F16", "half the bytes; exact for what was trained in it"),
        Recipe("BF16", 32, "BF16", "half the bytes, the range of F32"),
        Recipe("Q8_0", 7, "Q8_0", "no loss that anyone would notice"),
        Recipe("Q6_K", 18, "Q6_K", "hardly any loss"),
        Recipe("Q5_K_M", 17, "Q5_K", "little loss", _MORE),
        Recipe("Q5_K_S", 16, "Q5_K", "little loss"),
        Recipe("Q5_1", 9, "Q5_1", "an older format"),
        Recipe("Q5_0", 8, "Q5_0", "an older format"),
        Recipe("Q4_K_M", 15, "Q4_K", "small and good: what most people use", _MORE),
        Recipe("Q4_K_S", 14, "Q4_K", "a little smaller", {
            "attn_v": _in_the_first(4, "Q5_K"), "ffn_down": _in_the_first_part(8, "Q5_K")}),
        Recipe("IQ4_NL", 25, "IQ4_NL", "levels spaced as weights are spread", _SHARED),
        Recipe("IQ4_XS", 30, "IQ4_XS", "the same in larger blocks: the smallest good one", _SHARED),
        Recipe("Q4_1", 3, "Q4_1", "an older format"),
        Recipe("Q4_0", 2, "Q4_0", "an older format, quick everywhere"),
        Recipe("MXFP4", 38, "MXFP4", "4-bit floats, for models that were trained in them"),
        Recipe("Q3_K_L", 13, "Q3_K", "noticeable loss", {
            "attn_v": _always("Q5_K"), "ffn_down": _always("Q5_K"), "attn_output": _always("Q5_K")}),
        Recipe("Q3_K_M", 12, "Q3_K", "noticeable loss", {
            "attn_v": _in_the_first(2, "Q5_K", "Q4_K"), "attn_output": _always("Q4_K"),
            "ffn_down": _in_the_first_part(16, "Q5_K", "Q4_K")}),
        Recipe("Q3_K_S", 11, "Q3_K", "much loss"),
        Recipe("Q2_K", 10, "Q2_K", "heavy loss, for when nothing else fits", {
            "attn_v": _if_shared_by_four("Q4_K", "Q3_K"), "attn_output": _always("Q3_K"), "ffn_down": _always("Q3_K")}),
    )
}  # fmt: skip

# What stands in for a type whose blocks do not divide a row.
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def recipe_of(name: str) -> Recipe:
    """The recipe of that name, in any case. Raises UsageError for a name that nobody knows."""
    known = {recipe.lower(): recipe for recipe in RECIPES}
    aliases = {"q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M"}
    if found := known.get(name.lower()) or aliases.get(name.lower()):
        return RECIPES[found]
    raise UsageError(f"{name!r:.40} is no type of file; known are {', '.join(RECIPES)}")


class Formats(dict[str, BlockFormat]):
    """The format of every tensor, by name.

    replaced:  of the tensors whose rows the recipe's type does not divide: (part, that type, the format in its place).
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced: list[tuple[Part, str, BlockFormat]] = []

    def told(self) -> list[str]:
        """A line for each type that could not be given, and why."""
        kinds: dict[tuple[str, str, int], list[str]] = {}
        for part, wanted, given in self.replaced:
            kinds.setdefault((wanted, given.name, part.n_cols), []).append(part.name)
        return [
            f"{_counted(names)} rows of {n_cols} weights, which {wanted} does not divide (blocks of "
            f"{FORMATS[wanted].block_size}): {given} in its place"
            for (wanted, given, n_cols), names in kinds.items()
        ]


def _counted(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} has"
    return f"{names[0]} and {len(names) - 1} more have"


def choose_formats(
    recipe: Recipe | None, parts: Sequence[Part], metadata: Mapping[str, Any], overrides: Sequence[str] = ()
) -> Formats:
    """The format of every tensor.

    recipe:     None keeps the type that each has.
    overrides:  "PATTERN=TYPE": another type for the tensors that PATTERN names, as a shell pattern of the whole name
                or a regular expression found in it. The first that fits counts.

    Tensors of one dimension (norms, biases) become F32; others that are no linears stay as they are. Raises UsageError
    for an override that is malformed, fits no tensor, or names a type that does not divide its rows, FormatError for a
    count that is none.
    """
    patterns = [_Override.parse(text) for text in overrides]
    architecture = metadata.get("general.architecture")
    n_layers = get_value(metadata, f"{architecture}.block_count", int, 0)
    n_heads = get_value(metadata, f"{architecture}.attention.head_count", int, 1)
    n_kv_heads = metadata.get(f"{architecture}.attention.head_count_kv", n_heads)
    if not isinstance(n_kv_heads, int) or isinstance(n_kv_heads, bool):  # a number for each layer
        n_kv_heads = max(Keys(metadata).counts("attention.head_count_kv", n_layers, least=0))
    group = n_heads // max(1, n_kv_heads)
    has_output = any(part.name == "output.weight" for part in parts)
    n_experts = get_value(metadata, f"{architecture}.expert_count", int, 0)
    chosen = Formats()
    for part in parts:
        override = next((pattern for pattern in patterns if is_matrix(part) and pattern.fits(part.name)), None)
        if override:
            override.used = True
            chosen[part.name] = override.format_for(part)
        elif recipe is None or not is_linear(part):
            chosen[part.name] = as_it_is(part)
        else:
            wanted = _by_recipe(recipe, part.name, n_layers, group, has_output, n_experts)
            given = chosen[part.name] = _dividing(wanted, part.tensor.shape[-1])
            if given.name != wanted:
                chosen.replaced.append((part, wanted, given))
    for pattern in patterns:
        if not pattern.used:
            raise UsageError(f"{pattern.pattern!r:.80} fits no matrix of this model (it has {parts[0].name}, ...)")
    return chosen


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UsageError for one that is malformed or names no type, whatever the model."""
    for text in overrides:
        _Override.parse(text)


def as_it_is(part: Part) -> BlockFormat:
    """The format of a tensor that no recipe quantizes: its own, and F32 for what has one dimension, and for biases."""
    is_matrix = len(part.tensor.shape) > 1 and not part.name.endswith(".bias")
    return part.tensor.format if is_matrix and not part.offset else FORMATS["F32"]


def true_recipe(recipe: Recipe, parts: Sequence[Part], formats: Mapping[str, BlockFormat]) -> Recipe:
    """What a file with these formats may call itself: `recipe` if most weights have a type of it.

    Otherwise the plainest recipe of the type that most weights have.
    """
    n_weights: Counter[str] = Counter()
    for part in parts:
        if is_linear(part):
            n_weights[formats[part.name].name] += prod(part.tensor.shape)
    most = n_weights.most_common(1)[0][0] if n_weights else recipe.base
    if most in recipe.types:
        return recipe
    plain = [other for other in RECIPES.values() if other.base == most]
    return min(plain, key=lambda other: len(other.rules), default=RECIPES["F16"])


def renamed(recipe: Recipe, type_name: str) -> list[str]:
    """A line for a file that is not what was asked for."""
    if type_name == recipe.name:
        return []
    return [f"most weights are not of a type of {recipe.name}, so the file calls itself {type_name}"]


def _by_recipe(recipe: Recipe, name: str, n_layers: int, group: int, has_output: bool, n_experts: int) -> str:
    if recipe.is_float:
        return recipe.base
    if name == "output.weight" or (name == "token_embd.weight" and not has_output):
        return recipe.head
    if name == "token_embd.weight" and recipe.base == "MXFP4":
        return "Q8_0"  # a row of it is looked up, not summed over: its errors do not average out
    layer = re.match(r"blk\.(\d+)\.", name)
    if layer is None:
        return recipe.base
    role = role_of(name)
    if n_experts and (special := _beside_experts(recipe, role, n_experts)):
        return special
    rule = recipe.rules.get(re.sub("_(exps|chexps|shexp)$", "", role))
    return (rule and rule(Place(int(layer[1]), n_layers, group))) or recipe.base


# Recipes in which the outputs of attention get more bits beside eight experts.
_SMALL = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")


def _beside_experts(recipe: Recipe, role: str, n_experts: int) -> str | None:
    """What the rest of a mixture gets, which is small beside its experts; as in llama.cpp."""
    if role.endswith("_exps"):
        return None
    if recipe.base == "MXFP4":
        return "Q8_0"
    if n_experts == 8 and role in ("attn_k", "attn_v"):
        return "Q8_0"
    if n_experts == 8 and role == "attn_output" and recipe.name in _SMALL:
        return "Q5_K"
    return None


def _dividing(name: str, n_cols: int) -> BlockFormat:
    """The type, or the nearest one whose blocks divide the rows."""
    while n_cols % FORMATS[name].block_size:
        name = _FALLBACK.get(name, "F16")
    return FORMATS[name]


@dataclass
class _Override:
    pattern: str
    regular: re.Pattern[str] | None
    format: BlockFormat
    used: bool = False

    @classmethod
    def parse(cls, text: str) -> _Override:
        pattern, equals, name = text.rpartition("=")
        known = {format_name.lower(): format_name for format_name in FORMATS}
        if not equals or not pattern:
            raise UsageError(f"{text!r:.80} is no override; expected PATTERN=TYPE, such as ffn_down=q6_k")
        if name.lower() not in known:
            raise UsageError(f"{name!r:.40} is no type of tensor; known are {', '.join(FORMATS)}")
        return cls(pattern, _regular(pattern), FORMATS[known[name.lower()]])

    def fits(self, name: str) -> bool:
        return fnmatchcase(name, self.pattern) or bool(self.regular and self.regular.search(name))

    def format_for(self, part: Part) -> BlockFormat:
        n_cols, size = part.tensor.shape[-1], self.format.block_size
        if n_cols % size:
            raise UsageError(f"{part.name} has rows of {n_cols} weights; {self.format} needs a multiple of {size}")
        return self.format


def _regular(pattern: str) -> re.Pattern[str] | None:
    """The pattern as a regular expression, where it is one: `*ffn*` is for shells only."""
    try:
        return re.compile(pattern)
    except re.error:
        return None
