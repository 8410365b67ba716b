"""Every kernel there is, by (op, format): where it is built, and what it is called in object files.

This list is light: it names the modules that build kernels without importing them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from edgellm.errors import KernelError
from edgellm.kernels.kv_types import KV_TYPES, KVType
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

# op -> module under kernels/ops; of some there is one kernel for each block format, or each type of KV cache.
_MODULES = {
    "rms_norm": "norm",
    "quantize": "quantize",
    "fine_quantize": "quantize",
    "add": "elementwise",
    "select_rows": "elementwise",
    "add_bias": "elementwise",
    "resize_heads": "elementwise",
    "sum_squares": "squares",
    "maxima": "maxima",
    "silu_glu": "glu",
    "gelu_glu": "glu",
    "rope": "rope",
    "attention_merge": "attention_merge",
    "chain": "chain",
    "lead": "run",
    "work": "run",
    "read_limit": "limits",
    "multiply_limit": "limits",
    "clock": "clock",
}
_MODULES_BY_FORMAT = {
    "embed": "embed",
    "linear_decode": "linear",
    "linear_prefill": "linear",
    "fine_linear_decode": "linear",
    "fine_linear_prefill": "linear",
    "fit": "fit",
}
_MODULES_BY_KV_TYPE = {"kv_append": "kv_append", "attention": "attention"}


@dataclass(frozen=True)
class Kernel:
    """One kernel: an op, for one block format where the op reads weights, or for one type of KV cache."""

    op: str
    format: BlockFormat | KVType | None = None

    @property
    def name(self) -> str:
        return f"{self.op}.{self.format.name}" if self.format else self.op

    @property
    def symbol(self) -> str:
        return "edgellm_" + self.name.replace(".", "_")

    def build(self, isa: Any) -> Any:
        """The kernel as a Numba-compilable function. Imports Numba."""
        module = _modules(self.format)[self.op]
        if isinstance(self.format, FloatFormat) and module == "linear":
            module = "linear_float"
        build = getattr(importlib.import_module(f"edgellm.kernels.ops.{module}"), f"build_{self.op}")
        return build(isa) if self.format is None else build(isa, self.format)


def find(op: str, number_format: BlockFormat | KVType | None = None) -> Kernel:
    """The kernel of an op (and block format or type of cache). Raises KernelError when there is none."""
    if op not in _modules(number_format) or not _has(op, number_format):
        raise KernelError(f"there is no kernel {op!r} for {number_format}")
    return Kernel(op, number_format)


def _has(op: str, number_format: BlockFormat | KVType | None) -> bool:
    """Not every format has every op: only of some are scales searched for, and what is exact cannot be finer."""
    if op == "fit":
        return isinstance(number_format, BlockFormat) and number_format.grid is not None
    return not (op.startswith("fine_") and isinstance(number_format, FloatFormat))


def _modules(number_format: BlockFormat | KVType | None) -> dict[str, str]:
    if number_format is None:
        return _MODULES
    return _MODULES_BY_KV_TYPE if isinstance(number_format, KVType) else _MODULES_BY_FORMAT


def all_kernels() -> list[Kernel]:
    """Every kernel, for tests and for building them ahead."""
    return [
        *(Kernel(op) for op in _MODULES),
        *(
            Kernel(op, block_format)
            for op in _MODULES_BY_FORMAT
            for block_format in FORMATS.values()
            if _has(op, block_format)
        ),
        *(Kernel(op, kv_type) for op in _MODULES_BY_KV_TYPE for kv_type in KV_TYPES.values()),
    ]
