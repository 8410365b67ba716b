"""What is kept between requests, each thing for its owner alone: files, batches, answers to come back to."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Generic, TypeVar

from edgellm.server.problems import ApiProblem

Thing = TypeVar("Thing")


class Kept(Generic[Thing]):
    """Things by their names, which nobody can guess. The oldest go first when there are too many.

    what:  what one is called, for people. kind: what its name begins with. most: of all owners together.
    """

    def __init__(self, what: str, kind: str, most: int) -> None:
        self._what, self._kind, self._most = what, kind, most
        self._things: OrderedDict[str, tuple[str, Thing]] = OrderedDict()

    def new_name(self) -> str:
        return f"{self._kind}{secrets.token_hex(20)}"

    def put(self, name: str, owner: str, thing: Thing) -> None:
        self._things[name] = (owner, thing)
        while len(self._things) > self._most:
            self._things.popitem(last=False)

    def get(self, name: str, owner: str) -> Thing:
        """Raises ApiProblem for what is not there, and for what is another's, in the same words."""
        held = self._things.get(name)
        if held is None or held[0] != owner:
            raise ApiProblem(404, f"there is no {self._what} {name[:80]!r}; it may have been deleted", code="not_found")
        return held[1]

    def drop(self, name: str, owner: str) -> Thing:
        """Raises ApiProblem as `get`."""
        thing = self.get(name, owner)
        del self._things[name]
        return thing

    def of(self, owner: str) -> list[Thing]:
        """The owner's, the newest first."""
        return [thing for its_owner, thing in reversed(self._things.values()) if its_owner == owner]

    def all(self) -> list[Thing]:
        return [thing for _, thing in self._things.values()]
