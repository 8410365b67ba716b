"""What a parameter may be.

Each check gives the plain value (an int for a NumPy integer, say), or raises a UsageError that names the parameter,
what was found and what is expected. True and False are no numbers.
"""

from __future__ import annotations

import errno
import math
import numbers
import operator
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from edgellm.errors import UsageError, shown

_UNITS = (
    {"": 1} | {unit: 1000**n for n, unit in enumerate("kmgt", 1)} | {f"{u}i": 1024**n for n, u in enumerate("kmgt", 1)}
)


def wrong(name: str, value: Any, expected: str) -> UsageError:
    """The error of a parameter that has a value it cannot have."""
    return UsageError(f"{name} is {shown(value)}; expected {expected}", parameter=name)


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An int of any kind, from `least` on, up to `most` if there is one."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise wrong(name, value, "a whole number")
    found = int(value)
    if found < least:
        raise wrong(name, found, f"a number of at least {least}")
    if most is not None and found > most:
        raise wrong(name, found, f"a number up to {most}")
    return found


def number(name: str, value: Any, least: float, most: float | None = None) -> float:
    """A finite number of any kind, from `least` on, up to `most` if there is one."""
    found = _finite(name, value)
    if found < least or (most is not None and found > most):
        range_ = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise wrong(name, found, f"a number {range_}")
    return found


def positive_number(name: str, value: Any, most: float | None = None, least: float = 0.0) -> float:
    """A finite number above 0, up to `most` if there is one, and from `least` on."""
    found = _finite(name, value)
    if 0 < found < least:
        raise wrong(name, found, f"a number of at least {least:g}")
    if found <= 0 or (most is not None and found > most):
        raise wrong(name, found, "a number above 0" if most is None else f"a number above 0, up to {most:g}")
    return found


def finite_number(name: str, value: Any) -> float:
    """A number of any kind and sign."""
    return _finite(name, value)


def number_or_off(name: str, value: Any, least: float, most: float | None = None) -> float:
    """A number as `number` takes it, or -1, which turns something off."""
    found = _finite(name, value)
    if found == -1:
        return found
    if found < least or (most is not None and found > most):
        range_ = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise wrong(name, found, f"a number {range_}, or -1 to turn it off")
    return found


def whole_one_of(name: str, value: Any, numbers_: tuple[int, ...]) -> int:
    """One of some whole numbers."""
    found = whole_number(name, value, min(numbers_))
    if found not in numbers_:
        raise wrong(name, found, f"one of {', '.join(map(str, numbers_))}")
    return found


def one_of(name: str, value: Any, names: tuple[str, ...]) -> str:
    """One of some names."""
    if not (isinstance(value, str) and value in names):
        raise wrong(name, value, f"one of {', '.join(names)}")
    return str(value)


def of_keys_and_values(name: str, value: Any, names: tuple[str, ...]) -> str:
    """One of some names, or "KEYS:VALUES", one for each; where both are the same it is said once."""
    parts = value.split(":") if isinstance(value, str) else []
    if not (1 <= len(parts) <= 2 and all(part in names for part in parts)):
        raise wrong(name, value, f"one of {', '.join(names)}, or two of them as KEYS:VALUES")
    return ":".join(dict.fromkeys(parts))


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise wrong(name, value, "True or False")
    return value


def text(name: str, value: Any) -> str:
    """A str."""
    if not isinstance(value, str):
        raise wrong(name, value, "a text (str)")
    return value


def plain_text(name: str, value: Any) -> str:
    """The same as a plain str, whatever kind of one it was."""
    return str(text(name, value))


def text_or_path(name: str, value: Any) -> str:
    """A text, or the path of a file as one. It is not empty and has no null character."""
    try:
        found = os.fspath(value)
    except TypeError:
        raise wrong(name, value, "a text or a path") from None
    if not isinstance(found, str) or not found or "\0" in found:
        raise wrong(name, value, "a text or a path")
    return str(text(name, found))


def answer_format(name: str, value: Any) -> Any:
    """A JSON schema as a dict, or a type that describes one; what is in it is not looked at."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, type) or typing.get_origin(value) is not None:
        return value
    raise wrong(name, value, "a JSON schema (a dict), a Pydantic model, a dataclass or another type")


def texts(name: str, value: Any) -> list[str]:
    """Several str; a single one is most likely meant to stand in a list."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise wrong(name, value, "a list of texts (str)")
    return [text(name, item) for item in value]


def texts_or_ids(name: str, value: Any, n_vocab: int) -> list[str | list[int]]:
    """Texts, any of which may be given as token ids of a vocabulary. One by itself is a list of one."""
    expected = "a text (str) or token ids, whole numbers"
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray, Mapping)):
        raise wrong(name, value, f"{expected}, or a list of either")
    items = list(value)
    if items and all(isinstance(item, numbers.Integral) and not isinstance(item, bool) for item in items):
        return [token_ids(name, items, n_vocab)]
    for i, item in enumerate(items):
        if not isinstance(item, Iterable) or isinstance(item, (bytes, bytearray, Mapping)):
            raise UsageError(f"{name}[{i}] is {shown(item)}; expected {expected}", parameter=name)
    return [item if isinstance(item, str) else _ids_of(f"{name}[{i}]", item, n_vocab, name)
            for i, item in enumerate(items)]  # fmt: skip


def _ids_of(place: str, value: Iterable[Any], n_vocab: int, name: str) -> list[int]:
    """Token ids at a place of the parameter `name`."""
    try:
        return token_ids(place, value, n_vocab)
    except UsageError as error:
        raise UsageError(str(error), parameter=name) from None


def some_texts(name: str, value: Any, most: int) -> tuple[str, ...]:
    """Texts of at least one character: one by itself, or several, but not more than `most`. Each counts once."""
    if not isinstance(value, (str, list, tuple, set, frozenset)):
        raise wrong(name, value, "a text (str) or a list of texts")
    if not isinstance(value, str) and len(value) > most:
        raise UsageError(f"{name} has {len(value)} texts; up to {most}", parameter=name)
    for item in (value,) if isinstance(value, str) else value:
        if not isinstance(item, str) or not item:
            raise UsageError(
                f"{name} holds {shown(item)}; expected texts (str) of at least one character", parameter=name
            )
    return tuple(dict.fromkeys(map(str, [value] if isinstance(value, str) else value)))


def biases(name: str, value: Any) -> dict[int, float]:
    """Numbers by token id; minus infinity is one of them. Whether the ids are of a vocabulary is not looked at."""
    if not isinstance(value, Mapping):
        raise wrong(name, value, "a dict of numbers by token id")
    found: dict[int, float] = {}
    for key, bias in value.items():
        if not isinstance(key, numbers.Integral) or isinstance(key, bool) or key < 0:
            raise UsageError(f"{name} holds the key {shown(key)}; expected token ids, whole numbers", parameter=name)
        is_number = isinstance(bias, numbers.Real) and not isinstance(bias, bool)
        found[int(key)] = -math.inf if is_number and bias == -math.inf else _finite(f"{name}[{int(key)}]", bias, name)
    return found


def step_names(
    name: str, value: Any, names: Iterable[str], aliases: Mapping[str, str]
) -> tuple[str | Callable[..., Any], ...]:
    """Steps in their order: some of the names, each once, and functions. A str has the names with ; between them."""
    if isinstance(value, str):
        value = [word.strip() for word in value.split(";") if word.strip()]
    if not isinstance(value, (list, tuple)):
        raise wrong(name, value, "a list of names and functions")
    found: list[str | Callable[..., Any]] = []
    for item in value:
        step = item
        if isinstance(item, str):
            step = item.lower().replace("-", "_")
            step = aliases.get(step, step)
        if not (step in names if isinstance(step, str) else callable(step)) or isinstance(step, type):
            raise UsageError(f"{name} holds {shown(item)}; expected some of {', '.join(names)}", parameter=name)
        if isinstance(step, str) and step in found:
            raise UsageError(f"{name} holds {step} twice; expected each step once", parameter=name)
        found.append(step)
    return tuple(found)


def token_ids(name: str, value: Any, n_vocab: int, most: int | None = None) -> list[int]:
    """Token ids of a vocabulary: ints of any kind, in anything that can be iterated but is no text, bytes or dict.

    No more than most + 1 of them are read.
    """
    expected = "token ids, whole numbers" if name != "prompt" else "a text (str) or token ids, whole numbers"
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, bytearray, Mapping)):
        raise wrong(name, value, expected)
    ids: list[int] = []
    for found in islice(value, None if most is None else most + 1):
        try:
            ids.append(operator.index(found))
        except TypeError:
            raise UsageError(f"{name} holds {shown(found)}; expected {expected}", parameter=name) from None
        if isinstance(found, bool):
            raise UsageError(f"{name} holds {found}; expected {expected}", parameter=name)
    if ids and not 0 <= min(ids) <= max(ids) < n_vocab:
        beyond = shown(min(ids) if min(ids) < 0 else max(ids))
        raise UsageError(
            f"{name} holds {beyond}; the ids of this vocabulary go from 0 to {n_vocab - 1}", parameter=name
        )
    return ids


def path(name: str, value: Any, expected: str = "a path") -> Path:
    """A str or path-like object that a file can have as its path."""
    try:
        found = os.fspath(value)
    except TypeError:
        raise wrong(name, value, expected) from None
    if not isinstance(found, str) or not found or "\0" in found:
        raise wrong(name, value, expected)
    try:
        os.lstat(found)
    except OSError as problem:
        if problem.errno == errno.ENAMETOOLONG:
            raise wrong(name, value, f"{expected}, and this one is too long for a file") from None
    return Path(found)


def path_or_name(name: str, value: Any) -> str:
    """The same as it was given: a word may be the name of a model, too."""
    path(name, value, "a path or the name of a model")
    return str(os.fspath(value))


def function(name: str, value: Any) -> Callable[..., Any] | None:
    """Something to be called, or None."""
    if value is not None and not callable(value):
        raise wrong(name, value, "a function")
    return value  # type: ignore[no-any-return]


def take(params: object, name: str, check: Callable[..., Any], *bounds: Any, optional: bool = False) -> None:
    """Check a field of a frozen dataclass, and put the plain value in its place; `optional` allows None."""
    value = getattr(params, name)
    if not (optional and value is None):
        object.__setattr__(params, name, check(name, value, *bounds))


def _finite(name: str, value: Any, parameter: str | None = None) -> float:
    """parameter: where it differs from the name by which the value is called."""
    expected = "a number"
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # of an int or a fraction
            found = math.inf
        if math.isfinite(found):
            return found
        expected = "a finite number"
    raise UsageError(f"{name} is {shown(value)}; expected {expected}", parameter=parameter or name)


def fields(place: str, found: Mapping[str, Any], known: Mapping[str, type | None], parameter: str) -> None:
    """Only fields that are known, each a text or true or false where its type says so, or nothing."""
    for name, value in found.items():
        if name not in known:
            raise UsageError(f"unknown field {place}.{name}; expected {', '.join(known)}", parameter=parameter)
        kind = known[name]
        if kind is not None and value is not None and not isinstance(value, kind):
            expected = "a text" if kind is str else "true or false"
            raise UsageError(f"{place}.{name} is {shown(value)}; expected {expected}", parameter=parameter)


def size(text: str) -> int | None:
    """Bytes that a text names: "1000", "90MB", "1.5GiB", "2G"; None where it names none."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kmgt]i?)?b?", text.strip(), re.IGNORECASE)
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()]) if match else None
