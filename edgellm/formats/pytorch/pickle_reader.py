"""Reading the pickle of a PyTorch file without running it.

A pickle is a program for a small stack machine. Most of its opcodes put data together; some import a name and
call it, and through these a file can run any code. This machine knows the opcodes that tables of weights need.
A name it meets is looked up in the table it was given, and stands for what the table says; nothing is ever
imported, and nothing called but the table's functions. Any other name or opcode is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgellm.errors import FormatError
from edgellm.formats.gguf.header import quoted

# A tensor takes 35 opcodes, so 30 thousand tensors fit; this bounds the time and memory that a hostile file costs.
MAX_OPCODES = 1 << 20

PROTOCOLS = range(2, 6)


@dataclass(frozen=True)
class Function:
    """A name in the table that a pickle may call: `build` gets the arguments, unchecked, and returns a value."""

    build: Callable[[tuple[Any, ...]], Any]


class PickleReader:
    """The stack machine. `read()` returns the pickle's one value.

    names:    (module, name) -> the value that it stands for; a Function can be called.
    persist:  turns a persistent id (how torch refers to a storage) into a value.

    Values are None, bool, int, float, str, tuple, list, dict, and what the table and `persist` give. They can
    contain themselves and be nested deeply: look at the type of one before doing anything with it.
    FormatError when the pickle is malformed, too large, or needs a name or opcode that is not known here.
    """

    def __init__(self, data: bytes, names: Mapping[tuple[str, str], Any], persist: Callable[[Any], Any]) -> None:

        self.data = data
        self.names = names
        self.persist = persist
        self.position = 0
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []  # one for each mark that is open
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        for _ in range(MAX_OPCODES):
            at = self.position
            opcode = self.take(1)[0]
            if opcode == STOP:
                if len(self.stack) != 1 or self.outer_stacks:
                    raise FormatError(f"its pickle ends at byte {at} with {len(self.stack)} values, expected one")
                return self.stack[0]
            action = ACTIONS.get(opcode)
            if action is None:
                name = _opcode_name(opcode)
                raise FormatError(f"its pickle at byte {at} uses {name}, which no table of weights needs")
            try:
                action(self)
            except FormatError as problem:
                raise FormatError(f"its pickle at byte {at}: {problem}") from None
        raise FormatError(f"its pickle has more than {MAX_OPCODES} opcodes")

    def take(self, n_bytes: int) -> bytes:
        start = self.position
        self.position = start + n_bytes
        if self.position > len(self.data):
            raise FormatError("its pickle is cut off")
        return self.data[start : self.position]

    def number(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def text(self, n_bytes: int) -> str:
        return _utf8(self.take(n_bytes))

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise FormatError("a name has no end")
        raw = self.take(end - self.position)
        self.position += 1
        return _utf8(raw)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise FormatError("it takes a value, but there is none")
        return self.stack.pop()

    def top(self, kind: type, what: str) -> Any:
        """The uppermost value, which stays; it must be of type `kind`."""
        if not self.stack or type(self.stack[-1]) is not kind:
            raise FormatError(f"it {what} something else than a {kind.__name__}")
        return self.stack[-1]

    def mark(self) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        if not self.outer_stacks:
            raise FormatError("it takes the values since a mark, but there is none")
        values, self.stack = self.stack, self.outer_stacks.pop()
        return values

    def push_tuple(self, n: int) -> None:
        if len(self.stack) < n:
            raise FormatError(f"it takes {n} values, there are {len(self.stack)}")
        values = tuple(self.stack[-n:])
        del self.stack[-n:]
        self.push(values)

    def put(self, key: int) -> None:
        if not self.stack:
            raise FormatError("it keeps a value, but there is none")
        self.memo[key] = self.stack[-1]

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise FormatError(f"it recalls value {key}, which it never kept")
        self.push(self.memo[key])

    def start(self) -> None:
        protocol = self.take(1)[0]
        if protocol not in PROTOCOLS:
            raise FormatError(f"pickle protocol {protocol} is not 2 to 5")

    def long(self) -> None:
        raw = self.take(self.take(1)[0])
        if len(raw) > 8:
            raise FormatError(f"a whole number of {len(raw)} bytes")
        self.push(int.from_bytes(raw, "little", signed=True))

    def name(self, module: Any, name: Any) -> None:
        """What a name stands for. Here a pickle would import; here it is only looked up."""
        if type(module) is not str or type(name) is not str:
            raise FormatError("a name is no text")
        if (module, name) not in self.names:
            raise FormatError(
                f"it names {quoted(f'{module}.{name}')}, whose code it would run; a table of weights needs no such "
                "name. edgellm runs nothing from a file: use it only if you trust it, saved again as safetensors"
            )
        self.push(self.names[module, name])

    def stacked_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def reduce(self) -> None:
        """Call a function of the table."""
        arguments, function = self.pop(), self.pop()
        if type(function) is not Function or type(arguments) is not tuple:
            raise FormatError("it calls something that is no function")
        self.push(function.build(arguments))

    def build(self) -> None:
        """Attributes of an object: of a state dict only, whose `_metadata` says nothing about weights."""
        self.pop()
        self.top(dict, "gives attributes to")

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict, "adds named values to")
        if len(items) % 2:
            raise FormatError("a name has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Of these only; the hash of a deeply nested tuple could exhaust C's stack.
            if type(key) not in (str, int):
                raise FormatError(f"a key is a {type(key).__name__}; expected a text or whole number")
            target[key] = value

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def append(self) -> None:
        value = self.pop()
        self.top(list, "adds values to").append(value)

    def append_marked(self) -> None:
        values = self.pop_to_mark()
        self.top(list, "adds values to").extend(values)


_U8, _U16, _U32, _I32 = (struct.Struct(layout) for layout in ("<B", "<H", "<I", "<i"))
_F64 = struct.Struct(">d")

STOP = ord(".")
ACTIONS: dict[int, Callable[[PickleReader], object]] = {
    0x80: lambda r: r.start(),  # PROTO
    0x95: lambda r: r.take(8),  # FRAME: a hint for reading ahead
    # Numbers, texts and constants.
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("K"): lambda r: r.push(r.number(_U8)),
    ord("M"): lambda r: r.push(r.number(_U16)),
    ord("J"): lambda r: r.push(r.number(_I32)),
    0x8A: lambda r: r.long(),
    ord("G"): lambda r: r.push(r.number(_F64)),
    ord("X"): lambda r: r.push(r.text(r.number(_U32))),
    0x8C: lambda r: r.push(r.text(r.number(_U8))),
    # Tuples, lists and dicts.
    ord("("): lambda r: r.mark(),
    ord(")"): lambda r: r.push(()),
    0x85: lambda r: r.push_tuple(1),
    0x86: lambda r: r.push_tuple(2),
    0x87: lambda r: r.push_tuple(3),
    ord("t"): lambda r: r.push(tuple(r.pop_to_mark())),
    ord("]"): lambda r: r.push([]),
    ord("a"): lambda r: r.append(),
    ord("e"): lambda r: r.append_marked(),
    ord("}"): lambda r: r.push({}),
    ord("s"): lambda r: r.set_item(),
    ord("u"): lambda r: r.set_items(r.pop_to_mark()),
    # The memo: values that are used again.
    ord("q"): lambda r: r.put(r.number(_U8)),
    ord("r"): lambda r: r.put(r.number(_U32)),
    0x94: lambda r: r.put(len(r.memo)),
    ord("h"): lambda r: r.get(r.number(_U8)),
    ord("j"): lambda r: r.get(r.number(_U32)),
    # Names, and what is made with them.
    ord("c"): lambda r: r.name(r.line(), r.line()),
    0x93: lambda r: r.stacked_name(),
    ord("Q"): lambda r: r.push(r.persist(r.pop())),
    ord("R"): lambda r: r.reduce(),
    ord("b"): lambda r: r.build(),
}


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise FormatError(f"a text is not UTF-8: {raw[:40]!r}") from None


def _opcode_name(opcode: int) -> str:
    import pickletools

    names = {known.code: known.name for known in pickletools.opcodes}
    return f"opcode {names.get(chr(opcode), hex(opcode))}"
