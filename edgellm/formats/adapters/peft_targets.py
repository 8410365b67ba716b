"""Which modules target_modules and exclude_modules mean: names, as lists have them, or one regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgellm.errors import FormatError, shown
from edgellm.formats.adapters import patterns
from edgellm.formats.settings import Settings

ALL_LINEAR = "all-linear"  # PEFT's word for all linears but the head


@dataclass(frozen=True)
class Targets:
    """What a setting names.

    each:        its names; a pattern is the only one.
    is_pattern:  of whole names, as the base model of the file has them, and not of their ends.
    is_told:     whether it says which modules are meant.
    theirs:      what the file calls modules whose names in a language model alone are others.
    notes:       what a person should know.
    """

    each: tuple[str, ...] = ()
    is_pattern: bool = False
    is_told: bool = True
    theirs: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings, name: str, theirs: Mapping[str, str]) -> Targets:
        """Raises FormatError for what is neither names nor a regular expression."""
        value = settings.get(name)
        if value is None or value == ALL_LINEAR:
            return cls(is_told=False)
        if not isinstance(value, str):
            return cls(tuple(names_in(settings, name)))
        if not patterns.is_quick(value):
            note = f"{settings.file}: {name} is no simple pattern, and is not compared with what the adapter holds"
            return cls(is_told=False, notes=(note,))
        try:
            re.compile(value)
        except re.error as problem:
            raise FormatError(f"{settings.file}: {name} is {shown(value)}, no regular expression: {problem}") from None
        return cls((value,), is_pattern=True, theirs=theirs)

    def is_meant(self, module: str, by: str) -> bool:
        """Whether a module is what one of `each` names."""
        if self.is_pattern:
            return patterns.fits_whole(by, self.theirs.get(module, module))
        return ends_with(module, by)

    def mean(self, module: str) -> bool:
        return any(self.is_meant(module, one) for one in self.each)

    @property
    def knows_others(self) -> bool:
        """Whether it can be said of modules that the file does not have, whose names there nobody knows."""
        return self.is_told and not (self.is_pattern and any(name != plain for plain, name in self.theirs.items()))


def names_in(settings: Settings, name: str) -> list[str]:
    """A list of names; empty where there is none. Raises FormatError."""
    value = settings.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise FormatError(f"{settings.file}: {name} is {shown(value)}; expected a list of names")
    return value


def ends_with(module: str, name: str) -> bool:
    """Whether a module is called so, by all of its name or by its end."""
    return module == name or module.endswith(f".{name}")
