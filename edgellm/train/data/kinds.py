"""What a record is, told by its keys.

messages                        a chat, with `tools` and `chat_template_kwargs` if there are any
conversations                   a chat as ShareGPT writes it: from, value
prompt, completion              a prompt and its answer: texts, or lists of messages
instruction, input, output      the same as Alpaca writes it
text                            a text
prompt, chosen, rejected        two answers; without a prompt, two chats that begin alike
prompt, completion, label       an answer that is good or not
prompt                          something to be answered; any other keys go to who judges the answers
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgellm.errors import FormatError, UsageError, shown
from edgellm.formats.strict_json import parse
from edgellm.train.config import MOST_FACTOR
from edgellm.train.data.examples import Chat, Completion, Example, Labelled, Preference, Prompt, Text
from edgellm.train.data.values import Values

ANYTHING = "*"  # among the keys that a kind may have: all others mean something too


@dataclass(frozen=True)
class Kind:
    """A kind of example.

    name:    what its keys are called together, for people: "messages".
    what:    what its examples are: "chats".
    needed:  keys that each record has; more: keys that it may have.
    make:    the example of a record. Raises UsageError that says which value is wrong.
    """

    name: str
    what: str
    needed: tuple[str, ...]
    more: tuple[str, ...]
    make: Callable[[Values], Example]


def kind_of(values: Mapping[str, Any], wanted: Sequence[Kind]) -> Kind:
    """The kind of a record, one of those that are wanted. Raises UsageError that says what keys there are.

    A record that has all keys of a kind and more, which make it another, is not of the first: answers with a label are
    not to be imitated.
    """
    fitting = [kind for kind in EVERY if values.keys() >= set(kind.needed)]
    closest = [kind for kind in fitting if not any(set(kind.needed) < set(other.needed) for other in fitting)]
    found = next((kind for kind in wanted if kind in closest), None)
    if found is not None:
        return found
    has = f"has the keys {', '.join(map(str, values)):.200}" if values else "has no keys"
    told = f", so it is one of {closest[0].what}" if closest else ""
    expected = "; or ".join(dict.fromkeys(", ".join(kind.needed) for kind in wanted))
    raise UsageError(f"{has}{told}; expected {expected}")


def unused_keys(values: Mapping[str, Any], kind: Kind) -> list[str]:
    """Keys of a record that its kind does not look at, and of turns as ShareGPT writes them."""
    found = [key for key in values if key not in kind.needed and key not in kind.more]
    turns = values.get("conversations") if "conversations" in kind.needed else None
    further = {key: None for turn in turns if "from" in turn for key in turn} if isinstance(turns, list) else {}
    inner = [f"{key} in conversations" for key in further if key not in ("from", "value")]
    return [*([] if ANYTHING in kind.more else found), *inner]


# Chats


def _chat(values: Values) -> Chat:
    return Chat(values.messages("messages"), values.tools(), 0, values.variables())


SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool",
    "function_call": "assistant", "observation": "tool", "function_response": "tool", "function": "tool",
    "developer": "developer",
}  # fmt: skip


def _sharegpt(values: Values) -> Chat:
    messages = []
    for n, turn in enumerate(values.objects("conversations")):
        if "role" in turn and "from" not in turn:  # the chats of others, under ShareGPT's key
            messages = values.messages("conversations")
            break
        speaker, said = turn.get("from"), turn.get("value")
        role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise UsageError(f"conversations[{n}] is from {shown(speaker)}; expected one of {', '.join(SPEAKERS)}")
        if not isinstance(said, str):
            raise UsageError(f"conversations[{n}] has {shown(said)} as its 'value'; expected a text")
        messages.append(_called(n, said) if speaker == "function_call" else {"role": role, "content": said})
    system = values.optional_text("system")
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return Chat(messages, values.tools())


def _called(n: int, said: str) -> dict[str, Any]:
    """The message of a turn that calls a function, as JSON with a name and arguments."""
    try:
        call = parse(said.encode("utf-8", "surrogatepass"))
    except FormatError:
        call = None
    if not (isinstance(call, dict) and {"name", "arguments"} <= call.keys()):
        raise UsageError(f"conversations[{n}] calls {shown(said)}; expected JSON with 'name' and 'arguments'")
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}


# Prompts and their answers


def _completion(values: Values, answer: str = "completion") -> Chat | Completion:
    prompt, said = values.text_or_messages("prompt"), values.text_or_messages(answer)
    if isinstance(prompt, str) and isinstance(said, str):
        return Completion(prompt, said, tools=values.tools(), variables=values.variables())
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answers = [{"role": "assistant", "content": said}] if isinstance(said, str) else said
    return Chat([*given, *answers], values.tools(), len(given), values.variables())


def _alpaca(values: Values) -> Completion:
    """With the headings that Alpaca (Taori et al., 2023) gave its prompts, where the model has no template."""
    instruction, output = values.text("instruction"), values.text("output")
    further = values.optional_text("input") or ""
    parts = [("Instruction", instruction), ("Input", further), ("Response", "")]
    headed = [f"### {name}:\n{text}" for name, text in parts if text or name == "Response"]
    prompt = "\n\n".join(filter(None, (instruction, further)))
    return Completion(prompt, output, "\n\n".join(headed), values.optional_text("system") or None)


def _text(values: Values) -> Text:
    return Text(values.text("text"))


# Prompts alone


def _prompt(values: Values) -> Prompt:
    columns = values.others("prompt", *_MORE)
    return Prompt(values.text_or_messages("prompt"), values.tools(), values.variables(), columns)


# Judged answers

_GOES_ON = ("assistant", "model")  # roles that a chat goes on with and does not begin with


def _preference(values: Values) -> Preference:
    chosen, rejected = values.text_or_messages("chosen"), values.text_or_messages("rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UsageError("one of 'chosen' and 'rejected' is a text and the other a list of messages")
    if isinstance(chosen, str) or isinstance(rejected, str):
        return Preference(_completion(values, "chosen"), _completion(values, "rejected"))
    prompt = values.text_or_messages("prompt") if "prompt" in values else []
    given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if given and chosen[0]["role"] in _GOES_ON and rejected[0]["role"] in _GOES_ON:
        chosen, rejected, n_given = [*given, *chosen], [*given, *rejected], len(given)
    else:  # whole chats
        n_given = _n_same(chosen, rejected)
        _check_begun(prompt, chosen[:n_given])
    if n_given == 0:
        raise UsageError("'chosen' and 'rejected' have no message in common; expected a prompt that both answer")
    tools, variables = values.tools(), values.variables()
    better, worse = (Chat(messages, tools, n_given, variables) for messages in (chosen, rejected))
    return Preference(better, worse)


def _check_begun(prompt: str | Sequence[Mapping[str, Any]], begun: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError for a prompt that whole chats do not begin with, for nobody would look at it."""
    said = [str(message.get("content")).strip() for message in begun]
    asked = [prompt] if isinstance(prompt, str) else [str(message.get("content")) for message in prompt]
    if begun and any(text.strip() not in said for text in asked):
        raise UsageError(
            "'chosen' and 'rejected' are whole chats that do not begin with 'prompt'; expected answers to it, chats "
            "that begin with it, or no 'prompt'"
        )


def _rated(values: Values) -> Preference:
    """With a margin, by which the chosen one is better."""
    margin = values.optional_number("margin")
    if margin is not None and margin < 0:
        raise UsageError(f"'margin' is {margin:g}, by which 'rejected' would be the better one; expected at least 0")
    if margin is not None and margin > MOST_FACTOR:
        raise UsageError(f"'margin' is {margin:g}; expected a number up to {MOST_FACTOR:g}")
    return replace(_preference(values), margin=margin)


def _labelled(values: Values) -> Labelled:
    return Labelled(_completion(values), values.yes_or_no("label"))


def _n_same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many messages two chats begin with alike; at least one of each is left to differ."""
    same = 0
    while same < min(len(one), len(other)) - 1 and one[same] == other[same]:
        same += 1
    return same


# Those with more telling keys come first: a record that has the keys of several is of the first that is wanted.
_MORE = ("tools", "chat_template_kwargs")
PREFERENCES = (
    Kind("prompt, chosen, rejected", "preferences", ("chosen", "rejected"), ("prompt", *_MORE), _preference),
)
RATED = (Kind("prompt, chosen, rejected", "preferences", ("chosen", "rejected"), ("prompt", "margin", *_MORE), _rated),)
LABELLED = (Kind("prompt, completion, label", "labelled answers", ("prompt", "completion", "label"), _MORE, _labelled),)
TO_IMITATE = (
    Kind("messages", "chats", ("messages",), _MORE, _chat),
    Kind("conversations", "chats", ("conversations",), ("tools", "system"), _sharegpt),
    Kind("prompt, completion", "prompts with answers", ("prompt", "completion"), _MORE, _completion),
    Kind("instruction, output", "instructions with answers", ("instruction", "output"), ("input", "system"), _alpaca),
    Kind("text", "texts", ("text",), (), _text),
)
PROMPTS = (Kind("prompt", "prompts", ("prompt",), (*_MORE, ANYTHING), _prompt),)
ALL = RATED + PREFERENCES + LABELLED + TO_IMITATE  # in which something can be learnt
EVERY = ALL + PROMPTS
