"""The chat templates of a checkpoint's folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgellm.convert.vocabulary.files import Files, Record
from edgellm.errors import FormatError, TemplateError, shown
from edgellm.text.chat_template import KEY, ChatTemplate

_MORE = "additional_chat_templates"


def chat_templates(files: Files) -> dict[str, Any]:
    """The keys `tokenizer.chat_template*`: the default template, and others by name.

    A file of their own comes before tokenizer_config.json, as in `transformers`, and that before the two files of
    models that also see or hear.
    """
    found = _from_files(files)
    for name in ("tokenizer_config.json", "processor_config.json", "chat_template.json"):
        found = found or _from_json(files.json(name))
    return to_keys(found)


def faults(metadata: Mapping[str, Any]) -> list[str]:
    """What is to be said of templates that nothing can be rendered with."""
    found = []
    for key, source in metadata.items():
        if key == KEY or key.startswith(f"{KEY}."):
            try:
                ChatTemplate(source).check()
            except TemplateError as problem:
                found.append(f"{key} cannot be used for chats: {problem}")
    return found


def to_keys(templates: Mapping[str, str]) -> dict[str, Any]:
    """Templates by name as keys of GGUF, where names are made of letters, digits and underscores.

    Raises FormatError for two names that become the same one.
    """
    names: dict[str, str] = {}  # theirs, by the keys'
    for name in templates:
        if name != "default" and (other := names.setdefault(re.sub(r"[^A-Za-z0-9]", "_", name), name)) != name:
            raise FormatError(
                f"two chat templates are called {shown(other)} and {shown(name)}; GGUF has letters, digits and _ for "
                "both, so give one of them another name"
            )
    named = {ours: templates[name] for ours, name in names.items()}
    keys: dict[str, Any] = {f"{KEY}.{name}": text for name, text in named.items()}
    if named:
        keys[f"{KEY}s"] = list(named)
    if "default" in templates:
        keys[KEY] = templates["default"]
    return keys


def _from_files(files: Files) -> dict[str, str]:
    found = {}
    if files.has("chat_template.jinja"):
        found["default"] = files.text("chat_template.jinja")
    for name in files.matching(f"{_MORE}/*.jinja"):
        found[name.removeprefix(f"{_MORE}/").removesuffix(".jinja")] = files.text(name)
    return found


def _from_json(record: Record) -> dict[str, str]:
    value = record.values.get("chat_template")
    if not isinstance(value, list):
        text = record.text("chat_template")
        return {} if text is None else {"default": text}
    found = {}
    for entry in record.records("chat_template"):
        name, text = entry.text("name"), entry.text("template")
        if name is None or text is None:
            raise entry.wrong("name" if name is None else "template", "a text")
        found[name] = text
    return found
