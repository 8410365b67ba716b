"""GBNF, llama.cpp's notation for grammars, as Lark.

GBNF describes characters, and Lark lexemes, each of which takes as many characters as it can. So what is regular, a
rule that never comes back to itself, becomes one lexeme. Where two lexemes meet and the first might take what the
second needs, the first is written character by character, which is slower and exact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from edgellm.errors import UsageError

# Stands for all characters that a grammar does not mention.
OTHERS = ("é", "中", "😀", "\x01")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_DEFINES = re.compile(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", re.MULTILINE)


def is_gbnf(text: str) -> bool:
    return _DEFINES.search(text) is not None


def to_lark(text: str) -> str:
    """Raises UsageError with the line of what is wrong."""
    rules = _Reader(text).rules()
    return _Writer(rules, text).lark()


@dataclass(frozen=True)
class Node:
    """A part of a rule. kind: text, class, name, token, sequence, choice or repeat.

    value:   of a text; of a class, its regular expression; of a name; of a token, as in <[12]>.
    least, most:  of a repetition; None is no bound.
    """

    kind: str
    value: str = ""
    parts: tuple[Node, ...] = ()
    least: int = 0
    most: int | None = None


class _Reader:
    """Reads a grammar from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip()
            if not self._takes("::="):
                raise self._wrong('"::="')
            self._skip(lines=True)
            if name in found:
                raise self._wrong(f"each rule once, and {name} is there already")
            found[name] = self._choice(inside=False)
            self._skip(lines=True)
        if "root" not in found:
            raise UsageError('grammar has no rule "root", where a GBNF grammar begins', parameter="grammar")
        return found

    def _choice(self, inside: bool) -> Node:
        choices = [self._sequence(inside)]
        while self._takes("|"):
            self._skip(lines=True)
            choices.append(self._sequence(inside))
        return choices[0] if len(choices) == 1 else Node("choice", parts=tuple(choices))

    def _sequence(self, inside: bool) -> Node:
        parts: list[Node] = []
        while True:
            self._skip(lines=inside)
            start = self._at
            char = self._text[start : start + 1]
            if char == '"':
                node = Node("text", self._quoted())
            elif char == "[":
                node = Node("class", self._class())
            elif char == ".":
                self._at += 1
                node = Node("class", "(?s:.)")
            elif char == "(":
                self._at += 1
                self._skip(lines=True)
                node = self._choice(inside=True)
                self._skip(lines=True)
                if not self._takes(")"):
                    raise self._wrong('")"')
            elif char == "<":
                node = Node("token", self._token())
            elif _NAME.match(char):
                node = Node("name", self._name())
            else:
                break
            parts.append(self._repeated(node))
        if not inside and self._text[self._at : self._at + 1] not in ("", "\n", "\r", "|"):
            raise self._wrong("a text, a class, a name, a bracket or the end of the line")
        return parts[0] if len(parts) == 1 else Node("sequence", parts=tuple(parts))

    def _repeated(self, node: Node) -> Node:
        while True:
            self._skip()
            char = self._text[self._at : self._at + 1]
            if char and char in "*+?":
                self._at += 1
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
            elif char == "{":
                match = re.compile(r"\{\s*(\d{1,5})\s*(,?)\s*(\d{1,5})?\s*\}").match(self._text, self._at)
                if match is None:
                    raise self._wrong("a repetition such as {2}, {2,} or {2,5}")
                self._at = match.end()
                least = int(match[1])
                most = int(match[3]) if match[3] else None if match[2] else least
                if most is not None and most < least:
                    raise self._wrong(f"a repetition from less to more, not {match[0]}")
            else:
                return node
            node = Node("repeat", parts=(node,), least=least, most=most)

    def _quoted(self) -> str:
        self._at += 1
        found = ""
        while not self._takes('"'):
            found += self._character("a text that ends with a quotation mark")
        return found

    def _class(self) -> str:
        """A class of characters, as a regular expression."""
        self._at += 1
        found = "[^" if self._takes("^") else "["
        while not self._takes("]"):
            first = self._character("a class that ends with ]")
            found += _in_class(first)
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                last = self._character("a class that ends with ]")
                if last < first:
                    raise self._wrong(f"a range from a smaller character to a larger one, not {first}-{last}")
                found += "-" + _in_class(last)
        if found in ("[", "[^"):
            raise self._wrong("a class of at least one character")
        return found + "]"

    def _character(self, expected: str) -> str:
        char = self._text[self._at : self._at + 1]
        if char in ("", "\n"):
            raise self._wrong(expected)
        self._at += 1
        if char != "\\":
            return char
        escaped = self._text[self._at : self._at + 1]
        self._at += 1
        if escaped in _ESCAPES:
            return _ESCAPES[escaped]
        n_digits = {"x": 2, "u": 4, "U": 8}.get(escaped)
        if n_digits is None:
            if escaped and escaped in '"\\[]^-/':
                return escaped
            raise self._wrong('one of the escapes \\n \\r \\t \\\\ \\" \\[ \\] \\x \\u \\U')
        digits = self._text[self._at : self._at + n_digits]
        if not re.fullmatch(f"[0-9A-Fa-f]{{{n_digits}}}", digits) or int(digits, 16) > 0x10FFFF:
            raise self._wrong(f"{n_digits} hexadecimal digits of a character")
        self._at += n_digits
        return chr(int(digits, 16))

    def _token(self) -> str:
        match = re.compile(r"<\[\d{1,9}\]>").match(self._text, self._at)
        if match is None:
            raise self._wrong("a token by its number, as in <[12]>")
        self._at = match.end()
        return match[0]

    def _name(self) -> str:
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self._wrong("the name of a rule")
        self._at = match.end()
        return match[0]

    def _takes(self, word: str) -> bool:
        if not self._text.startswith(word, self._at):
            return False
        self._at += len(word)
        return True

    def _skip(self, lines: bool = False) -> None:
        pattern = r"(?:[ \t\r\n]|#[^\n]*)*" if lines else r"(?:[ \t]|#[^\n]*)*"
        match = re.compile(pattern).match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _wrong(self, expected: str) -> UsageError:
        line = self._text.count("\n", 0, self._at) + 1
        here = self._text[self._at : self._at + 20].split("\n")[0]
        found = f"at {here!r}" if here else "at the end of the line"
        return UsageError(f"grammar, line {line}, {found}: expected {expected}", parameter="grammar")


def _in_class(char: str) -> str:
    return char if char.isalnum() and char.isascii() else f"\\x{{{ord(char):x}}}"


@dataclass
class _Writer:
    """Writes rules as Lark."""

    rules: dict[str, Node]
    source: str
    _names: dict[str, str] = field(default_factory=dict)

    def lark(self) -> str:
        self._check_names()
        lines = []
        for name, node in self.rules.items():
            if name == "root" or name in self._recursive:
                lines.append(f"{self._lark_name(name)}: {self._written(node, self._follow[name])}")
        return "\n".join(lines) + "\n"

    def _check_names(self) -> None:
        for name, node in self.rules.items():
            for other in _names_in(node):
                if other not in self.rules:
                    raise UsageError(f"grammar names {other} in the rule {name}, which it does not define",
                                     parameter="grammar")  # fmt: skip

    def _lark_name(self, name: str) -> str:
        """The names of Lark's rules are of small letters."""
        if name == "root":
            return "start"
        plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
        return self._names.setdefault(name, f"r_{plain}_{len(self._names)}")

    @cached_property
    def _recursive(self) -> set[str]:
        """The rules that come back to themselves, and those that hold tokens: they are no lexemes."""
        reached = {name: set(_names_in(node)) for name, node in self.rules.items()}
        changed = True
        while changed:
            changed = False
            for others in reached.values():
                more = set().union(*(reached[other] for other in others)) - others if others else set()
                if more:
                    others |= more
                    changed = True
        circles = {name for name, others in reached.items() if name in others}
        tokens = {name for name, node in self.rules.items() if _holds_token(node)}
        return {name for name, others in reached.items() if ({name} | others) & (circles | tokens)}

    def _is_regular(self, node: Node) -> bool:
        return not _holds_token(node) and not any(name in self._recursive for name in _names_in(node))

    # --- Lark ---------------------------------------------------------------------------------------------

    def _written(self, node: Node, follow: frozenset[str]) -> str:
        """A part of a rule. follow: the characters that may come after it."""
        if self._is_regular(node):
            if not self._extends(node) & follow:
                regex = self._regex(node)
                return f"/{regex}/" if regex else '""'
            return self._by_character(node)
        if node.kind == "name":
            return self._lark_name(node.value)
        if node.kind == "token":
            return node.value
        if node.kind == "choice":
            return "(" + " | ".join(self._written(part, follow) for part in node.parts) + ")"
        if node.kind == "repeat":
            inner = self._written(node.parts[0], follow | self._first(node.parts[0]))
            return f"({inner}){_times(node)}"
        parts = _joined(node.parts, self._is_regular)
        written = []
        for i, part in enumerate(parts):
            written.append(self._written(part, self._after(parts[i + 1 :], follow)))
        return " ".join(written)

    def _by_character(self, node: Node) -> str:
        if node.kind == "text":
            return " ".join(f"/{_escaped(char)}/" for char in node.value) or '""'
        if node.kind == "class":
            return f"/{node.value}/"
        if node.kind == "name":
            return f"({self._by_character(self.rules[node.value])})"
        if node.kind == "choice":
            return "(" + " | ".join(map(self._by_character, node.parts)) + ")"
        if node.kind == "repeat":
            return f"({self._by_character(node.parts[0])}){_times(node)}"
        return " ".join(map(self._by_character, node.parts)) or '""'

    def _regex(self, node: Node) -> str:
        if node.kind == "text":
            return "".join(map(_escaped, node.value))
        if node.kind == "class":
            return node.value
        if node.kind == "name":
            return f"(?:{self._regex(self.rules[node.value])})"
        if node.kind == "choice":
            return "(?:" + "|".join(map(self._regex, node.parts)) + ")"
        if node.kind == "repeat":
            return f"(?:{self._regex(node.parts[0])}){_times(node)}"
        return "".join(map(self._regex, node.parts))

    # --- which characters meet ----------------------------------------------------------------------------

    @cached_property
    def _alphabet(self) -> frozenset[str]:
        return (
            frozenset(chr(code) for code in range(32, 127))
            | frozenset(self.source)
            | frozenset("\n\r\t")
            | frozenset(OTHERS)
        )

    def _first(self, node: Node, seen: frozenset[str] = frozenset()) -> frozenset[str]:
        """The characters that it may begin with, of `_alphabet`."""
        if node.kind == "text":
            return frozenset(node.value[:1])
        if node.kind == "class":
            pattern = re.compile(re.sub(r"\\x\{([0-9a-f]+)\}", lambda m: re.escape(chr(int(m[1], 16))), node.value))
            return frozenset(char for char in self._alphabet if pattern.fullmatch(char))
        if node.kind == "name":
            return frozenset() if node.value in seen else self._first(self.rules[node.value], seen | {node.value})
        if node.kind in ("choice", "repeat"):
            return frozenset().union(*(self._first(part, seen) for part in node.parts))
        found: frozenset[str] = frozenset()
        for part in node.parts:
            found |= self._first(part, seen)
            if not self._is_empty(part):
                break
        return found

    def _is_empty(self, node: Node, seen: frozenset[str] = frozenset()) -> bool:
        """Whether no text at all satisfies it too."""
        if node.kind in ("text", "class", "token"):
            return node.kind == "text" and not node.value
        if node.kind == "name":
            return node.value not in seen and self._is_empty(self.rules[node.value], seen | {node.value})
        if node.kind == "repeat":
            return node.least == 0 or self._is_empty(node.parts[0], seen)
        return (any if node.kind == "choice" else all)(self._is_empty(part, seen) for part in node.parts)

    def _extends(self, node: Node) -> frozenset[str]:
        """The characters with which a text that satisfies it may go on and satisfy it again; of a regular one."""
        if node.kind in ("text", "class"):
            return frozenset()
        if node.kind == "name":
            return self._extends(self.rules[node.value])
        if node.kind == "repeat":
            inner = self._extends(node.parts[0])
            return inner | self._first(node.parts[0]) if node.most is None or node.most > node.least else inner
        if node.kind == "choice":
            found = frozenset().union(*map(self._extends, node.parts))
            firsts = [self._first(part) for part in node.parts]
            is_apart = sum(map(len, firsts)) == len(frozenset().union(*firsts))
            if is_apart and not any(map(self._is_empty, node.parts)):
                return found
            return self._alphabet if not is_apart else found.union(*firsts)
        found = frozenset()
        for part in reversed(node.parts):
            found |= self._extends(part)
            if not self._is_empty(part):
                break
            found |= self._first(part)
        return found

    def _after(self, parts: tuple[Node, ...] | list[Node], follow: frozenset[str]) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for part in parts:
            found |= self._first(part)
            if not self._is_empty(part):
                return found
        return found | follow

    @cached_property
    def _follow(self) -> dict[str, frozenset[str]]:
        """What may come after each rule."""
        follow: dict[str, frozenset[str]] = dict.fromkeys(self.rules, frozenset())

        def walk(node: Node, after: frozenset[str]) -> bool:
            if node.kind == "name":
                changed = not after <= follow[node.value]
                follow[node.value] |= after
                return changed
            if node.kind == "sequence":
                return any([walk(part, self._after(node.parts[i + 1 :], after)) for i, part in enumerate(node.parts)])
            if node.kind == "repeat":
                after |= self._first(node.parts[0])
            return any([walk(part, after) for part in node.parts])

        while any([walk(node, follow[name]) for name, node in self.rules.items()]):
            pass
        return follow


def _names_in(node: Node) -> list[str]:
    return [node.value] if node.kind == "name" else [name for part in node.parts for name in _names_in(part)]


def _holds_token(node: Node) -> bool:
    return node.kind == "token" or any(map(_holds_token, node.parts))


def _joined(parts: tuple[Node, ...], is_regular: object) -> list[Node]:
    """Neighbours that are regular, as one part each."""
    found: list[list[Node]] = []
    for part in parts:
        if found and is_regular(part) and is_regular(found[-1][-1]):  # type: ignore[operator]
            found[-1].append(part)
        else:
            found.append([part])
    return [run[0] if len(run) == 1 else Node("sequence", parts=tuple(run)) for run in found]


def _times(node: Node) -> str:
    signs = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    most = "" if node.most is None else node.most
    return signs.get((node.least, node.most), f"{{{node.least},{most}}}")


def _escaped(char: str) -> str:
    return char if char.isalnum() and char.isascii() else f"\\x{{{ord(char):x}}}"
