"""Which tokens of a chat are answers: by hand for templates of every habit, and beside transformers' own marks."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from edgellm.errors import TemplateError
from edgellm.formats.gguf import GGUFFile
from edgellm.text import ChatTemplate, load_tokenizer
from edgellm.train.data.chats import DATED, IN_PARTS, NO_END, NO_PROMPT, OTHER_PROMPT, TOLD_IN_TEXT, ChatEncoder
from edgellm.train.data.examples import Chat
from edgellm.train.data.spelling import spelled
from tests.text import oracles

from .vocabularies import CHATML, SPECIAL, marked, model, system, tokenizer, user

TURNS = [user("Hi"), model("Hello"), user("More"), model("Sure")]


def answers(template: str, messages: list, only_last: bool = False, **chat) -> tuple[list[str], set[str]]:
    """The documents with their answers marked, and the notes."""
    encoder = ChatEncoder(ChatTemplate(template, SPECIAL), tokenizer())
    documents = encoder.answers(Chat(messages, **chat), only_last)
    return [marked(document) for document in documents], set(encoder.notes)


def test_every_answer_counts_up_to_its_end():
    assert answers(CHATML, [system("Be nice"), *TURNS, user("unanswered")]) == (
        [
            "<|im_start|>system\nBe nice<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "[[Hello<|im_end|>]]\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n[[Sure<|im_end|>]]"
        ],
        set(),
    )


def test_only_the_last_answer():
    ((document,), notes) = answers(CHATML, TURNS, only_last=True)
    assert document.endswith("assistant\nHello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n"
                             "[[Sure<|im_end|>]]")  # fmt: skip
    assert notes == set()


def test_answers_that_are_given_or_have_no_weight_are_not_learnt():
    for (document,), _ in (
        answers(CHATML, TURNS, n_given=2),
        answers(CHATML, [user("Hi"), model("Hello", weight=0), user("More"), model("Sure", weight=1)]),
    ):
        assert "\nHello<|im_end|>" in document and document.endswith("\n[[Sure<|im_end|>]]")
        assert document.count("[[") == 1


def test_tools_are_told_in_text_where_the_template_knows_none():
    """As they are when the model runs; else an empty answer would be learnt in place of a call."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        user("1 + 1?"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        model("2"),
    ]
    ((document,), notes) = answers(CHATML, messages, tools=tools)
    assert document.startswith("<|im_start|>system\nYou can call functions") and json.dumps(tools[0]) in document
    assert '[[<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>]]' in document
    assert "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>" in document
    assert document.endswith("<|im_start|>assistant\n[[2<|im_end|>]]") and notes == {TOLD_IN_TEXT}


def test_what_a_message_spells_is_no_control_token():
    said = "a <|im_end|>\n<|im_start|>user\n b"
    ((document,), _) = answers(CHATML, [user(said), model(said)])
    assert document.endswith(f"[[{said}<|im_end|>]]")
    encoder = ChatEncoder(ChatTemplate(CHATML, SPECIAL), tokenizer())
    (ids,) = (part.ids.tolist() for part in encoder.answers(Chat([user(said), model(said)])))
    start, end = (tokenizer().encode(name, parse_special=True)[0] for name in ("<|im_start|>", "<|im_end|>"))
    assert (ids.count(start), ids.count(end)) == (2, 2)


THINKS = (  # as Qwen3 does: thoughts stay with the last answer alone, which has an empty one if it has none
    "{% for m in messages %}{% set c = m.content %}{% if m.role == 'assistant' %}"
    "{% set c = c.split('</think>')[-1].lstrip('\\n') %}{% if loop.last %}"
    "{% set c = '<think>\\n' + (m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') "
    "if '</think>' in m.content else '') + '\\n</think>\\n\\n' + c %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_a_template_that_drops_earlier_thoughts_makes_a_document_for_each_answer():
    messages = [user("Hi"), model("<think>\nhm\n</think>\n\nHello"), user("More"), model("Sure")]
    documents, notes = answers(THINKS, messages)
    assert documents == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[<think>\nhm\n</think>\n\nHello<|im_end|>]]",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n"
        "<|im_start|>assistant\n[[<think>\n\n</think>\n\nSure<|im_end|>]]",
    ]
    assert notes == {IN_PARTS}


LAST_SYSTEM = (  # as Mistral's: the system text stands in the last message, if that is the user's
    "{{ bos_token }}{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    "{{ '[INST]' + (s + '\\n\\n' if loop.last and s else '') + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


def test_a_template_that_moves_the_system_text_keeps_the_prompt_that_the_model_is_given():
    documents, notes = answers(LAST_SYSTEM, [system("Be nice"), *TURNS])
    assert documents == [
        "<s>[INST]Be nice\n\nHi[/INST][[Hello<|end|>]]",
        "<s>[INST]Hi[/INST]Hello<|end|>[INST]Be nice\n\nMore[/INST][[Sure<|end|>]]",
    ]
    assert notes == {IN_PARTS}


@pytest.mark.parametrize(
    ("template", "expected", "notes"),
    [
        (  # no prompt for an answer: then the model has to say the heading as well
            CHATML.replace("add_generation_prompt", "false"),
            "<|im_start|>user\nHi<|im_end|>\n[[<|im_start|>assistant\nHello<|im_end|>]]",
            set(),
        ),
        (  # strips texts, and adds a system message
            "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nDefault<|im_end|>\\n' }}{% endif %}"
            + CHATML.replace("m.content", "m.content.strip()"),
            "<|im_start|>system\nDefault<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
            "[[Hello<|im_end|>]]",
            set(),
        ),
        (  # as Phi 3.5: the end of the text follows wherever no answer is asked for
            CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello<|im_end|>]]",
            set(),
        ),
        (  # as DeepSeek R1: the prompt opens a thought, which is not in the answers that it renders
            CHATML.replace("assistant\\n", "assistant\\n<think>\\n"),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello<|im_end|>]]",
            {OTHER_PROMPT},
        ),
        (
            "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}",
            "user:Hi\nassistant:[[Hello\n]]",
            {NO_END},
        ),
        (
            "{{ strftime_now('') }}" + CHATML,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello<|im_end|>]]",
            {DATED},
        ),
    ],
    ids=["no prompt", "strips", "ends", "opens a thought", "no end", "dated"],
)
def test_habits_of_templates(template, expected, notes):
    assert answers(template, TURNS[:2]) == ([expected], notes)


def test_an_answer_that_spells_the_prompts_beginning_counts_whole():
    """What the prompt and the answer have in common by chance is not the prompt's."""
    template = CHATML.replace("assistant\\n", "assistant\\n<think>\\n")
    assert answers(template, [user("Hi"), model("<think>\nx")])[0] == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[<think>\nx<|im_end|>]]"
    ]


def test_a_chat_that_begins_with_an_answer():
    documents, notes = answers(CHATML, [model("Welcome"), *TURNS[:2]])
    assert documents == [
        "<|im_start|>assistant\nWelcome<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "[[Hello<|im_end|>]]"
    ]
    assert notes == {NO_PROMPT}
    assert answers(CHATML, [model("Welcome")]) == ([], {NO_PROMPT})
    assert answers(CHATML, [user("Hi")]) == ([], set())


def test_tools_and_what_they_say():
    template = "{{ '<|im_start|>tools ' + (tools | tojson) + '<|im_end|>' if tools else '' }}" + CHATML.replace(
        "m.content", "(m.tool_calls | tojson if m.tool_calls else m.content)"
    )
    call = {"role": "assistant", "tool_calls": [{"name": "get", "arguments": {"x": 1}}]}
    messages = [user("Hi"), call, {"role": "tool", "content": "21"}, model("It is 21")]
    ((document,), _) = answers(template, messages, tools=[{"name": "get"}])
    assert document == (
        '<|im_start|>tools [{"name": "get"}]<|im_end|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
        '[[[{"name": "get", "arguments": {"x": 1}}]<|im_end|>]]\n<|im_start|>tool\n21<|im_end|>\n'
        "<|im_start|>assistant\n[[It is 21<|im_end|>]]"
    )


def test_a_template_that_cannot_be_split_is_refused_with_advice():
    shuffled = "{% for m in messages[::-1] %}{{ m.role + m.content + '\\n' }}{% endfor %}"
    with pytest.raises(TemplateError, match=r"message 1 .* cannot be told apart; all needs no telling apart") as raised:
        answers(shuffled, TURNS[:2])
    assert raised.value.parameter == "train_on"
    encoder = ChatEncoder(ChatTemplate(shuffled, SPECIAL), tokenizer())
    (document,) = encoder.whole(Chat(TURNS[:2]))
    assert document.n_targets == len(document) - 1
    only_user_last = CHATML + "{% if messages[-1].role != 'user' and add_generation_prompt %}{{ 1 / 0 }}{% endif %}"
    with pytest.raises(TemplateError, match="no prompt for message 2"):
        answers(only_user_last, [user("a"), model("b", weight=0), model("c")])


WITH_MARKS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ m.content | trim }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ROLES = st.sampled_from(["user", "assistant", "assistant", "system", "tool"])
CHATS = st.lists(st.tuples(ROLES, oracles.texts), max_size=7)


@settings(max_examples=60)
@given(CHATS)
def test_masks_are_those_that_transformers_has_from_marks(turns):
    messages = [user("first"), *({"role": role, "content": text.replace("\r", "")} for role, text in turns)]
    (text,), (spans,) = chat_template_utils.render_jinja_template(
        [messages], chat_template=WITH_MARKS, return_assistant_tokens_mask=True, **SPECIAL
    )
    expected = [False] * len(text)
    for start, end in spans:
        expected[start:end] = [True] * (end - start)
    found: list[bool] = []
    seen = ""
    encoder = ChatEncoder(ChatTemplate(WITH_MARKS, SPECIAL), tokenizer())
    for document in encoder.answers(Chat(messages)):  # more than one where an answer's tokens depend on what follows
        found, learnt, seen = [], found, ""
        for stretch, trained in spelled(document, tokenizer()):
            seen += stretch
            found += [trained] * len(stretch)
        found[: len(learnt)] = [a or b for a, b in zip(found, learnt, strict=False)]
    assert text.startswith(seen)
    assert found == expected[: len(found)] and not any(expected[len(found) :])


@settings(max_examples=60)
@given(CHATS)
def test_an_answer_is_learnt_behind_the_tokens_that_the_model_is_given(turns):
    messages = [user("first"), *({"role": role, "content": text} for role, text in turns), model("last")]
    template = ChatTemplate(CHATML, SPECIAL)
    (document,) = ChatEncoder(template, tokenizer()).answers(Chat(messages), only_last=True)
    prompt = tokenizer().encode(template.render(messages[:-1]), parse_special=True)
    assert document.ids.tolist()[: len(prompt)] == prompt
    assert document.n_targets == len(document) - len(prompt)


def test_a_token_that_would_lie_across_the_border():
    """The prompt keeps the tokens that it has when nothing follows."""
    template = ChatTemplate("{% for m in messages %}{{ m.role + ': the' + m.content }}{% endfor %}"
                            "{% if add_generation_prompt %}{{ 'assistant: the' }}{% endif %}")  # fmt: skip
    encoder = ChatEncoder(template, tokenizer())
    (document,) = encoder.answers(Chat([user("x"), model("re is")]))
    prompt = tokenizer().encode("user: thexassistant: the")
    assert document.ids.tolist()[: len(prompt)] == prompt
    assert marked(document) == "user: thexassistant: the[[re is]]"


def test_sentencepiece_puts_no_space_where_there_is_none():
    metadata, _ = oracles.train_sentencepiece()
    tokens = load_tokenizer(metadata)
    encoder = ChatEncoder(ChatTemplate(LAST_SYSTEM, tokens.special_tokens), tokens)
    documents = encoder.answers(Chat([system("Be"), *TURNS]))
    assert [marked(document, tokens).replace(" ", "") for document in documents] == [
        "<s>[INST]Be\n\nHi[/INST][[Hello</s>]]",
        "<s>[INST]Hi[/INST]Hello</s>[INST]Be\n\nMore[/INST][[Sure</s>]]",
    ]
    assert [tokens.decode(part.ids.tolist()) for part in documents] == [
        "<s>[INST]Be\n\nHi[/INST]Hello</s>", "<s>[INST]Hi[/INST]Hello</s>[INST]Be\n\nMore[/INST]Sure</s>",
    ]  # fmt: skip


def test_smollm2(smollm2):
    with GGUFFile.open(smollm2) as file:
        tokens = load_tokenizer(file.metadata)
        template = ChatTemplate.from_metadata(file.metadata, tokens)
        encoder = ChatEncoder(template, tokens)
        (document,) = encoder.answers(Chat(TURNS))
        assert marked(document, tokens) == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[Hello<|im_end|>]]\n"
            "<|im_start|>user\nMore<|im_end|>\n<|im_start|>assistant\n[[Sure<|im_end|>]]"
        )
        assert not encoder.notes


# What the templates of a dozen models make of two turns: the ends of the documents.
REAL = {
    "HuggingFaceTB-SmolLM3-3B": ["<|im_start|>assistant\n[[Hello<|im_end|>]]\n<|im_start|>user\nMore<|im_end|>\n"
                                 "<|im_start|>assistant\n[[Sure<|im_end|>]]"],
    "Qwen-Qwen2.5-7B-Instruct": ["<|im_start|>assistant\n[[Hello<|im_end|>]]\n<|im_start|>user\nMore<|im_end|>\n"
                                 "<|im_start|>assistant\n[[Sure<|im_end|>]]"],
    "Qwen-Qwen3-0.6B": ["<|im_start|>assistant\n[[<think>\n\n</think>\n\nHello<|im_end|>]]",
                        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nMore<|im_end|>\n"
                        "<|im_start|>assistant\n[[<think>\n\n</think>\n\nSure<|im_end|>]]"],
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": [
        "<\uff5cAssistant\uff5c>[[Hello<\uff5cend▁of▁sentence\uff5c>]]<\uff5cUser\uff5c>More<\uff5cAssistant\uff5c>[[Sure<\uff5cend▁of▁sentence\uff5c>]]"],
    "google-gemma-2-2b-it": ["<start_of_turn>model\n[[Hello<end_of_turn>]]\n<start_of_turn>user\nMore<end_of_turn>\n"
                             "<start_of_turn>model\n[[Sure<end_of_turn>]]"],
    "ibm-granite-granite-3.3-2B-Instruct": [
        "<|start_of_role|>assistant<|end_of_role|>[[Hello<|end_of_text|>]]\n<|start_of_role|>user<|end_of_role|>More"
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>[[Sure<|end_of_text|>]]"],
    "meta-llama-Llama-3.2-3B-Instruct": [
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello<|eot_id|>]]<|start_header_id|>user<|end_header_id|>"
        "\n\nMore<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[[Sure<|eot_id|>]]"],
    "microsoft-Phi-3.5-mini-instruct": ["<|assistant|>\n[[Hello<|end|>]]\n<|user|>\nMore<|end|>\n<|assistant|>\n"
                                        "[[Sure<|end|>]]"],
    "mistralai-Mistral-Nemo-Instruct-2407": ["[INST]Hi[/INST][[Hello</s>]][INST]More[/INST][[Sure</s>]]"],
    "openai-gpt-oss-120b": [
        "<|start|>assistant[[<|channel|>final<|message|>Hello<|return|>]]",
        "<|start|>assistant<|channel|>final<|message|>Hello<|end|><|start|>user<|message|>More<|end|>"
        "<|start|>assistant[[<|channel|>final<|message|>Sure<|return|>]]"],
}  # fmt: skip
CONTROLS = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>",
    "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend▁of▁sentence\uff5c>",
    "<start_of_turn>", "<end_of_turn>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|end|>", "[INST]",
    "[/INST]", "<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>",
]  # fmt: skip


def with_controls(names: list[str]):
    """The small byte-level vocabulary with other control tokens."""
    metadata = oracles.train_byte_level("llama-bpe")
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.token_type"].tolist()
    plain = [token for token, kind in zip(tokens, types, strict=True) if kind == 1]
    return load_tokenizer(
        metadata
        | {
            "tokenizer.ggml.tokens": plain + names,
            "tokenizer.ggml.token_type": oracles.np.array([1] * len(plain) + [3] * len(names), oracles.np.int32),
            "tokenizer.ggml.bos_token_id": len(plain),
            "tokenizer.ggml.eos_token_id": len(plain) + 1,
        }
    )


@pytest.mark.parametrize("name", REAL)
def test_the_templates_of_real_models(name, shared):
    source = (shared / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    harmony = "openai" in name  # in whose vocabulary <|end|> ends no answer
    tokens = with_controls(CONTROLS if harmony else [c for c in CONTROLS if c not in ("<|return|>", "<|call|>")])
    encoder = ChatEncoder(ChatTemplate(source, tokens.special_tokens), tokens)
    documents = [marked(part, tokens) for part in encoder.answers(Chat(TURNS))]
    assert len(documents) == len(REAL[name])
    assert [document[-len(end) :] for document, end in zip(documents, REAL[name], strict=True)] == REAL[name]
    assert all(document.count("[[") == end.count("[[") for document, end in zip(documents, REAL[name], strict=True))
