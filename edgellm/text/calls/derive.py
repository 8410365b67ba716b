"""Finding out how a template writes calls of tools, by rendering made-up ones and looking what stands around them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from edgellm.errors import EdgellmError
from edgellm.text.calls.arguments import JsonArguments, ListedArguments, Written, common_end, common_start
from edgellm.text.calls.syntax import Call, CallSyntax
from edgellm.text.ends import AMBIGUOUS, UNMISTAKABLE

if TYPE_CHECKING:
    from edgellm.text.chat_template import ChatTemplate

# Words that stand in no template, and begin and end with no word of another.
NAMES = ("zqtoolone", "zqtooltwo")
KEYS = ("zqkeyone", "zqkeytwo")
VALUES = ("zqvalueone", "zqvaluetwo")
IDS = ("zqid00001", "zqid00002")
NUMBERS = (48151623, 42108151)
CONTENT = "\u2603zqcontent\u2603"
QUESTION = {"role": "user", "content": "zqquestion"}


def made_up_tools() -> list[dict[str, Any]]:
    """Tools of the made-up names."""
    kinds = {key: {"type": "string", "description": "zq"} for key in KEYS}
    parameters = {"type": "object", "properties": kinds, "required": []}
    return [
        {"type": "function", "function": {"name": name, "description": "zq", "parameters": parameters}}
        for name in NAMES
    ]


def knows_tools(template: ChatTemplate) -> bool:
    """Whether a template tells the model of tools."""
    with_tools = _rendered(template, [QUESTION], add_generation_prompt=True)
    return with_tools is not None and NAMES[0] in with_tools


def derived_syntax(template: ChatTemplate) -> CallSyntax | None:
    """How a template writes calls; None where it writes none, or in a way that cannot be told from its renderings."""
    if not knows_tools(template):
        return None
    argument = {KEYS[0]: VALUES[0]}
    one = _written(template, [_call(0, argument)])
    if one is None or NAMES[0] not in one or KEYS[0] not in one:
        return None
    two = _written(template, [_call(0, argument), _call(1, {KEYS[1]: VALUES[1]})])
    return _with_json(one, two, argument) or _with_list(template, one, two)


def _call(which: int, arguments: Mapping[str, Any]) -> Call:
    return Call(NAMES[which], dict(arguments), IDS[which])


def _written(template: ChatTemplate, calls: list[Call]) -> str | None:
    """What stands for some calls in the turn of an assistant; None when the template does not take them."""
    message = {"role": "assistant", "content": "", "tool_calls": [call.as_message() for call in calls]}
    full = _rendered(template, [QUESTION, message])
    if full is None:
        full = _rendered(template, [QUESTION, {key: value for key, value in message.items() if key != "content"}])
    plain = _rendered(template, [QUESTION, {"role": "assistant", "content": CONTENT}])
    if full is None or plain is None:
        return None
    start = len(common_start(full, plain))
    n_end = len(common_start(full[start:][::-1], plain[start:][::-1]))
    text, rest = full[start : len(full) - n_end], full[len(full) - n_end :]
    # The cut may be inside of what both end with, as in <|call|> and <|return|>.
    if (opened := text.rfind("<")) > text.rfind(">") and opened > text.rfind("}") and ">" in rest:
        text += rest[: rest.index(">") + 1]
    text = re.sub(r"^\s*<(\w+)>\s*</\1>\s*", "", text)  # a thought that nobody had
    return _without_end(text, template)


def _without_end(text: str, template: ChatTemplate) -> str:
    """Without the tokens at its end that end an answer."""
    ends = [name.decode() for name in UNMISTAKABLE + AMBIGUOUS]
    ends += [template.special_tokens[name] for name in ("eos_token",) if name in template.special_tokens]
    while end := next((end for end in ends if text.rstrip().endswith(end)), None):
        text = text.rstrip().removesuffix(end)
    return text


def _rendered(
    template: ChatTemplate, messages: list[dict[str, Any]], add_generation_prompt: bool = False
) -> str | None:
    try:
        return str(template.render(messages, add_generation_prompt, tools=made_up_tools()))
    except EdgellmError:
        return None


def _with_json(one: str, two: str | None, argument: dict[str, Any]) -> CallSyntax | None:
    """Where the arguments are one JSON object."""
    found = _json_span(one, argument)
    if found is None:
        return None
    start, end, quoted = found
    spans = {
        "name": _span(one, NAMES[0], (start, end)),
        "arguments": (start, end),
        "id": _span(one, IDS[0], (start, end)),
    }
    if spans["name"] is None:
        return None
    parts = sorted((span, name) for name, span in spans.items() if span is not None)
    order = tuple(name for _, name in parts)
    middle = tuple(one[a[1] : b[0]] for (a, _), (b, _) in pairwise(parts))
    first, last = one[: parts[0][0][0]], one[parts[-1][0][1] :]
    again = _again(two, first, last, order, middle, quoted)
    return CallSyntax(first, order, middle, again, last, JsonArguments(quoted))


def _again(
    two: str | None, first: str, last: str, order: tuple[str, ...], middle: tuple[str, ...], quoted: bool
) -> str | None:
    """What stands between two calls."""
    if two is None or NAMES[1] not in two:
        return None
    ends, begins = [], []
    for which in range(2):
        found = _json_span(two, {KEYS[which]: VALUES[which]})
        if found is None:
            return None
        spans = [_span(two, NAMES[which], found[:2]), found[:2]]
        if "id" in order:
            spans.append(_span(two, IDS[which], found[:2]))
        whole = [span for span in spans if span is not None]
        begins.append(min(whole)[0])
        ends.append(max(end for _, end in whole))
    return two[ends[0] : begins[1]] if two.startswith(first) and two.endswith(last) and ends[0] <= begins[1] else None


def _json_span(text: str, wanted: dict[str, Any]) -> tuple[int, int, bool] | None:
    """Where an object stands in a text, and whether in a JSON string."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r'[{"]', text):
        try:
            found, end = decoder.raw_decode(text, match.start())
            quoted = isinstance(found, str)
            if quoted:
                found = json.loads(found)
        except ValueError:
            continue
        if found == wanted:
            return match.start(), end, quoted
    return None


def _span(text: str, word: str, outside: tuple[int, int]) -> tuple[int, int] | None:
    for match in re.finditer(re.escape(word), text):
        if not outside[0] <= match.start() < outside[1]:
            return match.span()
    return None


def _with_list(template: ChatTemplate, one: str, two: str | None) -> CallSyntax | None:
    """Where the arguments stand one by one. Each text between two words is taken from a rendering that has both."""
    texts = _written(template, [_call(0, {KEYS[0]: VALUES[0], KEYS[1]: VALUES[1]})]) or ""
    numbers = _written(template, [_call(0, {KEYS[0]: NUMBERS[0], KEYS[1]: NUMBERS[1]})]) or ""
    none = _written(template, [_call(0, {})]) or ""
    first = one.partition(NAMES[0])[0]
    opening = _between(one, NAMES[0], KEYS[0])
    before = [_between(one, KEYS[0], VALUES[0]), _between(numbers, KEYS[0], str(NUMBERS[0]))]
    gaps = [_between(texts, VALUES[0], KEYS[1]), _between(numbers, str(NUMBERS[0]), KEYS[1])]
    ends = [texts.partition(VALUES[1])[2], numbers.partition(str(NUMBERS[1]))[2]]
    if opening is None or None in before or None in gaps or NAMES[0] not in none:
        return None
    between, rest = common_end(gaps[0] or "", gaps[1] or ""), common_end(*ends)
    after = [(gap or "")[: len(gap or "") - len(between)] for gap in gaps]
    if after == ["", ""]:  # what closes a value is the same for all
        closes = common_start(between, rest)
        closes = closes[: closes.rfind(">") + 1] or closes
        after, between, rest = [closes, closes], between[len(closes) :], rest[len(closes) :]
    if not after[0]:
        return None  # nothing tells where a text ends
    again = _between(two, VALUES[0] + after[0], NAMES[1]) if two is not None else None
    closing = rest if again is None else common_start(rest, again)
    last = rest[len(closing) :]
    empty = none.partition(NAMES[0])[2].removesuffix(last)
    listed = ListedArguments(
        opening, between, closing, empty, Written(before[0] or "", after[0]), Written(before[1] or "", after[1])
    )
    if again is not None:
        again = again[len(closing) :]
    return CallSyntax(first, ("name", "arguments"), ("",), again, last, listed)


def _between(text: str, one: str, other: str) -> str | None:
    """What stands between two words that follow each other."""
    _, found, rest = text.partition(one)
    inner, other_found, _ = rest.partition(other)
    return inner if found and other_found else None
