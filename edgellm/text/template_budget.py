"""What one rendering of a template may spend: steps of work, bytes of memory, and the size of any one value.

Nothing can stop a single operation in C once it runs, so its cost is charged before. Work is counted, not timed: the
same template and chat pass or fail on every machine, however busy it is. A step is roughly what Python takes to look
at a name, some tens of nanoseconds.

A longer chat may cost more: some steps for each of its characters, and some for each pair of messages, since templates
look back from every message to those before it. What a template repeats beyond that is refused.

Every value has a weight, the characters it would take to write it out in full. A list that holds one list twice weighs
twice as much, so what a few nested lines can blow up (printing, comparing, hashing) is bounded by weights too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from edgellm.errors import TemplateError
from edgellm.text.provenance import Text, join

STEPS = 6_000_000  # for compiling, and for each rendering of a short chat
STEPS_PER_CHAR = 20  # of the chat
STEPS_PER_PAIR = 80  # of its messages
MOST_MESSAGES = 8192  # whose pairs count
LARGEST = 4_000_000  # characters of any one value, and of the rendered text
MEMORY = 96 << 20  # bytes of all values created in one rendering
LARGEST_INT_BITS = 4096
DEEPEST = 150  # lists within dicts within lists
MOST_ITEMS = 200_000  # that one operation goes through or makes
ITEM = 8  # what a number, or the frame of a list, weighs
ITEM_BYTES = 96  # most that a new item of a list takes, apart from its text
KNOWN_ITEM_BYTES = 16  # that an item takes which exists already
CALL = 20  # steps of a call from Python to Python
CHARS_PER_STEP = 50  # of what C does with a text
BITS_PER_STEP = 16  # of what it does with a large number
SHORT_NEEDLE = 100  # characters; C looks for a longer text in one pass, but for a shorter one may try every place
LIST_COSTS = 5  # times as much as a text, for the same weight
MACRO = 6 * CALL  # steps of calling a macro, besides those of its body

_VIEWS: Any = (type({}.keys()), type({}.values()), type({}.items()))
_HELD = (list, tuple, dict)


class Budget:
    """What is left. All methods raise TemplateError for what is beyond it."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Start anew: before a template is compiled, and before each rendering."""
        self._steps: float = STEPS
        self._bytes = MEMORY
        self._weighed: dict[int, tuple[int, int, Any]] = {}

    def allow_for(self, variables: dict[str, Any], n_messages: int) -> None:
        """Weigh what a template is given, and allow for its size."""
        self._steps = math.inf  # weighing what the caller holds is no work of the template
        n_chars = self.weigh(variables)
        self._steps = STEPS + STEPS_PER_CHAR * n_chars + STEPS_PER_PAIR * min(n_messages, MOST_MESSAGES) ** 2

    def spend(self, steps: float) -> None:
        """Charge work that is about to be done."""
        self._steps -= steps
        if self._steps < 0:
            raise TemplateError("the chat template does far more work than a chat of this size needs; refused")

    def spend_chars(self, n_chars: int) -> None:
        """Charge what C does with so many characters."""
        self.spend(CALL + n_chars // CHARS_PER_STEP)

    def fits(self, size: float) -> None:
        """Check the size of something that is about to be made."""
        if size > LARGEST:
            raise TemplateError(f"the chat or its template holds over {LARGEST:,} characters; refused")

    def few(self, n_items: int, what: str) -> None:
        """Check a number of items before they are made or gone through."""
        if n_items > MOST_ITEMS:
            raise TemplateError(f"the chat template has over {MOST_ITEMS:,} items for {what}; refused")

    def create(self, n_bytes: int) -> None:
        """Charge memory."""
        self._bytes -= n_bytes
        if self._bytes < 0:
            raise TemplateError(f"the chat template makes more than {MEMORY >> 20} MiB of values; refused")

    def admit(self, value: Any) -> Any:
        """Count a value that has just been made, and return it."""
        if isinstance(value, str):
            self.fits(len(value))
            self.spend_chars(len(value))
            self.create(sys.getsizeof(value) + (len(value) if isinstance(value, Text) else 0))
        elif isinstance(value, int):
            if value.bit_length() > LARGEST_INT_BITS:
                raise TemplateError(f"the chat template makes a number of over {LARGEST_INT_BITS} bits; refused")
        elif isinstance(value, _HELD):
            self.weigh(value)
            self.create(sys.getsizeof(value))
        return value

    def weigh(self, value: Any) -> int:
        """The weight of a value. Those of lists are remembered, so that each is added up once."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, _HELD):
            return self._weigh_held(value)[0]
        if isinstance(value, range):
            return ITEM * (1 + len(value))
        if isinstance(value, _VIEWS):
            self.spend(len(value))
            return ITEM + sum(map(self.weigh, value))
        return ITEM

    def depth(self, value: Any) -> int:
        """How many lists and dicts lie inside each other."""
        return self._weigh_held(value)[1] if isinstance(value, _HELD) else 0

    def _weigh_held(self, value: Any) -> tuple[int, int, Any]:
        known = self._weighed.get(id(value))
        if known is None:
            self.spend(CALL + 4 * len(value))
            parts: Iterable[Any] = [*value, *value.values()] if isinstance(value, dict) else value
            weight, depth = ITEM, 0
            for part in parts:
                if isinstance(part, _HELD):
                    inner = self._weigh_held(part)
                    weight += inner[0]
                    depth = max(depth, inner[1])
                else:
                    weight += self.weigh(part)
            self.fits(weight)
            if depth >= DEEPEST:
                raise TemplateError(f"the chat template nests lists and dicts more than {DEEPEST} deep; refused")
            known = self._weighed[id(value)] = weight, depth + 1, value  # held, so that its id stays its own
        return known

    def look(self, *values: Any) -> None:
        """Charge an operation that may look at all of some values: comparing, hashing, searching."""
        for value in values:
            weight = self.weigh(value)
            self.spend_chars(weight if isinstance(value, str) else LIST_COSTS * weight)

    def search(self, value: Any, n_searched: int = SHORT_NEEDLE) -> None:
        """Charge looking for something in a value: in a text, for so many characters."""
        if isinstance(value, str):
            self.spend_chars(len(value) * min(max(n_searched, 1), SHORT_NEEDLE))
        else:
            self.look(value)

    def text(self, value: Any) -> str:
        """A value as a template writes it."""
        if isinstance(value, str):
            return value
        self.spend(self.weigh(self.admit(value)) // 2)
        return self.admit(str(value))

    def each(self, iterable: Iterable[Any], steps: int = CALL) -> Iterator[Any]:
        """Go through something, with so many steps for each item."""
        for item in iterable:
            self._steps -= steps  # `spend`, in the loop that is run most
            if self._steps < 0:
                self.spend(0)
            yield item

    def collect(self, iterable: Iterable[Any], what: str, steps: int = CALL) -> list[Any]:
        """The items of something, as a list of bounded weight."""
        if isinstance(iterable, Sized):
            self.few(len(iterable), what)
        items: list[Any] = []
        n_bytes = ITEM_BYTES if isinstance(iterable, (str, range)) else KNOWN_ITEM_BYTES
        for item in self.each(iterable, steps):
            items.append(item)
            self.create(n_bytes)
            self.few(len(items), what)
        self.fits(self.weigh(items))
        return items

    def concat(self, parts: Iterable[str]) -> str:
        """What a template, or a block of one, has written."""
        pieces, size = [], 0
        for piece in parts:
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST:
                self.fits(size)
        self.spend_chars(size)
        return self.admit(join("", pieces))
