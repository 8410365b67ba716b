"""The quick `dataclass` does what the standard one does."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any, ClassVar

import pytest

from edgellm.dataclass import dataclass


@dataclass(frozen=True)
class Quick:
    """A shape."""

    width: int
    height: int = 2
    names: list[str] = dataclasses.field(default_factory=list, compare=False)
    secret: str = dataclasses.field(default="hidden", repr=False)
    unit: ClassVar[str] = "cm"

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("negative")

    @property
    def area(self) -> int:
        return self.width * self.height


@dataclasses.dataclass(frozen=True)
class Standard:
    """A shape."""

    width: int
    height: int = 2
    names: list[str] = dataclasses.field(default_factory=list, compare=False)
    secret: str = dataclasses.field(default="hidden", repr=False)
    unit: ClassVar[str] = "cm"


@dataclass(frozen=True)
class Deeper(Quick):
    depth: int = 3


@dataclasses.dataclass(frozen=True)
class StandardBelow(Quick):
    depth: int = 3


@dataclass
class Mutable:
    n: int = 0


GIVEN: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((1, 5), {}),
    ((), {"width": 1, "names": ["a"]}),
    ((3,), {"height": 4, "secret": "x"}),
]


@pytest.mark.parametrize(("args", "given"), GIVEN)
def test_instances_are_those_of_the_standard_one(args: tuple[Any, ...], given: dict[str, Any]) -> None:
    ours, theirs = Quick(*args, **given), Standard(*args, **given)
    assert repr(ours) == repr(theirs).replace("Standard", "Quick")
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)  # type: ignore[call-overload]
    assert hash(ours) == hash(theirs)
    assert ours == Quick(*args, **given) == copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours))
    assert ours != theirs
    assert dataclasses.replace(ours, height=9) == Quick(ours.width, 9, secret=ours.secret)
    assert Quick.__match_args__ == Standard.__match_args__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "given"),
    [((), {}), ((1, 2, [], "", 5), {}), ((1,), {"width": 1}), ((1,), {"depth": 1}), ((), {"height": 1})],
)
def test_what_the_standard_one_refuses_is_refused(args: tuple[Any, ...], given: dict[str, Any]) -> None:
    for made in (Quick, Standard):
        with pytest.raises(TypeError, match=made.__name__):
            made(*args, **given)


def test_equality_and_hash_pass_over_fields_that_are_not_compared() -> None:
    assert Quick(1, names=["a"]) == Quick(1, names=["b"])
    assert hash(Quick(1, names=["a"])) == hash(Quick(1, names=["b"]))
    assert Quick(1) != Quick(2)
    assert Quick(1).names is not Quick(1).names


def test_frozen_ones_stay_as_they_are() -> None:
    shape = Quick(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        shape.width = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del shape.width
    assert shape.area == 2


def test_others_change_and_have_no_hash() -> None:
    counter = Mutable()
    counter.n += 1
    assert counter == Mutable(1)
    with pytest.raises(TypeError):
        hash(counter)


def test_fields_are_inherited_and_post_init_runs() -> None:
    assert dataclasses.astuple(Deeper(1)) == (1, 2, [], "hidden", 3)  # type: ignore[call-overload]
    assert dataclasses.astuple(StandardBelow(1)) == (1, 2, [], "hidden", 3)
    assert Deeper(1) != Quick(1)
    with pytest.raises(ValueError, match="negative"):
        Deeper(-1)


def test_the_signature_tells_the_fields() -> None:
    ours, theirs = inspect.signature(Quick), inspect.signature(Standard)
    assert list(ours.parameters) == list(theirs.parameters)
    assert [p.annotation for p in ours.parameters.values()] == [p.annotation for p in theirs.parameters.values()]
    assert ours.parameters["height"].default == 2
    assert ours.parameters["width"].default is inspect.Parameter.empty
