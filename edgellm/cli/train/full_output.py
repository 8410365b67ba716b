"""What a person may say of the file that `edgellm train full` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgellm.checks import take, text, wrong
from edgellm.errors import UsageError


@dataclass(frozen=True)
class FullOutput:
    """The file of a model whose weights were all trained. type: of its tensors, as `edgellm quantize` has it; None for
    those of the model.
    """

    type: str | None = None

    def __post_init__(self) -> None:
        take(self, "type", _file_type, optional=True)


def _file_type(name: str, value: Any) -> str:
    from edgellm.convert.recipes import RECIPES, recipe_of  # seldom needed

    try:
        return recipe_of(text(name, value)).name
    except UsageError:
        raise wrong(name, value, f"one of {', '.join(RECIPES)}") from None
