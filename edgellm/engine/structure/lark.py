"""Lark grammars before they are compiled: rules that begin with themselves, and rules that no text ends.

Only as much of the syntax is read as that takes (the syntax is llguidance's, a variant of lark-parser.readthedocs.io);
what is wrong otherwise, llguidance says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edgellm.errors import UsageError

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f]+|//[^\n]*|\#[^\n]*) | (?P<line>\n) | (?P<json>%(?:json|regex)\s*(?=\{)|%lark\s*(?=\{))
      | (?P<directive>%\w+) | (?P<text>"(?:\\.|[^"\\\n])*"i?) | (?P<regex>/(?:\\.|[^/\\\n])+/[imslux]*)
      | (?P<token><[^>\n]*>) | (?P<name>[!?]?[A-Za-z_][\w-]*) | (?P<attributes>\[[^\]\n]*=[^\]\n]*\]|\[[a-z]+\])
      | (?P<count>\{[\d,\s]*\}|~\s*\d+(?:\s*\.\.\s*\d+)?) | (?P<sign>::=|->|\.\.|[:|()\[\]*+?&~,.@]|\d+)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass
class Rules:
    """What is known of a grammar's rules: for each the alternatives, each a sequence of items.

    An item is a name, or None for something that takes at least one character. What may be left out is left out.
    """

    alternatives: dict[str, list[list[str | None]]] = field(default_factory=dict)
    n_groups: int = 0

    def group(self, alternatives: list[list[str | None]]) -> str:
        """A rule for what stands in brackets."""
        self.n_groups += 1
        name = f"({self.n_groups})"
        self.alternatives[name] = alternatives
        return name


def check(name: str, text: str) -> None:
    """Raises UsageError for a grammar that begins with itself, has no `start`, or never ends.

    name: the parameter that it was given for.
    """
    rules = _read(text)
    if rules is None:
        return  # llguidance says what is wrong
    if "start" not in rules.alternatives:
        raise UsageError(f'{name} has no rule "start", where a Lark grammar begins', parameter=name)
    circle = _left_recursion(rules)
    if circle:
        raise UsageError(
            f"{name} is left-recursive: the rule {circle[0]} begins with itself ({' → '.join(circle)}); "
            "let it begin with something else, and repeat the rest with *",
            parameter=name,
        )
    endless = _endless(rules)
    if "start" in endless:
        raise UsageError(
            f"{name} describes no finite text: the rule {endless['start']} always needs itself again; "
            "give it an alternative that ends",
            parameter=name,
        )


def _read(text: str) -> Rules | None:
    tokens = _tokens(text)
    if tokens is None:
        return None
    rules = Rules()
    position = 0
    while position < len(tokens):
        kind, word = tokens[position]
        if kind != "name":  # a directive, to the end of its line
            while position < len(tokens) and tokens[position][0] != "line":
                position += 1
            position += 1
            continue
        after = position + 1
        while after < len(tokens) and (
            tokens[after][0] == "attributes" or tokens[after][1].isdigit() or tokens[after][1] == "."
        ):
            after += 1
        if after >= len(tokens) or tokens[after][1] not in (":", "::="):
            return None
        try:
            alternatives, position = _alternatives(rules, tokens, after + 1, inside=False)
        except (IndexError, ValueError, RecursionError):
            return None
        rules.alternatives[word.lstrip("!?")] = alternatives
    return rules


def _tokens(text: str) -> list[tuple[str, str]] | None:
    found: list[tuple[str, str]] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        kind, position = str(match.lastgroup), match.end()
        if kind == "json":
            end = _end_of_braces(text, position)
            if end is None:
                return None
            position = end
        if kind == "line":
            if found and found[-1][0] != "line":
                found.append((kind, "\n"))
        elif kind != "space":
            found.append((kind, match[0]))
    found = [token for token in found if token[0] != "attributes" or True]
    # A line that begins with | goes on with the rule above.
    return [
        token
        for i, token in enumerate(found)
        if not (token[0] == "line" and i + 1 < len(found) and found[i + 1][1] == "|")
    ]


def _end_of_braces(text: str, start: int) -> int | None:
    depth = 0
    for match in re.compile(r'"(?:\\.|[^"\\])*"|[{}]', re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return match.end()
    return None


def _alternatives(
    rules: Rules, tokens: list[tuple[str, str]], position: int, inside: bool
) -> tuple[list[list[str | None]], int]:
    """Up to the end of a rule, or to the bracket that closes."""
    found: list[list[str | None]] = [[]]
    while position < len(tokens):
        kind, word = tokens[position]
        if kind == "line" and not inside:
            return found, position + 1
        position += 1
        if kind == "line":
            continue
        if word in (")", "]"):
            if not inside:
                raise ValueError(word)
            return found, position
        if word == "|":
            found.append([])
        elif word == "->":
            position += 1  # and the name of the alternative
        elif word in ("(", "["):
            group, position = _alternatives(rules, tokens, position, inside=True)
            _add(rules, found[-1], rules.group([*group, []] if word == "[" else group))
        elif word in ("*", "?") or (kind == "count" and re.match(r"[{~]\s*0", word)) or word.startswith("{,"):
            item = found[-1].pop()
            found[-1].append(rules.group([[item], []]))
        elif kind == "name":
            found[-1].append(word)
        elif kind == "text":
            found[-1] += [None] if word.strip("i") != '""' else []
        elif kind == "regex":
            found[-1].append(rules.group([[None], []]) if _may_be_empty(word) else None)
        elif kind in ("json", "token") or word == ".." or word.isdigit():
            found[-1].append(None)
        elif word == "@":
            position += 1
            found[-1].append(None)
        elif word in ("+", "&", "~", ",", ".") or kind in ("count", "attributes"):
            pass
        else:
            raise ValueError(word)
    if inside:
        raise ValueError("a bracket is open")
    return found, position


def _add(rules: Rules, items: list[str | None], item: str | None) -> None:
    items.append(item)


def _may_be_empty(regex: str) -> bool:
    try:
        return re.compile(regex[1 : regex.rindex("/")]).fullmatch("") is not None
    except re.error:
        return False


def _nullable(rules: Rules) -> set[str]:
    """The rules that an empty text satisfies."""
    known: set[str] = set()
    while True:
        more = {
            name
            for name, alternatives in rules.alternatives.items()
            if name not in known and any(all(item in known for item in items) for items in alternatives)
        }
        if not more:
            return known
        known |= more


def _left_recursion(rules: Rules) -> list[str]:
    """The names of a circle of rules, each of which may begin with the next; empty where there is none."""
    nullable = _nullable(rules)
    begins: dict[str, list[str]] = {}
    for name, alternatives in rules.alternatives.items():
        begins[name] = []
        for items in alternatives:
            for item in items:
                if item is not None:
                    begins[name].append(item)
                if item not in nullable:
                    break
    done: set[str] = set()
    for first in rules.alternatives:
        path: list[str] = []
        waiting: list[tuple[str, bool]] = [(first, False)]
        while waiting:
            name, leaves = waiting.pop()
            if leaves:
                path.pop()
                done.add(name)
            elif name in path:
                circle = [*path[path.index(name) :], name]
                named = [one for one in circle if not one.startswith("(")]
                return [*named, named[0]] if len(named) == 1 or named[0] != named[-1] else named
            elif name not in done and name in begins:
                path.append(name)
                waiting.append((name, True))
                waiting += [(item, False) for item in begins[name]]
    return []


def _endless(rules: Rules) -> dict[str, str]:
    """The rules that no finite text satisfies, and for each a rule that it is because of."""
    ends: set[str] = set()
    while True:
        more = {
            name
            for name, alternatives in rules.alternatives.items()
            if name not in ends
            and any(all(i is None or i in ends or i not in rules.alternatives for i in items) for items in alternatives)
        }
        if not more:
            break
        ends |= more
    endless = [name for name in rules.alternatives if name not in ends]
    named = [name for name in endless if not name.startswith("(") and name != "start"] or endless
    return {name: named[0] for name in endless}
