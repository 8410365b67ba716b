"""Every kernel there is: an op, for a number format where it reads weights or a cache, with options where it has some.

This list is light: it names the modules that build kernels without importing them.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import field
from functools import cache
from typing import Any, NamedTuple

from edgellm.dataclass import dataclass
from edgellm.errors import KernelError
from edgellm.kernels.kv_types import CACHE_TYPES, STORED_TYPES, CacheType
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

NumberFormat = BlockFormat | CacheType
Options = Mapping[str, Any]


@dataclass(frozen=True)
class _Family:
    """The kernels of one op.

    module:   under kernels/ops, where `build_OP(isa[, format], **options)` makes them.
    formats:  there is a kernel for each of these; None: the op has nothing to do with number formats.
    options:  the values that each option may have, the usual one first.
    needs_amx:  made for AVX-512 only, and for CPUs that have AMX beside it.
    """

    module: str
    formats: tuple[NumberFormat, ...] | None = None
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    needs_amx: bool = False

    def has(self, number_format: NumberFormat | None, options: Options) -> bool:
        fits = number_format in self.formats if self.formats is not None else number_format is None
        return (
            fits
            and options.keys() == self.options.keys()
            and all(options[name] in values for name, values in self.options.items())
        )

    def members(self) -> Iterator[tuple[NumberFormat | None, dict[str, Any]]]:
        for number_format in self.formats if self.formats is not None else (None,):
            for values in itertools.product(*self.options.values()):
                yield number_format, dict(zip(self.options, values, strict=True))


_ALL = tuple(FORMATS.values())
_FLOATS = tuple(fmt for fmt in _ALL if isinstance(fmt, FloatFormat))
_BLOCKS = tuple(fmt for fmt in _ALL if not isinstance(fmt, FloatFormat))
_IN_GROUPS = tuple(fmt for fmt in _BLOCKS if fmt.scale_group == 32)  # with a scale for every group of an input
_LOW_RANK = tuple(fmt for fmt in _FLOATS if fmt.name in ("F32", "F16"))  # trained in one, run in the other
_SMALL = {"small": (False, True)}  # the work falls into other pieces in a small batch
_PLANES = {"n_planes": (1, 2)}  # of int8 that an input consists of
_ACTIVATION = {"activation": ("silu", "gelu", "gelu_erf", "relu", "relu_squared")}
_PLAIN_ACTIVATION = {"activation": ("relu", "gelu", "silu", "gelu_erf", "relu_squared", "tanh")}
_GATED = {"activation": (*_ACTIVATION["activation"], "clamped_swiglu", "sigmoid", "linear")}
_SCORING = {"scoring": ("softmax", "sigmoid", "logits")}

_FAMILIES: dict[str, _Family] = {
    "embed": _Family("embed", _ALL),
    "add_segment": _Family("elementwise"),
    "rms_norm": _Family("norm"),
    "layer_norm": _Family("norm"),
    "columns": _Family("scaled"),
    "scale": _Family("scaled"),
    "soft_cap": _Family("scaled"),
    "add_mixed": _Family("streams"),
    "add_to_columns": _Family("streams"),
    "match_size": _Family("streams"),
    "keep_large": _Family("streams"),
    "quantize": _Family("quantize", options=_PLANES),
    "linear_decode": _Family("linear_decode", _BLOCKS, _PLANES),
    "linear_prefill": _Family("linear", _BLOCKS, _PLANES),
    "linear_tiles": _Family("linear_tiles", _BLOCKS, _PLANES),
    "linear_tiles_prefill": _Family("linear_tiles", _BLOCKS, _PLANES),
    "linear_amx": _Family("linear_amx", _IN_GROUPS, _PLANES, needs_amx=True),
    "linear_tiles_amx": _Family("linear_amx", _IN_GROUPS, _PLANES, needs_amx=True),
    "linear_f32": _Family("linear_f32", _ALL),
    "linear_f32_decode": _Family("linear_f32", _FLOATS),
    "add": _Family("elementwise"),
    "add_bias": _Family("elementwise"),
    "choose": _Family("elementwise"),
    "select_rows": _Family("elementwise"),
    "resize_heads": _Family("elementwise"),
    "copy_heads": _Family("elementwise"),
    "linear_transposed": _Family("linear_transposed", _ALL),
    "linear_bf16": _Family("linear_bf16", _BLOCKS, needs_amx=True),
    "linear_bf16_transposed": _Family("linear_bf16", _BLOCKS, needs_amx=True),
    "outer_sum": _Family("outer_sum"),
    "glu": _Family("glu", options=_GATED),
    "route": _Family("route", options=_SCORING),
    "sort_experts": _Family("expert_rows"),
    "experts_decode": _Family("experts", _BLOCKS),
    "experts_prefill": _Family("experts", _BLOCKS),
    "experts_tiles": _Family("experts_tiles", _BLOCKS),
    "experts_tiles_prefill": _Family("experts_tiles", _BLOCKS),
    "experts_f32": _Family("experts", _ALL),
    "experts_f32_decode": _Family("experts", _FLOATS),
    "add_expert_bias": _Family("expert_rows"),
    "sum_experts": _Family("expert_rows"),
    "gate": _Family("expert_rows"),
    "sum_expert_squares": _Family("expert_rows"),
    "route_backward": _Family("expert_gradients", options=_SCORING),
    "balance_gradient": _Family("expert_gradients"),
    "sum_experts_backward": _Family("expert_gradients"),
    "gate_backward": _Family("expert_gradients"),
    "expert_bias_sum": _Family("expert_gradients"),
    "experts_transposed": _Family("expert_products", _ALL),
    "expert_outer_sum": _Family("expert_products"),
    "rope": _Family("rope", options={"inverse": (False, True)}),
    "causal_conv": _Family("recurrent"),
    "delta_rule": _Family("recurrent"),
    "kv_append": _Family("kv_append", STORED_TYPES),
    "quantize_keys": _Family("quantize_keys"),
    "attention": _Family("attention", tuple(CACHE_TYPES.values())),
    "attention_merge": _Family("attention_merge"),
    "text_attention": _Family("text_attention", options={"alibi": (False, True)}),
    "attention_backward": _Family("attention_backward", options={"general": (False, True)}),
    "sum_heads": _Family("attention_backward"),
    "maxima": _Family("maxima"),
    "group_largest": _Family("groups"),
    "group_weights": _Family("groups"),
    "group_spread": _Family("groups"),
    "group_cool": _Family("group_tokens"),
    "group_draw": _Family("group_tokens"),
    "group_find": _Family("group_search"),
    "group_change": _Family("group_tokens"),
    "repeated": _Family("text_search"),
    "sum_squares": _Family("squares"),
    "narrow": _Family("low_rank", _LOW_RANK, _SMALL),
    "widen": _Family("low_rank", _LOW_RANK, _SMALL),
    "ask_for_widen": _Family("low_rank", _LOW_RANK),
    "narrow_int8": _Family("low_rank_int8"),
    "quantize_adapted": _Family("low_rank_int8"),
    "widen_int8": _Family("low_rank_int8", options=_SMALL),
    "linear_tiles_adapted": _Family("linear_tiles_adapted", _BLOCKS),
    "add_scaled": _Family("low_rank"),
    "rms_norm_backward": _Family("norm_backward"),
    "glu_backward": _Family("glu_backward", options=_GATED),
    "rms_norm_weight_sum": _Family("norm_backward"),
    "layer_norm_backward": _Family("norm_backward"),
    "layer_norm_sums": _Family("norm_backward"),
    "soft_cap_backward": _Family("scaled"),
    "embed_backward": _Family("columns"),
    "column_sums": _Family("columns"),
    "column_products": _Family("columns"),
    "multiply_columns": _Family("columns"),
    "cross_entropy": _Family("cross_entropy"),
    "dropout": _Family("dropout"),
    "activate": _Family("activate", options=_PLAIN_ACTIVATION),
    "activate_backward": _Family("activate", options=_PLAIN_ACTIVATION),
    "replace_rows": _Family("replace_rows"),
    "replaced_rows_sum": _Family("replace_rows"),
    "to_bf16": _Family("bf16"),
    "from_bf16": _Family("bf16"),
    "fused": _Family("fused", options=_SMALL),
    "lead": _Family("run"),
    "work": _Family("run"),
    "fit": _Family("fit", tuple(fmt for fmt in _ALL if fmt.grid is not None)),
    "cut_words": _Family("cut_words"),
    "index_strings": _Family("merge_words"),
    "merge_words": _Family("merge_words"),
    "read_limit": _Family("limits"),
    "multiply_limit": _Family("limits"),
    "clock": _Family("clock"),
}


class Kernel(NamedTuple):
    """One kernel; `find` makes them.

    options:  names and values, in the order of the op's own list.
    """

    op: str
    format: NumberFormat | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """`linear_decode.Q4_K`, `glu.gelu`, `quantize.2`: the op, the format, and options that are unusual or words.

        An option that is on goes by its own name: `rope.inverse`. Of a cache: `attention.q8_0`, `attention.q8_0.q4_0`.
        """
        usual = _FAMILIES[self.op].options
        unusual = [
            name if value is True else str(value)
            for name, value in self.options
            if value != usual[name][0] or isinstance(value, str)
        ]
        return ".".join([self.op, *(self.format.name.split(":") if self.format else []), *unusual])

    @property
    def symbol(self) -> str:
        """What it is called in object files."""
        return "edgellm_" + self.name.replace(".", "_")

    def build(self, isa: Any) -> Any:
        """The kernel as a Numba-compilable function. Imports Numba."""
        module = importlib.import_module(f"edgellm.kernels.ops.{_FAMILIES[self.op].module}")
        build = getattr(module, f"build_{self.op}")
        return build(isa, *([self.format] if self.format else []), **dict(self.options))


@cache  # the layers of a model ask for the same ones
def find(op: str, number_format: NumberFormat | None = None, **options: Any) -> Kernel:
    """The kernel of an op, for a block format or type of cache where the op has any; options not given are the usual.

    Raises KernelError when there is none.
    """
    family = _FAMILIES.get(op)
    if family is not None:
        options = {name: values[0] for name, values in family.options.items()} | options
        if family.has(number_format, options):
            return Kernel(op, number_format, tuple((name, options[name]) for name in family.options))
    asked = ", ".join(str(part) for part in (number_format, *options.items()) if part)
    raise KernelError(f"there is no kernel {op!r}" + (f" for {asked}" if asked else ""))


def all_kernels(needs_amx: bool = False) -> list[Kernel]:
    """Every kernel that any CPU can run, or every one that needs AMX: for tests and for building them ahead."""
    return [
        Kernel(op, number_format, tuple(options.items()))
        for op, family in _FAMILIES.items()
        if family.needs_amx == needs_amx
        for number_format, options in family.members()
    ]
