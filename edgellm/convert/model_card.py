"""What a checkpoint says about itself: its name, licence and origin."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgellm.formats.gguf.strings import StringArray

_MOST_BYTES = 1 << 20  # of the whole card
_MOST_CHARACTERS = 1 << 13  # of one entry: parsing long ones would take minutes
_MOST_BASES = 16
_KEYS = "license|license_name|license_link|language|tags|base_model"
_ENTRY = re.compile(rf"^({_KEYS}):.*\n?(?:[ \t-].*\n?|\n)*", re.MULTILINE)
_NOTHING = ("", "~", "null")
_HUB = "https://huggingface.co/"


def model_card(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's `general.*` keys from the folder's README.md (a model card) and from config.json.

    What is missing or malformed is left out: a file runs without it.
    """
    path = config.get("_name_or_path")
    name = path if isinstance(path, str) and path.strip("/. ") else folder.resolve().name
    result: dict[str, Any] = {"general.name": name.rstrip("/").rpartition("/")[2]}
    card = _front_matter(folder / "README.md")
    for key in ("license", "license_name", "license_link"):
        if texts := _texts(card.get(key)):
            result[f"general.{key.replace('_', '.')}"] = ", ".join(texts)
    for key, target in (("language", "general.languages"), ("tags", "general.tags")):
        if texts := _texts(card.get(key)):
            result[target] = texts
    if bases := _texts(card.get("base_model")):
        result["general.base_model.count"] = len(bases)
        for i, base in enumerate(bases):
            result[f"general.base_model.{i}.name"] = base.rpartition("/")[2]
            result[f"general.base_model.{i}.repo_url"] = _HUB + base
    return result


def write_model_card(metadata: Mapping[str, Any], folder: Path) -> None:
    """README.md with what a GGUF file's metadata says of licence and origin: the way back of `model_card`."""
    import yaml

    names = {"license": "license", "license.name": "license_name", "license.link": "license_link",
             "languages": "language", "tags": "tags"}  # fmt: skip
    card: dict[str, Any] = {}
    for ours, theirs in names.items():
        value = metadata.get(f"general.{ours}")
        if isinstance(value, StringArray):
            card[theirs] = list(value)
        elif isinstance(value, str):
            card[theirs] = value
    urls = [metadata.get(f"general.base_model.{i}.repo_url") for i in range(_MOST_BASES)]
    if bases := [url.removeprefix(_HUB) for url in urls if isinstance(url, str)]:
        card["base_model"] = bases
    if card:
        front = yaml.safe_dump(card, allow_unicode=True, sort_keys=False)
        (folder / "README.md").write_text(f"---\n{front}---\n", encoding="utf-8")


def _texts(value: Any) -> list[str]:
    """A text, or a list of them, as a list; empty for everything else."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(text, str) and text not in _NOTHING for text in values) else []


def _front_matter(path: Path) -> dict[str, Any]:
    """The entries that count of the YAML between the two lines of dashes that a model card begins with.

    Each is parsed alone, so that long tables of results beside them take no time, nor a fault in one the others.
    """
    try:
        if not path.is_file():
            return {}
        with open(path, "rb") as file:
            text = file.read(_MOST_BYTES).decode(errors="replace").replace("\r\n", "\n")
    except OSError:
        return {}
    if not text.startswith("---\n"):
        return {}
    import yaml

    found: dict[str, Any] = {}
    entries = {entry[1]: entry[0] for entry in _ENTRY.finditer(text[4:].split("\n---", 1)[0] + "\n")}
    for entry in entries.values():
        try:
            # Everything is text to this loader: Norwegian (no) is a language, and no number or date is malformed.
            values = yaml.load(entry[:_MOST_CHARACTERS], yaml.BaseLoader)
        except (yaml.YAMLError, RecursionError):
            continue
        if isinstance(values, dict):
            found |= values
    return found
