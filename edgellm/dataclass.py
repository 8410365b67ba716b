"""`dataclass` as in the standard library, for classes that every start makes.

The standard one compiles up to six methods for each class, which takes a millisecond or more; dozens of classes make a
start wait. Here the methods are closures over the fields, made at once. What is given and what comes out is the same.
An instance takes some microseconds longer, so a class with thousands of instances stays with the standard library.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass
    from inspect import Signature

if not TYPE_CHECKING:

    def dataclass(cls: type | None = None, /, *, frozen: bool = False, eq: bool = True, repr: bool = True) -> Any:
        """The class with methods for its annotated fields. To type checkers, this is the standard one."""

        def made(cls: type) -> type:
            of_frozen = any(
                base.__dataclass_params__.frozen for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)
            )
            dataclasses.dataclass(init=False, repr=False, eq=False, frozen=of_frozen)(cls)
            cls.__dataclass_params__.frozen = frozen  # what subclasses look at
            fields = dataclasses.fields(cls)
            compared = [field.name for field in fields if field.compare]
            cls.__init__ = _init(cls, fields)
            cls.__signature__ = _Signature()
            if repr and "__repr__" not in cls.__dict__:
                cls.__repr__ = _repr([field.name for field in fields if field.repr])
            if eq and "__eq__" not in cls.__dict__:
                cls.__eq__ = _eq(compared)
                cls.__hash__ = _hash(compared) if frozen else None
            if frozen:
                cls.__setattr__, cls.__delattr__ = _refuse_set, _refuse_delete
            return cls

        return made if cls is None else made(cls)


def _init(cls: type, fields: tuple[dataclasses.Field[Any], ...]) -> Callable[..., None]:
    names = tuple(field.name for field in fields)
    known = frozenset(names)
    missing = dataclasses.MISSING
    defaults = {field.name: field.default for field in fields if field.default is not missing}
    factories = [(field.name, field.default_factory) for field in fields if field.default_factory is not missing]
    finish = getattr(cls, "__post_init__", None)

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        values = dict(zip(names, args, strict=False))
        if len(args) > len(names) or not given.keys() <= known or values.keys() & given.keys():
            raise TypeError(_wrong(cls, names, args, given))
        values = {**defaults, **values, **given}
        for name, make in factories:
            if name not in values:
                values[name] = make()
        if len(values) < len(names):
            lacking = ", ".join(repr(name) for name in names if name not in values)
            raise TypeError(f"{cls.__name__}.__init__() lacks {lacking}")
        self.__dict__.update(values)
        if finish is not None:
            self.__post_init__()

    return __init__


def _wrong(cls: type, names: tuple[str, ...], args: tuple[Any, ...], given: dict[str, Any]) -> str:
    if len(args) > len(names):
        return f"{cls.__name__}.__init__() takes {len(names)} values, and was given {len(args)}"
    for name in given:
        if name not in names:
            return f"{cls.__name__}.__init__() got an unexpected keyword argument {name!r}"
    twice = next(name for name in names[: len(args)] if name in given)
    return f"{cls.__name__}.__init__() got multiple values for argument {twice!r}"


def _repr(names: list[str]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    return __repr__


def _eq(names: list[str]) -> Callable[[Any, object], bool]:
    def __eq__(self: Any, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in names)

    return __eq__


def _hash(names: list[str]) -> Callable[[Any], int]:
    def __hash__(self: Any) -> int:
        return hash(tuple([getattr(self, name) for name in names]))

    return __hash__


def _refuse_set(self: Any, name: str, value: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


class _Signature:
    """The class's signature, made when somebody asks (`help`, editors)."""

    def __get__(self, instance: Any, owner: type) -> Signature:
        from inspect import Parameter, Signature

        missing = dataclasses.MISSING
        parameters = []
        for field in dataclasses.fields(owner):  # type: ignore[arg-type]
            default = Parameter.empty if field.default is missing else field.default
            if field.default_factory is not missing:
                default = field.default_factory()
            parameters.append(
                Parameter(field.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=field.type)
            )
        return Signature(parameters, return_annotation=None)
