"""What is kept between requests, each thing for its owner alone: files, batches, answers to come back to."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Generic, TypeVar

from edgellm.server.problems import ApiProblem

Thing = TypeVar("Thing")


class Kept(Generic[Thing]):
    """Things by their names, which nobody can guess. The oldest go first when there are too many.

    what:        what one is called, for people. kind: what its name begins with.
    most:        things of all owners together. most_bytes: that they may take.
    """

    def __init__(self, what: str, kind: str, most: int, most_bytes: int = 1 << 62) -> None:
        self._what, self._kind, self._most, self._most_bytes = what, kind, most, most_bytes
        self._things: OrderedDict[str, tuple[str, Thing, int]] = OrderedDict()
        self._n_bytes = 0

    def new_name(self) -> str:
        return f"{self._kind}{secrets.token_hex(20)}"

    def put(self, name: str, owner: str, thing: Thing, n_bytes: int = 0) -> None:
        self._things[name] = (owner, thing, n_bytes)
        self._n_bytes += n_bytes
        while len(self._things) > self._most or self._n_bytes > self._most_bytes:
            _, (_, _, its_bytes) = self._things.popitem(last=False)
            self._n_bytes -= its_bytes

    def get(self, name: str, owner: str) -> Thing:
        """Raises ApiProblem for what is not there, and for what is another's, in the same words."""
        held = self._things.get(name)
        if held is None or held[0] != owner:
            raise ApiProblem(404, f"there is no {self._what} {name[:80]!r}; it may have been deleted", code="not_found")
        return held[1]

    def drop(self, name: str, owner: str) -> Thing:
        """Raises ApiProblem as `get`."""
        thing = self.get(name, owner)
        self._n_bytes -= self._things.pop(name)[2]
        return thing

    def of(self, owner: str) -> list[Thing]:
        """The owner's, the newest first."""
        return [thing for its_owner, thing, _ in reversed(self._things.values()) if its_owner == owner]

    def all(self) -> list[Thing]:
        return [thing for _, thing, _ in self._things.values()]
