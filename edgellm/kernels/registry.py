"""Every kernel there is, by (op, format): where it is built, and what it is called in object files.

This list is light: it names the modules that build kernels without importing them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from edgellm.errors import KernelError
from edgellm.quants import FORMATS, BlockFormat
from edgellm.quants.floats import FloatFormat

# op -> module under kernels/ops; a format in the name means one kernel for each block format.
_MODULES = {
    "rms_norm": "norm",
    "quantize": "quantize",
    "add": "elementwise",
    "select_rows": "elementwise",
    "silu_glu": "glu",
    "gelu_glu": "glu",
    "rope": "rope",
    "kv_append": "attention",
    "attention": "attention",
    "attention_merge": "attention",
    "lead": "run",
    "work": "run",
}
_MODULES_BY_FORMAT = {"embed": "embed", "linear_decode": "linear", "linear_prefill": "linear"}


@dataclass(frozen=True)
class Kernel:
    """One kernel: an op, for one block format where the op reads weights."""

    op: str
    format: BlockFormat | None = None

    @property
    def name(self) -> str:
        return f"{self.op}.{self.format.name}" if self.format else self.op

    @property
    def symbol(self) -> str:
        return "edgellm_" + self.name.replace(".", "_")

    def build(self, isa: Any) -> Any:
        """The kernel as a Numba-compilable function. Imports Numba."""
        module = _MODULES[self.op] if self.format is None else _MODULES_BY_FORMAT[self.op]
        if isinstance(self.format, FloatFormat) and module == "linear":
            module = "linear_float"
        build = getattr(importlib.import_module(f"edgellm.kernels.ops.{module}"), f"build_{self.op}")
        return build(isa) if self.format is None else build(isa, self.format)


def find(op: str, block_format: BlockFormat | None = None) -> Kernel:
    """The kernel of an op (and format). Raises KernelError when there is none."""
    if op not in (_MODULES if block_format is None else _MODULES_BY_FORMAT):
        raise KernelError(f"there is no kernel {op!r} for {block_format}")
    return Kernel(op, block_format)


def all_kernels() -> list[Kernel]:
    """Every kernel, for tests and for building them ahead."""
    return [Kernel(op) for op in _MODULES] + [
        Kernel(op, block_format) for op in _MODULES_BY_FORMAT for block_format in FORMATS.values()
    ]
