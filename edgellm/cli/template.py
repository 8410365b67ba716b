"""Which chat template is used, and saying so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgellm.cli.terminal import remark
from edgellm.errors import UsageError

if TYPE_CHECKING:
    from edgellm.engine import Model
    from edgellm.text import ChatTemplate


def template_of(model: Model, raw: bool, system: str | None, verbose: bool) -> ChatTemplate | None:
    """The template to use; None means plain text, and a model that has none says so.

    Raises UsageError when a system text would be lost.
    """
    template = None if raw else model.chat_template
    if template is None and system is not None:
        why = "--raw uses no chat template" if raw else f"{model.path.name} has no chat template (a base model)"
        raise UsageError(f"--system cannot be used: {why}")
    if template is None and not raw:
        remark(f"{model.path.name} has no chat template (a base model): it continues your text")
    elif verbose or (template is not None and template.is_guess):
        remark(describe_template(model, raw))
    return template


def describe_template(model: Model, raw: bool) -> str:
    """One line on where the template comes from."""
    if raw:
        return "chat template: none, as --raw asks"
    if model.chat_template is None:
        return "chat template: none in the file (a base model)"
    return f"chat template: {model.chat_template.origin}"
