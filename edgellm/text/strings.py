"""Finding any of some strings in a text that comes character by character.

An automaton (Aho and Corasick, 1975): each node is a beginning of one of the strings, the longest that the text so far
ends with. So one number, the node, is all that has to be kept of the text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable


class StringFinder:
    """Nodes are ints; 0 is where every text begins. What follows is the same wherever a text is cut into pieces."""

    def __init__(self, strings: Iterable[str]) -> None:
        """strings: of at least one character each."""
        self._children: list[dict[str, int]] = []
        self._depths: list[int] = []
        self._found: list[str | None] = []
        self._add(0)
        for string in strings:
            node = 0
            for character in string:
                children = self._children[node]
                if character not in children:
                    children[character] = self._add(self._depths[node] + 1)
                node = children[character]
            self._found[node] = string
        self._fall_back()

    def _add(self, depth: int) -> int:
        self._children.append({})
        self._depths.append(depth)
        self._found.append(None)
        return len(self._depths) - 1

    def _fall_back(self) -> None:
        """Where to go on when the next character does not fit: the longest end of a node that is a node itself."""
        self._back = [0] * len(self._children)
        waiting = deque([0])
        while waiting:
            node = waiting.popleft()
            for character, child in self._children[node].items():
                if node:
                    self._back[child] = self.next(self._back[node], character)
                self._found[child] = self._found[child] or self._found[self._back[child]]
                waiting.append(child)

    def next(self, node: int, character: str) -> int:
        """The node after one more character."""
        while (child := self._children[node].get(character)) is None:
            if not node:
                return 0
            node = self._back[node]
        return child

    def found(self, node: int) -> str | None:
        """The longest of the strings that the text ends with."""
        return self._found[node]

    def depth(self, node: int) -> int:
        """How many characters at the end of the text may be the beginning of a string, or are a whole one."""
        return self._depths[node]
