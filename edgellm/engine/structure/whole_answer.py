"""The grammar of a whole answer: a thought, and then calls of tools, a given structure, or any text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from edgellm.engine.structure.asked import Asked, json_rule
from edgellm.text.calls.arguments import ListedArguments, Written
from edgellm.text.calls.syntax import ID_LENGTH, CallSyntax
from edgellm.text.reasoning import Reasoning

if TYPE_CHECKING:
    from edgellm.engine.answer_form import AnswerForm
    from edgellm.text import Tokenizer

ANY = "/(?s:.*)/"
SPACE = r"/[ \t\r\n]{0,4}/"  # no more, so that it cannot go on for ever


def of_answer(form: AnswerForm, asked: Asked | None, calls: str, tokenizer: Tokenizer) -> Asked | None:
    """The grammar that an answer follows; None where it may be anything.

    calls: whether calls must come ("required"), may come ("auto"), or must not ("none").
    """
    words = Words(tokenizer)
    has_calls = form.calls is not None and calls != "none"
    if not has_calls and asked is None:
        return None
    name = asked.name if asked is not None else "tools"
    grammars = []
    lines: list[str] = []
    if has_calls:
        assert form.calls is not None
        lines += CallRules(form.calls, words).rules(form.arguments, form.one_call)
    if asked is not None:
        lines.append("body: @body")
        grammars.append({"name": "body", "lark_grammar": asked.grammar})
        if has_calls:
            lines.append("answer: calls | body")
    elif calls == "required":
        lines.append("body: calls")
    else:
        assert form.calls is not None
        lines += _any_or_calls(form.calls, words)
    what = "answer" if has_calls and asked is not None else "body"
    lines = [*_begin(form, what, words), *lines]
    return Asked(
        name, json.dumps({"grammars": [{"name": "whole", "lark_grammar": "\n".join(lines) + "\n"}, *grammars]})
    )


def _begin(form: AnswerForm, what: str, words: Words) -> list[str]:
    """The first rule: a thought where there may be one, and what comes after it."""
    reasoning = form.reasoning
    if reasoning is None or form.is_over:
        return [f"start: {what}"]
    thought = _thought(reasoning, words)
    begin = words.literal(reasoning.answer_start)
    if form.is_open:
        return [f"start: thought_rest {begin} {what}", *thought]
    start = words.literal(reasoning.start)
    return [f"start: ({start} thought_rest)? {begin} {what}", *thought]


def _thought(reasoning: Reasoning, words: Words) -> list[str]:
    lines, rule = words.until("thought_text", reasoning.end)
    return [*lines, f"thought_rest: {rule} {words.literal(reasoning.lead)} {SPACE}".rstrip()]


def _any_or_calls(syntax: CallSyntax, words: Words) -> list[str]:
    """Text in which calls may come, after which nothing does."""
    if syntax.is_anchored:
        first = re.escape(syntax.trigger)
        return [f"body: calls | /([ \\t\\r\\n]*[^ \\t\\r\\n{first}](?s:.*))?/"]
    trigger = syntax.trigger
    rest = syntax.first.partition(trigger)[2]
    lines, head = words.until("head", trigger)
    return [*lines, f"body: {ANY} | {head} {words.literal(rest, is_loose=True)} calls_rest"]


class Words:
    """Texts as they stand in a rule: control tokens by their numbers, for no text makes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def literal(self, text: str, is_loose: bool = False) -> str:
        """is_loose: white space in front may be missing."""
        pieces = []
        if is_loose and text[:1].isspace():
            pieces, text = [SPACE], text.lstrip()
        for piece in self._tokenizer.with_control(text):
            pieces.append(f"<[{piece}]>" if isinstance(piece, int) else json.dumps(piece, ensure_ascii=False))
        return " ".join(pieces)

    def until(self, name: str, end: str) -> tuple[list[str], str]:
        """Any text up to the first `end`, with it: rules that are needed, and how it stands in another one."""
        first, *others = self._tokenizer.with_control(end)
        if isinstance(first, int):
            return [], f"{ANY} {self.literal(end)}"
        rest = [f"<[{one}]>" if isinstance(one, int) else json.dumps(one, ensure_ascii=False) for one in others]
        slashed = re.sub(r"[^A-Za-z0-9 ]", lambda char: f"\\x{{{ord(char[0]):x}}}", first)
        return [f"{name}[lazy]: /(?s:.*){slashed}/"], " ".join([name, *rest])


class CallRules:
    """Rules for calls in some syntax; the first is `calls`."""

    def __init__(self, syntax: CallSyntax, words: Words) -> None:
        self._syntax, self._words = syntax, words

    def rules(self, tools: Mapping[str, Mapping[str, Any]], one_call: bool = False) -> list[str]:
        """tools: the schemas of what each takes, by its name. one_call: no second call may follow."""
        syntax, literal = self._syntax, self._words.literal
        again = "" if syntax.again is None or one_call else f"({literal(syntax.again)} call)*"
        lines = [
            f"calls: {literal(syntax.first.lstrip())} calls_rest",
            f"calls_rest: call {again} {literal(syntax.last.rstrip())}".rstrip(),
            "call: " + " | ".join(f"call_{i}" for i in range(len(tools))),
        ]
        for i, (name, schema) in enumerate(tools.items()):
            parts = {"name": literal(name), "id": f"/[a-zA-Z0-9]{{{ID_LENGTH}}}/", "arguments": f"arguments_{i}"}
            pieces = [parts[syntax.order[0]]]
            for between, part in zip(syntax.middle, syntax.order[1:], strict=True):
                pieces += [literal(between), parts[part]]
            lines.append(f"call_{i}: " + " ".join(filter(None, pieces)))
            lines += self._arguments(f"arguments_{i}", schema)
        return lines

    def _arguments(self, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
        how = self._syntax.arguments
        if isinstance(how, ListedArguments):
            yield from self._listed(how, name, schema)
        elif how.quoted:
            yield from self._quoted(name, schema)
        else:
            yield f"{name}: {json_rule('tools', schema)}"

    def _quoted(self, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
        """JSON in a JSON string, in which no schema can be followed: names are those of the schema, values any."""
        keys = " | ".join(json.dumps(json.dumps(key)[1:-1]) for key in schema.get("properties") or {})
        pair = rf"""({keys}) "\\\": " {name}_value"""
        pairs = rf"""("\\\"" {pair} (", \\\"" {pair})*)?""" if keys else ""
        yield rf"""{name}: "\"{{" {pairs} "}}\"" """.rstrip()
        yield rf"""{name}_value: {name}_text | /-?(0|[1-9][0-9]{{0,15}})(\.[0-9]{{1,15}})?|true|false|null/"""
        yield rf"""  | "[" ({name}_value (", " {name}_value)*)? "]" """.rstrip()
        yield rf"""  | "{{" ({name}_text ": " {name}_value (", " {name}_text ": " {name}_value)*)? "}}" """.rstrip()
        yield rf"""{name}_text: /\\"[^"\\\x00-\x1f]*\\"/"""

    def _listed(self, how: ListedArguments, name: str, schema: Mapping[str, Any]) -> Iterator[str]:
        """Arguments in the order of the schema, each there or not, with texts around and between those that are.

        NAME_from_3 is what may come from the third on when there was none before, NAME_after_3 when there was one.
        """
        literal = self._words.literal
        required = set(schema.get("required") or ())
        properties = list((schema.get("properties") or {}).items())
        definitions = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
        yield f"{name}: {name}_from_0"
        for i, (key, kind) in enumerate(properties):
            yield from self._argument(f"{name}_{i}", key, kind, how, definitions)
            skipped = "" if key in required else f" | {name}_from_{i + 1}"
            yield f"{name}_from_{i}: {literal(how.opening)} {name}_{i} {name}_after_{i + 1}{skipped}"
            skipped = "" if key in required else f" | {name}_after_{i + 1}"
            yield f"{name}_after_{i}: {literal(how.between)} {name}_{i} {name}_after_{i + 1}{skipped}"
        yield f"{name}_from_{len(properties)}: {literal(how.empty) or EMPTY}"
        yield f"{name}_after_{len(properties)}: {literal(how.closing) or EMPTY}"

    def _argument(
        self, rule: str, key: str, kind: Any, how: ListedArguments, definitions: Mapping[str, Any]
    ) -> Iterator[str]:
        literal = self._words.literal
        kind = kind if isinstance(kind, Mapping) else {}
        values = kind.get("enum", [kind["const"]] if "const" in kind else None)
        if values is not None and all(isinstance(value, str) for value in values):
            one = " | ".join(literal(value) for value in values)
            yield f"{rule}: {literal(key + how.texts.before)} ({one}) {literal(how.texts.after)}"
        elif kind.get("type") == "string":
            lines, text = self._words.until(f"{rule}_text", how.texts.after)
            yield from lines
            yield f"{rule}: {literal(key + how.texts.before)} {text}"
        else:
            written: Written = how.others
            value = json_rule("tools", {**kind, **definitions})
            yield f"{rule}: {literal(key + written.before)} {value} {literal(written.after)}".rstrip()


EMPTY = '""'
