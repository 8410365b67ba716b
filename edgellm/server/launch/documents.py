"""Configuration files as nested values: read, changed at some places, written again. JSON, TOML, YAML.

Comments would not survive, so a file that has some is refused, and the person is told what to add.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgellm.errors import FileProblem, shown
from edgellm.server.launch.programs import ITEM, Settings

ABSENT = object()
MOST_BYTES = 10_000_000
_BARE = re.compile(r"[A-Za-z0-9_-]+")

Place = tuple[str, ...]


def read(path: Path) -> dict[str, Any]:
    """What a file holds, nothing if it is not there. Raises FileProblem for one that cannot be changed safely."""
    if not path.exists():
        return {}
    if path.stat().st_size > MOST_BYTES:
        raise FileProblem(f"{path} is too large for a configuration")
    try:
        text = path.read_text(encoding="utf-8")
        found = _READERS[path.suffix](text) if text.strip() else {}
    except UnicodeDecodeError:
        raise FileProblem(f"{path} is not UTF-8, so it is left alone") from None
    except (ValueError, RecursionError) as error:
        raise FileProblem(f"{path} cannot be changed: {error}") from None
    if not isinstance(found, dict):
        raise FileProblem(f"{path} cannot be changed: it is {shown(found)}; expected settings")
    return found


def text_of(values: dict[str, Any], suffix: str) -> str:
    """The text of a whole file."""
    return _WRITERS[suffix](values)


def nested(settings: Settings) -> dict[str, Any]:
    """Settings alone, as they would stand in an empty file."""
    values: dict[str, Any] = {}
    for place, value in settings.items():
        put(values, place, value)
    return values


def get(values: Any, place: Place) -> Any:
    """What stands at a place, or ABSENT."""
    for i, name in enumerate(place):
        if name == ITEM and isinstance(values, list):
            return next((one for one in values if _name_of(one) == place[i + 1]), ABSENT)
        if not isinstance(values, dict) or name not in values:
            return ABSENT
        values = values[name]
    return values


def put(values: dict[str, Any], place: Place, value: Any) -> None:
    """Set it, or take it away if it is ABSENT. Raises FileProblem where something else is in the way."""
    name, rest = place[0], place[1:]
    if not rest:
        if value is ABSENT:
            values.pop(name, None)
        else:
            values[name] = value
        return
    is_list = rest[0] == ITEM
    if name not in values:
        if value is ABSENT:
            return
        values[name] = [] if is_list else {}
    inside = values[name]
    if not isinstance(inside, list if is_list else dict):
        expected = "a list" if is_list else "settings"
        raise FileProblem(f"the file cannot be changed: {name} is {shown(inside)}; expected {expected} there")
    if isinstance(inside, list):
        at = next((i for i, one in enumerate(inside) if _name_of(one) == rest[1]), len(inside))
        inside[at : at + 1] = [] if value is ABSENT else [value]
    else:
        put(inside, rest, value)
    if value is ABSENT and not inside:
        del values[name]


def _name_of(item: Any) -> Any:
    return item.get("name") if isinstance(item, dict) else None


# --- formats ------------------------------------------------------------------------------------------------


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if re.search(r"//|/\*", text):
            raise ValueError("it has comments, which would be lost") from None
        raise


def _read_toml(text: str) -> Any:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    if re.search(r"^\s*#", text, re.MULTILINE):
        raise ValueError("it has comments, which would be lost")
    return tomllib.loads(text)


def _read_yaml(text: str) -> Any:
    import yaml

    if re.search(r"(^|\s)#", text):
        raise ValueError("it has comments, which would be lost")
    try:
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from None


def _json_text(values: Any) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _yaml_text(values: Any) -> str:
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _toml_text(values: dict[str, Any], table: Place = ()) -> str:
    """Tables behind what stands before them; TOML's texts, numbers and lists are those of JSON."""
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    parts = ["".join(f"{_toml_key(name)} = {json.dumps(value)}\n" for name, value in plain.items())]
    for name, value in values.items():
        if isinstance(value, dict):
            place = (*table, name)
            head = f"[{'.'.join(map(_toml_key, place))}]\n"
            inside = _toml_text(value, place)
            parts.append(inside if all(isinstance(one, dict) for one in value.values()) else head + inside)
    return "\n".join(part for part in parts if part)


def _toml_key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


_READERS: dict[str, Callable[[str], Any]] = {".json": _read_json, ".toml": _read_toml, ".yaml": _read_yaml}
_WRITERS: dict[str, Callable[[Any], str]] = {".json": _json_text, ".toml": _toml_text, ".yaml": _yaml_text}
