"""Settings in a file: YAML, one `name: value` a line, read into the parameter objects and written beside a result.

A file may leave out what is to be as usual. Names that nobody knows or that stand twice are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgellm.checks import text, texts, wrong
from edgellm.errors import EdgellmError, FileProblem, FormatError, UsageError, shown
from edgellm.files import atomic_write
from edgellm.train.other_names import DORA, SAME, DoraFlag, unknown

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1 << 20
WHERE = ("model", "data", "validation_data", "template")  # what a file holds beside the fields of the parameter objects

_HEAD = "# all settings of a run, as edgellm wrote them\n"  # by which a later run knows the file for one of its own
_INT = re.compile(r"[-+]?[0-9]{1,99}")
_FLOAT = re.compile(r"[-+]?([0-9]{1,99}(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z/][\w./-]*", re.ASCII)
_NO_WORDS = ("true", "false", "null", "yes", "no", "on", "off", "y", "n")

Config = TypeVar("Config")


def read_settings(
    path: Path, kinds: Iterable[type], has_files: bool = True, unread: Collection[str] = ()
) -> dict[str, Any]:
    """The settings of a file, in its order, each as the parameter objects `kinds` take it.

    has_files:  whether `validation` may be files, as the option may; they are found as `validation_data`.
    unread:     settings that mean nothing to the reader: they may stand there, and are given as they stand.

    Raises FileProblem for a file that cannot be read or is no YAML, UsageError for a name or value that cannot be,
    with the line where it stands.
    """
    kinds = list(kinds)
    homes = {field.name: kind for kind in kinds for field in fields(kind)}
    found: dict[str, Any] = {}
    dora: DoraFlag | None = None
    for written, value, line in _entries(path):
        name = SAME.get(written, written)
        name = name if name in homes else written
        try:
            if written in DORA and "method" in homes:
                if dora is not None:
                    raise UsageError(f"{written} stands there twice")
                dora = DoraFlag(written, value, line)
                continue
            if name == "validation" and has_files and isinstance(value, (str, list)):
                name, value = _validation(value)
            if name in found:
                raise UsageError(f"{written} stands there twice")
            if name in homes:
                homes[name](**{name: value})
            elif name in WHERE:
                value = _place(name, value)
            elif name not in unread:
                raise UsageError(f"{shown(name)} is no setting{unknown(name, [*homes, *WHERE, *unread])}")
        except UsageError as error:
            told = str(error).replace(name, written, 1) if str(error).startswith(f"{name} ") else error
            raise UsageError(f"{path}, line {line}: {told}", is_of_file=True) from None
        found[name] = value
    return found if dora is None else _with_dora(path, found, dora)


def _with_dora(path: Path, found: dict[str, Any], dora: DoraFlag) -> dict[str, Any]:
    """The settings with the method that a flag beside them means."""
    try:
        method = dora.method(found.get("method"))
    except UsageError as error:
        raise UsageError(f"{path}, line {dora.line}: {error}", is_of_file=True) from None
    return found if method is None else found | {"method": method}


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write what `read_settings` reads, whole or not at all."""
    settings = dict(settings)
    if settings.get("validation_data") and not settings.get("validation"):
        settings["validation"] = settings.pop("validation_data")  # one name for both, as there is one option
    lines = [f"{name}: {_written(value)}\n" for name, value in settings.items()]
    with atomic_write(path) as file:
        file.write("".join([_HEAD, *lines]).encode())


def is_own(path: Path) -> bool:
    """Whether a file was written by `write_settings`, and not by a person. Raises FileProblem."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_HEAD)) == _HEAD.encode()
    except OSError as problem:
        raise FileProblem(f"{path} cannot be read: {problem.strerror}") from None


def made(kind: type[Config], settings: Mapping[str, Any]) -> Config:
    """A parameter object of those settings that are its fields. Raises UsageError."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in settings.items() if name in names})


def as_settings(*configs: Any) -> dict[str, Any]:
    """The fields of parameter objects, by name. Raises ValueError when two have a field of one name."""
    found: dict[str, Any] = {}
    for config in configs:
        fields_of = asdict(config)
        if shared := found.keys() & fields_of:
            raise ValueError(f"two kinds of settings have a field {sorted(shared)[0]!r}")
        found |= fields_of
    return found


def _entries(path: Path) -> Iterable[tuple[str, Any, int]]:
    """Name, value and line of each setting."""
    import yaml

    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise FormatError(f"{path} has more than {MAX_BYTES} bytes, too many for settings")
        root = yaml.compose(raw.decode("utf-8-sig"), _without_aliases())
    except OSError as problem:
        raise FileProblem(f"{path} cannot be read: {problem.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as problem:
        raise FormatError(f"{path} is no YAML: {_in_one_line(problem)}") from None
    if root is None:
        return []
    try:
        if not isinstance(root, yaml.MappingNode):
            raise FormatError("it holds no settings; expected lines such as `rank: 8`")
        return [(str(_plain(name)), _plain(value), name.start_mark.line + 1) for name, value in root.value]
    except EdgellmError as error:
        raise type(error)(f"{path}: {error}") from None


def _without_aliases() -> type[yaml.SafeLoader]:
    """A reader that refuses what stands for something else in the file: a few lines of those are a million values."""
    import yaml

    class Reader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem="aliases (*) are not read", problem_mark=mark)
            return super().compose_node(parent, index)

    return Reader


def _plain(node: Any) -> Any:
    """A text, number, flag, None, or lists and dicts of those, by the core schema of YAML 1.2.

    YAML 1.1, by which PyYAML goes, takes 1e-4 for a text, `no` for a flag and 010 for eight.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        found = {str(_plain(name)): _plain(value) for name, value in node.value}
        if len(found) < len(node.value):
            raise FormatError(f"line {node.start_mark.line + 1}: a name stands there twice")
        return found
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise FormatError(f"line {node.start_mark.line + 1} holds the tag {shown(node.tag)}; expected a plain value")
    word = str(node.value)
    if node.style:  # in quotes, or a block
        return word
    if word.lower() in ("", "~", "null"):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if _FLOAT.fullmatch(word):
        return int(word) if _INT.fullmatch(word) else float(word)
    return word


def _written(value: Any) -> str:
    """A value as `_plain` reads it, and as readers of YAML 1.1 do."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_written(str(name))}: {_written(part)}' for name, part in value.items())}}}"
    if isinstance(value, float):
        digits, e, exponent = repr(value).partition("e")
        return f"{digits}{'.0' if e and '.' not in digits else ''}{e}{exponent}"
    if isinstance(value, str):
        if _WORD.fullmatch(value) and value.lower() not in _NO_WORDS:
            return value
        return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value) + '"'
    return json.dumps(value)


def _place(name: str, value: Any) -> str | list[str]:
    """A path or name; for data several."""
    if name not in ("data", "validation_data"):
        return text(name, value)
    found = [value] if isinstance(value, str) else texts(name, value)
    if not found:
        raise wrong(name, value, "at least one file")
    return found


def _validation(value: str | list[Any]) -> tuple[str, Any]:
    """Name and value of what validates: a number, which may stand in quotes, or files."""
    try:
        return "validation", float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "validation_data", value


def _in_one_line(problem: BaseException) -> str:
    if isinstance(problem, UnicodeDecodeError):
        return f"byte {problem.start} is not UTF-8"
    mark = getattr(problem, "problem_mark", None)
    what = getattr(problem, "problem", None) or "it is nested too deeply"
    return f"line {mark.line + 1}: {what}" if mark else " ".join(str(what).split())
