"""Which chat template a model is used with: what a person asks for, the file's own, or one that its tokens tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem, TemplateError, UsageError
from edgellm.text.chat_template import KEY, LONGEST_SOURCE, ChatTemplate
from edgellm.text.tokenizer import Tokenizer


def chosen_template(metadata: Mapping[str, Any], tokenizer: Tokenizer, asked: str | None = None) -> ChatTemplate | None:
    """The chat template for a model; None for a base model.

    asked:  the name of a template that the file has beside its default (`tokenizer.chat_template.NAME`) or of a known
            one, a file that holds one, or a Jinja text. None takes the file's own, and where it has none, a known one
            whose special tokens the vocabulary has, unless it is a base model's.

    Raises FormatError for a template of the file that is no text, UsageError for a name that is none, FileProblem for a
    file that cannot be read, TemplateError for what was asked for and is no template.
    """
    if asked is not None:
        source, origin = _asked_for(metadata, asked)
        template = ChatTemplate(source, tokenizer.special_tokens, origin=origin)
        try:
            template.check()
        except TemplateError as error:
            raise TemplateError(f"template {asked:.200}: {error}") from None
        return template
    if own := ChatTemplate.from_metadata(metadata, tokenizer):
        return own
    from edgellm.text.known_templates import KNOWN_TEMPLATES, recognised  # seldom needed

    name = recognised(metadata, tokenizer)
    if name is None:
        return None
    known = KNOWN_TEMPLATES[name]
    origin = f"{name}, told by the tokens {' '.join(known.tokens)}, for the file has none"
    return ChatTemplate(known.source, tokenizer.special_tokens, origin=origin, is_guess=True)


def _asked_for(metadata: Mapping[str, Any], asked: str) -> tuple[str, str]:
    """Source and origin."""
    from edgellm.text.known_templates import ALIASES, KNOWN_TEMPLATES

    own = metadata.get(f"{KEY}.{asked}", metadata.get(KEY) if asked == "default" else None)
    if isinstance(own, str):
        return own, f"the file's own called {asked} ({KEY}.{asked})"
    if known := KNOWN_TEMPLATES.get(ALIASES.get(asked, asked)):
        return known.source, f"{asked}, as was asked"
    if "{{" in asked or "{%" in asked:
        return asked, "the text that was given"
    if not Path(os.path.expanduser(asked)).exists():
        names = [
            *KNOWN_TEMPLATES,
            *ALIASES,
            *(key.removeprefix(f"{KEY}.") for key in metadata if key.startswith(f"{KEY}.")),
        ]
        import difflib  # only for a message

        close = difflib.get_close_matches(asked, names, 1)
        expected = f"did you mean {close[0]}?" if close else f"expected a file, or one of {', '.join(names)}"
        raise UsageError(
            f"template is {asked!r:.200}, which is neither a file nor a known name; {expected}", parameter="template"
        )
    return _read(Path(os.path.expanduser(asked))), f"the file {asked}"


def _read(path: Path) -> str:
    """The text of a file that holds a template."""
    try:
        with open(path, "rb") as file:
            raw = file.read(4 * LONGEST_SOURCE + 1)
        return raw.decode("utf-8-sig")
    except OSError as problem:
        raise FileProblem(f"template {path} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        if len(raw) > 4 * LONGEST_SOURCE:
            raise TemplateError(f"template {path} has more than {LONGEST_SOURCE:,} characters") from None
        raise FileProblem(f"template {path} is no chat template: it is not UTF-8 text") from None
