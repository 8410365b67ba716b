"""JSON schemas of Python types: what annotations, dataclasses and Pydantic models describe."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Callable
from typing import Any, Literal, Union

from edgellm.errors import UsageError, shown

PLAIN: dict[Any, dict[str, Any]] = {
    Any: {}, object: {}, str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"},
    bool: {"type": "boolean"}, None: {"type": "null"}, type(None): {"type": "null"}, list: {"type": "array"},
    tuple: {"type": "array"}, dict: {"type": "object"}, decimal.Decimal: {"type": "number"},
    datetime.datetime: {"type": "string", "format": "date-time"}, datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"}, uuid.UUID: {"type": "string", "format": "uuid"},
}  # fmt: skip
LISTS = (list, collections.abc.Sequence, collections.abc.Iterable, set, frozenset)
DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def schema_of(name: str, kind: Any) -> dict[str, Any]:
    """The JSON schema of a Pydantic model, a dataclass, a TypedDict or any other annotation.

    name: the parameter that it was given for. Raises UsageError for a type that JSON has no counterpart of.
    """
    if callable(made := getattr(kind, "model_json_schema", None)) and isinstance(kind, type):
        try:
            return dict(made())
        except Exception as problem:  # of Pydantic's own kinds
            text = " ".join(str(problem).split())
            raise UsageError(
                f"{name} is {kind.__name__}, which has no JSON schema: {text:.200}", parameter=name
            ) from None
    return TypeSchemas(name).whole(kind)


class TypeSchemas:
    """Turns annotations into schemas; what has a name of its own stands under $defs, so that it may hold itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.definitions: dict[str, dict[str, Any]] = {}

    def whole(self, kind: Any) -> dict[str, Any]:
        """A schema that stands for itself."""
        schema = self.of(kind)
        return {**schema, "$defs": self.definitions} if self.definitions else schema

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of one annotation, which may refer to `definitions`."""
        if callable(made := getattr(kind, "model_json_schema", None)):
            schema = dict(made(ref_template="#/$defs/{model}"))
            self.definitions.update(schema.pop("$defs", {}))
            return schema
        try:
            if kind in PLAIN:
                return dict(PLAIN[kind])
        except TypeError:  # it cannot be a key, as the type of a list of values cannot
            pass
        origin, args = typing.get_origin(kind), _args(kind)
        if origin is typing.Annotated:
            return self._annotated(args)
        if origin is Literal:
            return self._one_of(list(args), kind)
        if origin is Union or isinstance(kind, types.UnionType):
            return {"anyOf": [self.of(arg) for arg in args]}
        if origin is tuple and args and args[-1] is not Ellipsis:
            n = len(args)
            return {
                "type": "array",
                "prefixItems": [self.of(a) for a in args],
                "items": False,
                "minItems": n,
                "maxItems": n,
            }
        if origin in LISTS or (origin is tuple and args):
            return {"type": "array", "items": self.of(args[0])}
        if origin in DICTS:
            if args[0] is not str:
                raise self._no_schema(kind, "JSON has texts as keys")
            return {"type": "object", "additionalProperties": self.of(args[1])}
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return self._one_of([member.value for member in kind], kind)
        if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or typing.is_typeddict(kind)):
            return self._named(kind)
        raise self._no_schema(kind, "expected dataclasses, lists, dicts, texts, numbers, enums and the like")

    def _named(self, kind: type) -> dict[str, Any]:
        name = kind.__name__
        if name not in self.definitions:
            self.definitions[name] = {}
            hints = self.hints(kind)
            if dataclasses.is_dataclass(kind):
                required = [f.name for f in dataclasses.fields(kind) if f.init and _has_no_default(f)]
                hints = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}
            else:
                required = [key for key in hints if key in kind.__required_keys__]  # type: ignore[attr-defined]
            self.definitions[name] = object_schema({key: self.of(hint) for key, hint in hints.items()}, required)
        return {"$ref": f"#/$defs/{name}"}

    def hints(self, of: Any) -> dict[str, Any]:
        """The annotations of a class or function, texts resolved."""
        try:
            found = typing.get_type_hints(of, include_extras=True)
        except Exception as problem:  # whatever stands in the annotations
            raise UsageError(
                f"{self._name} holds {of.__name__}, whose annotations cannot be read: {problem}", parameter=self._name
            ) from None
        return {key: _without_wrapper(hint) for key, hint in found.items()}

    def _annotated(self, args: tuple[Any, ...]) -> dict[str, Any]:
        schema = self.of(args[0])
        texts = [extra for extra in args[1:] if isinstance(extra, str)]
        return {**schema, "description": texts[0]} if texts else schema

    def _one_of(self, values: list[Any], kind: Any) -> dict[str, Any]:
        if not all(value is None or isinstance(value, (str, int, float)) for value in values):
            raise self._no_schema(kind, "its values are no texts or numbers")
        return {"enum": values}

    def _no_schema(self, kind: Any, why: str) -> UsageError:
        return UsageError(
            f"{self._name} holds the type {shown(kind)}, which has no JSON schema: {why}", parameter=self._name
        )


def object_schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """An object with these properties and no others."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def parameters_of(name: str, function: Callable[..., Any], texts: dict[str, str]) -> dict[str, Any]:
    """The schema of what a function takes by name.

    texts: descriptions of its parameters. Raises UsageError for one without an annotation, and for *args.
    """
    schemas = TypeSchemas(name)
    hints = schemas.hints(function)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        what = f"{name} holds the function {function.__name__}, whose parameter {parameter.name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UsageError(f"{what} cannot be given by name; a model gives each by its name", parameter=name)
        if parameter.name not in hints:
            raise UsageError(f"{what} has no type; annotate it, as in {parameter.name}: str", parameter=name)
        schema = schemas.of(hints[parameter.name])
        if parameter.name in texts:
            schema = {**schema, "description": texts[parameter.name]}
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    schema = object_schema(properties, required)
    return {**schema, "$defs": schemas.definitions} if schemas.definitions else schema


def _args(kind: Any) -> tuple[Any, ...]:
    """Of Annotated, the type and what is said of it."""
    if typing.get_origin(kind) is typing.Annotated:
        return (kind.__origin__, *kind.__metadata__)
    return typing.get_args(kind)


def _without_wrapper(hint: Any) -> Any:
    """What is in Required[...], NotRequired[...] and the like."""
    wrappers = ("Required", "NotRequired", "ReadOnly", "Final", "ClassVar")
    name = getattr(typing.get_origin(hint), "_name", None)
    return _without_wrapper(typing.get_args(hint)[0]) if name in wrappers else hint


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
