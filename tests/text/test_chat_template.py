"""Chat templates render byte for byte as `transformers` renders them."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from edgellm.errors import FormatError, TemplateError, UsageError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import ChatTemplate, load_tokenizer

from . import oracles

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
USER = {"role": "user", "content": "Hi <b>'ü'</b>"}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich"}},
}
CHATS = {
    "one turn": [USER],
    "three turns": [USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "More\n"}],
    "system": [
        {"role": "system", "content": "Be nice."},
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
        USER,
    ],
    "reasoning": [USER, {"role": "assistant", "content": "b", "reasoning_content": "deep"}, USER],
    "tool call": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": '{"t": 21}'},
    ],
    "not alternating": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}],
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "<City>"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
}
FUNCTION = {
    "name": "get_weather",
    "description": "Wetter für 'alle'",
    "parameters": SCHEMA,
    "return": {"type": "string", "description": "sky"},
}
COHERE_TOOL = {
    "name": "get_weather",
    "description": "sky",
    "parameter_definitions": {"city": {"type": "str", "description": "where", "required": True}},
}
TOOLS = {"none": None, "openai": [{"type": "function", "function": FUNCTION}], "cohere": [COHERE_TOOL]}
EXTRAS: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"documents": [{"title": "T", "text": "doc"}]},
    {"date_string": "1 Jan 2025", "reasoning_effort": "high"},
]


def original(source: str, chat: list, prompt: bool, **variables: Any) -> str | None:
    """What `transformers` renders, or None when the template fails."""
    if not hasattr(chat_template_utils, "_alias_reasoning_fields"):  # nor has the last for Python 3.10
        chat = [{"thinking": m["reasoning_content"], **m} if "reasoning_content" in m else m for m in chat]
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [chat], chat_template=source, add_generation_prompt=prompt, **SPECIAL, **variables
        )
    except Exception:
        return None
    return texts[0]


def ours(template: ChatTemplate, chat: list, prompt: bool, **variables: Any) -> str | None:
    try:
        return template.render(chat, add_generation_prompt=prompt, **variables)
    except TemplateError:
        return None


def test_the_templates_of_a_dozen_models(shared):
    paths = sorted((shared / "templates").glob("*.jinja"))
    assert len(paths) == 12
    for path in paths:
        source = path.read_text(encoding="utf-8")
        template = ChatTemplate(source, SPECIAL)
        rendered = 0
        for chat in CHATS.values():
            for tools in TOOLS.values():
                for extra in EXTRAS:
                    for prompt in (True, False):
                        expected = original(source, chat, prompt, tools=tools, **extra)
                        assert ours(template, chat, prompt, tools=tools, **extra) == expected
                        rendered += expected is not None
        assert rendered >= 16, path.name


# Each line exercises one part of the language that templates rely on.
SNIPPETS = [
    "{% for m in messages %}\n  {% if not loop.first %}, {% endif %}\n{{ m.role }}\n{% endfor %}\n\n",
    "{%- for m in messages -%} {{ loop.index }}/{{ loop.length }} {{ loop.last }} {%- endfor -%}",
    "{% for m in messages if m.role == 'user' %}{{ m['content'] | trim }}{% else %}none{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{% continue %}{% endfor %}x",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'ü': '<&>'} | tojson(ensure_ascii=True) }}",
    "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}",
    "{{ messages[1:] | length }}{{ messages[-1].content[:3] }}{{ messages[::-1][0].role }}",
    "{{ 'a' ~ 1 ~ none ~ true ~ missing }}{{ [1, 'x'] ~ (2,) ~ {'k': 1.5} }}",
    "{{ [1, 2, 3] | join(', ') }}{{ messages | join('|', attribute='role') }}{{ ', '.join(['a', 'b']) }}",
    "{{ 'a-b-c'.split('-') }}{{ 'a-b'.replace('-', '+') }}{{ 'x' | replace('x', 1) }}{{ ' q '.strip() }}",
    "{{ 'a\nb' | indent(2) }}{{ 'a\nb' | indent(2, true) }}{{ 'ab' | upper | lower | title }}",
    "{{ '%s is %d and %.2f' % ('x', 3, 1.5) }}{{ '{} {:>4} {k}'.format(1, 2, k=3) }}{{ '%05d' | format(7) }}",
    "{{ 1 in [1, 2] }}{{ 'a' not in 'abc' }}{{ 1 < 2 < 3 }}{{ 1 == 1.0 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 8 }}",
    "{{ missing is defined }}{{ messages is string }}{{ messages[0] is mapping }}",
    "{{ missing | default('d') }}{{ '' | default('d', true) }}{{ 1000000 | default(5) }}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 3, 4, z=5) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in{% endcall %}",
    "{% set x %}block {{ 1 }}{% endset %}{{ x }}{% filter upper %}abc{% endfilter %}",
    "{% if tools %}t{% elif tools is none %}n{% endif %}{{ tools is defined }}{{ documents is none }}",
    "{% set a, b = 1, 2 %}{{ (b, a) }}{% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
    "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'eq', 'user') | list }}",
    "{{ [3, 1] | sort }}{{ {'b': 1, 'a': 2} | dictsort }}{{ [1, 1] | unique | list }}{{ [1, 2] | sum }}",
    "{{ messages | groupby('role') | map('first') | list }}{{ [1, 2, 3] | batch(2) | list }}",
    "{% generation %}answer{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}",
    "{% for i in range(3) recursive %}{{ i }}{% endfor %}{{ range(10) | list }}{{ dict(a=1, b=2) }}",
    "{{ '<b>' | e }}{{ ('<' | e) + '&' }}{{ ['<', '&' | e] | join('-') }}{{ ('<' | safe) ~ '>' }}",
    "{# comment #}{% raw %}{{ raw }}{% endraw %}\n    {% if true %}   \n  kept\n    {% endif %}\n",
    "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ sep_token }}{{ add_generation_prompt }}",
    "{{ messages[0].nothing }}|{{ messages[9] }}|{{ missing }}",
    "{{ missing.attribute }}", "{{ 1 / 0 }}", "{{ messages.append(1) }}", "{{ ''.__class__ }}",
    "{{ none + 1 }}",
    "{{ 'x'.join([1, 2]) }}", "{{ raise_exception('no') }}", "{% for x in 5 %}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", SNIPPETS)
def test_snippets(source):
    for chat in CHATS.values():
        for prompt in (True, False):
            assert ours(ChatTemplate(source, SPECIAL), chat, prompt) == original(source, chat, prompt)


def test_todays_date():
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([USER]) in (
        str(datetime.now().year),
        str(datetime.now().year - 1),
    )


def test_a_template_can_refuse_the_messages():
    template = ChatTemplate("{{ raise_exception('Only user\nand assistant roles') }}")
    with pytest.raises(TemplateError, match=r"^Only user and assistant roles$"):
        template.render([USER])


def test_smollm2_renders_its_template(smollm2):
    with GGUFFile.open(smollm2) as file:
        tokenizer = load_tokenizer(file.metadata)
        template = ChatTemplate.from_metadata(file.metadata, tokenizer)
        prompt = template.render([{"role": "user", "content": "Hi"}])
        assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        ids = tokenizer.encode(prompt, parse_special=True)
        assert ids.count(1) == 3 and ids.count(2) == 2
        assert tokenizer.decode(ids) == prompt


def test_a_base_model_has_none(gemma3):
    with GGUFFile.open(gemma3) as file:
        assert ChatTemplate.from_metadata(file.metadata, load_tokenizer(file.metadata)) is None


def test_a_file_may_carry_a_template_for_tools():
    metadata = oracles.train_byte_level("gpt-2") | {
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template": "plain {{ eos_token }}",
        "tokenizer.chat_template.tool_use": "tools {{ tools | length }}",
    }
    template = ChatTemplate.from_metadata(metadata, load_tokenizer(metadata))
    assert template.render([USER]) == "plain <|end|>"
    assert template.render([USER], tools=[FUNCTION]) == "tools 1"


def test_a_template_that_is_no_text_is_refused():
    metadata = oracles.train_byte_level("gpt-2") | {"tokenizer.chat_template": 7}
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template is a int"):
        ChatTemplate.from_metadata(metadata, load_tokenizer(metadata))


@pytest.mark.parametrize("messages", ["text", [1], [None], [{"role": object()}], [{"content": b"bytes"}]])
def test_messages_that_are_none(messages):
    with pytest.raises(UsageError):
        ChatTemplate("{{ messages }}").render(messages)


def test_messages_without_end():
    endless: list = []
    endless.append({"content": endless})
    with pytest.raises(UsageError, match="deep"):
        ChatTemplate("{{ messages }}").render(endless)


def test_the_messages_stay_as_they_were_and_hold_plain_values():
    class Loud(str):
        def upper(self):
            raise AssertionError("called a method of the caller's own type")

    message = {"role": "user", "content": Loud("hi"), "thinking": "t"}
    template = ChatTemplate("{{ messages[0].content.upper() }}{{ messages[0].reasoning_content }}")
    assert template.render([message]) == "HIt"
    assert message == {"role": "user", "content": "hi", "thinking": "t"}


OPENAI = [
    {"role": "user", "content": "Weather?", "name": None},
    {"role": "assistant", "content": None, "refusal": None, "reasoning_content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "name": "get_weather", "content": "21"},
]


def applied(source: str, chat: list) -> str | None:
    """What `apply_chat_template` gives, which drops keys before it renders."""
    return original(source, chat_template_utils._normalize_chat_messages(chat), True)


@pytest.mark.skipif(not hasattr(chat_template_utils, "_normalize_chat_messages"), reason="an older transformers")
def test_keys_without_a_value_are_dropped_as_transformers_does(shared):
    sources = [path.read_text(encoding="utf-8") for path in sorted((shared / "templates").glob("*.jinja"))]
    sources += ["{% for m in messages %}{{ m.content }}|{{ m['content'] is defined }}|{{ m | length }}{% endfor %}"]
    for source in sources:
        assert ours(ChatTemplate(source, SPECIAL), OPENAI, True) == applied(source, OPENAI)
    assert "None" not in ChatTemplate(sources[-1]).render(OPENAI)
    inner = [{"role": "user", "content": {"a": None}}]
    source = "{{ messages[0].content if messages[0].content is mapping }}"
    assert ChatTemplate(source).render(inner) == "{'a': None}"  # only those of messages


@dataclasses.dataclass
class MessageObject:
    role: str
    content: str | None
    parts: tuple[int, ...] = (1, 2)


class Pydantic:
    def model_dump(self) -> dict[str, Any]:
        return {"role": "user", "content": "hi", "audio": None}


def test_message_objects():
    chat = [MessageObject("user", "a"), MessageObject("user", None), Pydantic()]
    source = "{% for m in messages %}{{ m }}{% endfor %}"
    assert ours(ChatTemplate(source), chat, True) == (
        "{'role': 'user', 'content': 'a', 'parts': (1, 2)}{'role': 'user', 'parts': (1, 2)}"
        "{'role': 'user', 'content': 'hi'}"
    )


PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]


@pytest.mark.parametrize("source", [
    "{{ messages[0].content }}", "{{ '<' + messages[0].content + '>' }}", "{{ messages[0].content | tojson }}",
    "{% if messages[0].content is string %}{{ messages[0].content }}{% endif %}",
])  # fmt: skip
def test_parts_become_one_text_for_a_template_that_knows_texts_only(source):
    whole = [{"role": "user", "content": "one\ntwo"}]
    assert ChatTemplate(source).render(PARTS) == ChatTemplate(source).render(whole)


def test_parts_are_handed_on_to_a_template_that_knows_them(shared):
    source = "{% for p in messages[0].content %}{% if p.type == 'text' %}[{{ p['text'] }}]{% endif %}{% endfor %}"
    assert ChatTemplate(source).render(PARTS) == original(source, PARTS, True) == "[one][two]"
    for path in sorted((shared / "templates").glob("*.jinja")):
        prompt = ChatTemplate(path.read_text(encoding="utf-8"), SPECIAL).render(PARTS, tools=[], documents=[])
        assert "one" in prompt and "two" in prompt and "'text'" not in prompt, path.name


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([{"role": 3, "content": "x"}], "message 0: 'role' is a int"),
        ([USER, {"role": "user", "content": 3}], "message 1: 'content' is a int"),
        ([{"role": "user", "content": True}], "'content' is a bool"),
        ([{"role": "user", "content": [3]}], "'content' holds a int"),
        ([{"role": "user", "content": [{"type": "text"}]}], "no text under 'text'"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "edgellm reads texts only"),
        (USER, "a dict; expected a list of dicts"),
        (None, "a NoneType; expected a list of dicts"),
        ([[USER]], "message 0 is"),
    ],
)  # fmt: skip
def test_messages_of_the_wrong_form_are_refused_by_name(messages, what):
    with pytest.raises(UsageError, match=what):
        ChatTemplate("{{ messages }}").render(messages)
