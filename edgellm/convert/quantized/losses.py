"""What is lost where a quantized checkpoint does not fit a type of GGUF, gathered for a few lines to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Losses:
    """Counts by kind; `told()` makes lines of them.

    kind:  how the checkpoint's method is called.
    """

    kind: str
    _rounded: Counter[str] = field(default_factory=Counter)
    _dequantized: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _left_out: Counter[str] = field(default_factory=Counter)

    def rounded(self, what: str) -> None:
        """Scales or minima of a tensor are no float16 numbers."""
        self._rounded[what] += 1

    def dequantized(self, name: str, type_name: str, why: str) -> None:
        """A tensor becomes floats."""
        self._dequantized.setdefault((type_name, why), []).append(name)

    def left_out(self, what: str) -> None:
        """A tensor that says how activations or the cache are rounded, which edgellm decides itself."""
        self._left_out[what] += 1

    def told(self) -> list[str]:
        lines = [
            f"{self.kind}: {what} of {count} matrices are rounded to float16 (by 0.05 % at most)"
            for what, count in self._rounded.items()
        ]
        for (type_name, why), names in self._dequantized.items():
            first = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
            lines.append(f"{self.kind}: {why}: {first} became {type_name}; --type Q8_0 or Q4_K_M makes a smaller file")
        lines += [
            f"{self.kind}: left out {count} tensors of {what}: edgellm chooses how activations and the cache are kept"
            for what, count in self._left_out.items()
        ]
        return lines
