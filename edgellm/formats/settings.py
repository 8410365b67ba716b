"""Typed look-ups in the JSON files of a checkpoint: config.json, adapter_config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from edgellm.errors import FormatError, UnsupportedError


class Settings:
    """Typed look-ups in a JSON file, named for errors.

    values:      what the file says over `defaults`. As in transformers, null counts as left out.
    defaults:    what stands for a key that is left out.
    null_stays:  keys whose null is a value of its own: no window, as many key-value heads as heads.
    assumed:     the defaults that stand for something.
    spelled:     what the file calls keys that are looked up by another name.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        file: str = "config.json",
        null_stays: Collection[str] = (),
        spelled: Mapping[str, str] | None = None,
    ) -> None:
        said = {name: value for name, value in values.items() if value is not None or name in null_stays}
        self.values = {**(defaults or {}), **said}
        self.assumed = {name: value for name, value in (defaults or {}).items() if name not in said}
        self.file = file
        self.spelled = spelled or {}

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is, or `default`."""
        value = self.values.get(name)
        return default if value is None else value

    def flag(self, name: str) -> bool:
        """True or false; false when it is left out."""
        value = self.get(name, False)
        if not isinstance(value, bool):
            raise FormatError(f"{self.file}: {self._said(name, value)}; expected true or false")
        return value

    def count(self, name: str, default: int | None = None, most: int = (1 << 32) - 1, least: int = 1) -> int:
        """A whole number from `least` to `most`."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise FormatError(f"{self.file}: {self._said(name, value)}; expected a whole number from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number that float32, in which GGUF holds it, can hold too."""
        value = self.get(name, default)
        least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise FormatError(f"{self.file}: {self._said(name, value)}; expected a positive number")
        return float(value)

    def section(self, name: str) -> Settings:
        """An object inside the config; without entries when it is left out."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise FormatError(f"{self.file}: {self._said(name, value)}; expected an object")
        return Settings(value, file=f"{self.file}: {name}")

    def expect(self, name: str, *expected: Any) -> None:
        """UnsupportedError unless the value, where there is one, is among those that the family can have."""
        value = self.values.get(name, expected[0])
        if value not in expected:
            wanted = " or ".join(map(repr, expected))
            raise UnsupportedError(f"{self.file}: {self._said(name, value)}; edgellm runs this family with {wanted}")

    def _said(self, name: str, value: Any) -> str:
        """What is said of a key; null only where it does not count as left out."""
        spelled = self.spelled.get(name, name)
        if value is None:
            return f"{spelled} is {'null' if name in self.values else 'missing'}"
        return f"{spelled} is {value!r:.60}"
