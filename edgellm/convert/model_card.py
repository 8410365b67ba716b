"""What a checkpoint says about itself: its name, licence and origin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MOST_BYTES = 1 << 20


def model_card(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """GGUF's `general.*` keys from the folder's README.md (a model card) and from config.json.

    What is missing or malformed is left out: a file runs without it.
    """
    path = config.get("_name_or_path")
    name = path if isinstance(path, str) and path.strip("/. ") else folder.resolve().name
    result: dict[str, Any] = {"general.name": name.rstrip("/").rpartition("/")[2]}
    card = _front_matter(folder / "README.md")
    if isinstance(license_name := card.get("license"), str):
        result["general.license"] = license_name
    for key in ("license_name", "license_link"):
        if isinstance(card.get(key), str):
            result[f"general.{key.replace('_', '.')}"] = card[key]
    for key, target in (("language", "general.languages"), ("tags", "general.tags")):
        values = card.get(key)
        values = [values] if isinstance(values, str) else values
        if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
            result[target] = values
    bases = card.get("base_model")
    bases = [bases] if isinstance(bases, str) else bases
    if isinstance(bases, list) and bases and all(isinstance(base, str) for base in bases):
        result["general.base_model.count"] = len(bases)
        for i, base in enumerate(bases):
            result[f"general.base_model.{i}.name"] = base.rpartition("/")[2]
            result[f"general.base_model.{i}.repo_url"] = f"https://huggingface.co/{base}"
    return result


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the two lines of dashes that a model card begins with."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    if not text.startswith("---"):
        return {}
    import yaml

    try:
        values = yaml.safe_load(text.split("\n---", 1)[0])
    except (yaml.YAMLError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
